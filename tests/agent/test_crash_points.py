"""Killed at any named point, the agent comes back: jobs go on, records are exact, nothing leaks."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.agent.crashing import (
    CONFIG,
    FILE,
    STEPS,
    Victim,
    by_step,
    descriptors,
    leaked,
    points,
    start,
    state,
)
from tests.agent.worker import ONCE, final, records, times, until
from tests.lab.capture import Capture, flows
from tests.lab.process import LabError
from tests.lab.topology import WORKER

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.world import Lab

ALL = bool(os.environ.get("CRASH_POINTS"))
CHAINS = {
    "start": ("recovery", "worker", "upgrade", "pool", "dismantle"),
    "claim": ("claim", "grant", "lease"),
    "end": ("end", "settle", "final"),
    "rest": ("reservation", "join", "change", "reload", "sample", "journal", "ack"),
}
ELSEWHERE = {
    "recovery.truncated": "tests/agent/test_power_loss.py",
    "worker.no-firewall": "test_a_start_and_a_stop_are_cut_short",
    "upgrade.one-map": "test_a_start_and_a_stop_are_cut_short",
    "upgrade.older-gone": "test_a_start_and_a_stop_are_cut_short",
    "upgrade.renamed": "test_a_start_and_a_stop_are_cut_short",
}
"""Points that an agent with a job does not pass, and who passes them."""


def test_every_point_is_somebodys() -> None:
    """A new point needs a step that passes it, and each step is in one chain."""
    steps = by_step()
    assert set(steps) == set(STEPS)
    assert sorted(step for chain in CHAINS.values() for step in chain) == sorted(steps)
    assert set(ELSEWHERE) <= set(points())


def chain(name: str) -> list[str]:
    """Return the points of a chain; every sixth, unless all are asked for."""
    steps = by_step()
    found = [p for step in CHAINS[name] for p in steps[step] if p not in ELSEWHERE]
    return found if ALL else found[::6]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces")
@pytest.mark.parametrize("name", CHAINS)
def test_killed_at_every_point(lab: Lab, tmp_path: Path, name: str) -> None:
    """One job lives through the deaths of a chain of agents; every record equals the capture."""
    before = state(lab)
    with Capture("eth0", tmp_path / "campus.pcap", lab.netns("campus")) as capture:
        victim = Victim(lab)
        for point in chain(name):
            victim.kill_at(point, STEPS[point.partition(".")[0]])
        agent = start(lab)
        victim.talk()
        victim.witness.end()
        record = final(lab, victim.witness.job.job_id)
    until(lambda: all(one.final for one in records(lab).values()), "final records of all jobs")
    sent = [p.ip_len for p in flows(capture.path) if p.src == WORKER.ipv4 and p.dport == 9]
    counted = [one.usage.sent for one in records(lab).values()]
    assert record.usage.sent == times(ONCE, victim.turns)
    assert sum(count.packets for count in counted) == len(sent)
    assert sum(count.bytes for count in counted) == sum(sent)
    assert leaked(lab, agent, before) == {}


FIRST = ["upgrade.one-map", "upgrade.older-gone", "upgrade.renamed", "worker.forwards"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces")
def test_a_start_and_a_stop_are_cut_short(lab: Lab) -> None:
    """Where there is no job yet, or none any more: the next agent works, and leaves nothing."""
    before = state(lab)
    lab.path(FILE).write_text(CONFIG)
    for point in FIRST if ALL else FIRST[-1:]:
        with pytest.raises(LabError, match="ended with -9"):
            start(lab, point)
    agent = start(lab, "worker.no-firewall")
    assert lab.job(["true"]).status == 0
    until(lambda: all(one.final for one in records(lab).values()), "the job's final record")
    until(lambda: not descriptors(agent), "an agent without jobs")
    assert agent.terminate() == -signal.SIGKILL
    agent = start(lab)
    assert lab.job(["true"]).status == 0
    until(lambda: all(one.final for one in records(lab).values()), "final records of all jobs")
    assert leaked(lab, agent, before) == {}
