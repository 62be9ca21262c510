"""SIGHUP: new rules and classes for new jobs, nothing else changes."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import ONCE, QUICK, Talker, final, until
from tests.lab.filesystem import STATE
from tests.lab.world import PROGRAMS

if TYPE_CHECKING:
    from lark_agent.model import Count, Record
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
FILE = STATE / "agent.toml"
CAMPUS = '[classes]\ncampus = ["198.51.100.0/24"]\n'
RULES = """
[[rules]]
when = 'Owner == "bob"'
profile = "none"
"""


def test_reload(lab: Lab) -> None:
    """Rules and classes hold for new jobs; running ones go on; errors change nothing."""
    lab.path(FILE).write_text(QUICK)
    agent = lab.service([str(PROGRAMS / "lark-agent"), "run", "--config", str(FILE)])

    def reload(text: str, said: str) -> None:
        lab.path(FILE).write_text(text)
        before = agent.stderr.count(said)
        agent.signal(signal.SIGHUP)
        until(lambda: agent.stderr.count(said) > before, f"'{said}' in the log")

    running = Talker(lab)
    running.talk()
    reload(QUICK + CAMPUS + RULES, "reloaded")
    running.talk()
    bob = lab.start_job(["true"], user="bob")
    assert bob.result().status == 0
    assert final(lab, bob.job_id).profile == "none"
    later = Talker(lab)
    later.talk()

    reload(QUICK + CAMPUS.replace("198.51", "198.5l") + RULES, "reload refused, the old rules stay")
    assert "classes.campus" in agent.stderr
    reload(QUICK + 'default_profile = "', "reload refused, the old rules stay")
    lab.path(FILE).unlink()
    reload_missing = agent.stderr.count("reload refused")
    agent.signal(signal.SIGHUP)
    until(lambda: agent.stderr.count("reload refused") > reload_missing, "a refusal in the log")
    told = lab.run(["lark", "doctor"], check=False).stdout
    assert "'reload refused' failed 3 times" in told
    later.talk()
    bob = lab.start_job(["true"], user="bob")
    assert bob.result().status == 0
    assert final(lab, bob.job_id).profile == "none"

    for talker in (running, later):
        talker.end()
    assert sent(final(lab, later.job.job_id)) == {"campus": ONCE + ONCE}
    assert sent(final(lab, running.job.job_id)) == {"other": ONCE, "campus": ONCE}
    assert agent.poll() is None


def sent(record: Record) -> dict[str, Count]:
    return {share.traffic_class: share.sent for share in record.usage.classes}
