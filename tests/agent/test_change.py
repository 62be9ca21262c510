"""`lark job ID set`: what a running job may do, changed for its next packet."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.agent.worker import ONCE, QUICK, Talker, drops, final, kill, records, until
from tests.lab.filesystem import STATE
from tests.lab.world import PROGRAMS

if TYPE_CHECKING:
    import subprocess

    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
CLASSES = """
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
"""


def change(
    lab: Lab, job: str, *settings: str, user: str = "root"
) -> subprocess.CompletedProcess[str]:
    """Run `lark job ID set …` on the worker."""
    return lab.run(["lark", "job", job, "set", *settings, "--json"], user=user, check=False)


def told(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str, str]]:
    """Return (by, setting, value) of every change that an answer tells of."""
    assert done.returncode == 0, done.stderr
    run: dict[str, Any] = json.loads(done.stdout)["runs"][0]
    return [(each["by"], each["setting"], each["value"]) for each in run["changes"]]


def shown(lab: Lab, job: str) -> str:
    """Return what `lark job ID` tells the job's own user, without its line breaks."""
    return " ".join(lab.run(["lark", "job", job], user="alice").stdout.split())


def test_a_job_is_cut_off_and_let_go_on(lab: Lab) -> None:
    """Packets of after the change are dropped and told so; those of before stay counted."""
    lab.agent(QUICK + CLASSES)
    talker = Talker(lab)
    talker.talk()
    job = talker.job.job_id
    assert told(change(lab, job, "cut=yes")) == [("root", "cut", "yes")]
    talker.talk()
    until(lambda: "class-denied" in shown(lab, job), "a drop")
    assert "here: cut = yes, changed by root" in shown(lab, job)
    assert told(change(lab, job, "cut=no"))[-1] == ("root", "cut", "no")
    talker.talk()
    talker.end()
    record = final(lab, job)
    assert record.usage.sent == ONCE + ONCE
    assert drops(record) == {"class-denied": ONCE.packets}


def test_classes_can_be_taken_and_given(lab: Lab) -> None:
    """The words are those of a profile; what is not named stays as it was."""
    lab.agent(QUICK + CLASSES)
    talker = Talker(lab)
    job = talker.job.job_id
    said = told(change(lab, job, "reach=other", "peers=owner"))
    assert {each[1:] for each in said} == {("reach", "other"), ("peers", "owner")}
    talker.talk()
    change(lab, job, "reach=all")
    talker.talk()
    talker.end()
    record = final(lab, job)
    assert record.usage.sent == ONCE
    assert drops(record) == {"class-denied": ONCE.packets}


def test_a_change_outlives_the_agent(lab: Lab) -> None:
    """The next agent finds it in force and in the record, and goes on from there."""
    agent = lab.agent(QUICK + CLASSES)
    talker = Talker(lab)
    job = talker.job.job_id
    change(lab, job, "reach=other")
    kill(agent)
    talker.talk()
    lab.agent(QUICK + CLASSES)
    assert told(change(lab, job, "peers=all"))[0][1:] == ("reach", "other")
    talker.talk()
    talker.end()
    record = final(lab, job)
    assert drops(record) == {"class-denied": 2 * ONCE.packets}
    assert [each.setting for each in record.changes] == ["reach", "peers"]


def test_a_class_that_is_gone_stands_in_no_ones_way(lab: Lab) -> None:
    """A job may be changed though its plan names what the site has unlisted meanwhile."""
    file, profile = STATE / "agent.toml", '[profiles.few]\nreach = ["campus", "other"]\n'
    lab.path(file).write_text('default_profile = "few"\n' + QUICK + CLASSES + profile)
    agent = lab.service([str(PROGRAMS / "lark-agent"), "run", "--config", str(file)])
    talker = Talker(lab)
    lab.path(file).write_text(QUICK)
    agent.signal(signal.SIGHUP)
    until(lambda: "reloaded" in agent.stderr, "a reload")
    assert told(change(lab, talker.job.job_id, "peers=owner")) == [("root", "peers", "owner")]
    talker.talk()
    talker.end()
    assert final(lab, talker.job.job_id).usage.sent == ONCE


@pytest.mark.parametrize("uplink", ['[uplink]\nrate = "10 Mbit/s"\n', ""], ids=["less", "none"])
def test_a_job_of_old_promises_can_be_cut(lab: Lab, uplink: str) -> None:
    """A cut asks for nothing, so it holds also where what the job was promised is gone."""
    sure = '[profiles.sure]\nguarantee = "60 Mbit/s"\n[uplink]\nrate = "100 Mbit/s"\n'
    agent = lab.agent('default_profile = "sure"\n' + QUICK + sure)
    talker = Talker(lab)
    job = talker.job.job_id
    kill(agent)
    lab.agent(QUICK + uplink)
    assert told(change(lab, job, "cut=yes")) == [("root", "cut", "yes")]
    talker.talk()
    assert change(lab, job, "priority=0").returncode == 6
    talker.end()
    record = final(lab, job)
    assert (record.usage.sent.packets, drops(record)) == (0, {"class-denied": ONCE.packets})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["reach=moon"], "no class 'moon' is defined"),
        (["connectivity=none"], "cannot be set for a running job; there is cut, reach"),
        (["cut=maybe"], "say yes or no"),
        (["rate=fast"], "is not a rate"),
        (["reach=campus", "priority=9"], "is not a whole number from 0 to 7"),
    ],
)
def test_what_cannot_be_set_changes_nothing(
    shared: tuple[Lab, Talker], settings: list[str], said: str
) -> None:
    """One wrong word refuses the whole change, with the words that there are."""
    lab, talker = shared
    done = change(lab, talker.job.job_id, *settings)
    assert done.returncode == 6
    assert said in done.stderr
    assert records(lab)[talker.job.job_id].changes == ()


def test_only_admins_change_jobs(shared: tuple[Lab, Talker]) -> None:
    """Not even a job's own user: it is the site's decision."""
    lab, talker = shared
    done = change(lab, talker.job.job_id, "cut=yes", user="alice")
    assert done.returncode == 6
    assert "only root and members of lark-admin" in done.stderr
    assert change(lab, "no.such.job", "cut=yes").returncode == 7
    assert records(lab)[talker.job.job_id].changes == ()


@pytest.fixture
def shared(lab: Lab) -> tuple[Lab, Talker]:
    """Start an agent and a job that nothing changes."""
    lab.agent(QUICK + CLASSES)
    talker = Talker(lab)
    until(lambda: talker.job.job_id in records(lab), "a job in the journal")
    return lab, talker
