"""A worker whose journal cannot be written: nothing new begins, nothing recorded is lost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import ExitReason
from tests.agent.worker import ONCE, QUICK, Talker, final, kill, records, refused_start, until

if TYPE_CHECKING:
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
BALLAST = "/var/lib/lark/ballast"


def small_disk(lab: Lab) -> None:
    lab.run(["mkdir", "-p", "/var/lib/lark"])
    lab.run(["mount", "-t", "tmpfs", "-o", "size=1m", "journal", "/var/lib/lark"])


def fill(lab: Lab) -> None:
    done = lab.run(["dd", "if=/dev/zero", f"of={BALLAST}", "bs=4k"], check=False)
    assert "No space left" in done.stderr


@pytest.mark.parametrize("killed", [False, True], ids=["the agent goes on", "the agent is killed"])
def test_a_full_disk_loses_nothing(lab: Lab, killed: bool) -> None:
    """New jobs are refused with the reason; one that ends meanwhile gets its true final record."""
    small_disk(lab)
    agent = lab.agent(QUICK)
    before = lab.job(["true"])
    assert before.status == 0
    talker, other = Talker(lab), Talker(lab, user="bob")
    talker.talk()
    fill(lab)
    refused = lab.job(["true"])
    assert refused.status == 125
    assert "cannot record the job" in refused.stderr
    assert "free space" in refused.stderr
    talker.talk()
    talker.end()
    until(lambda: "cannot finish attachments yet" in agent.stderr, "an agent that complains")
    if killed:
        kill(agent)
    lab.path(BALLAST).unlink()
    if killed:
        lab.agent(QUICK)
    record = final(lab, talker.job.job_id)
    assert (record.usage.sent.bytes, record.usage.sent.packets) == (ONCE.bytes * 2, 200)
    assert record.exit_reason == (ExitReason.AGENT_ABSENT if killed else ExitReason.EXITED)
    assert lab.job(["true"]).status == 0
    other.talk()
    other.end()
    assert final(lab, other.job.job_id).usage.sent == ONCE
    assert len([job for job in records(lab).values() if job.final]) >= 3


def test_an_agent_does_not_start_on_a_full_disk(lab: Lab) -> None:
    """It ends with status 5 and names the journal and the remedy."""
    small_disk(lab)
    fill(lab)
    status, words = refused_start(lab, QUICK)
    assert status == 5, words
    assert "/var/lib/lark/journal.sqlite" in words
    assert "free space" in words
