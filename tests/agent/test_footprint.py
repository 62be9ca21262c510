"""What an agent costs while nobody needs it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.agent.worker import links, until

if TYPE_CHECKING:
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
RSS_BYTES = 80_000_000
CPU_SHARE = 0.005
SECONDS = 20.0


def wake_ups(pid: int) -> dict[str, int]:
    """Return how often each thread gave up the processor by itself, by thread number and name."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                name = (task / "comm").read_text().strip()
                found[f"{task.name} {name}"] = int(line.split()[1])
    return found


def test_an_agent_at_rest(lab: Lab) -> None:
    """With its pool ready: at most 80 MB resident, 0.5 % of a core, and no polling above 1 Hz.

    Connected to its collector, as agents are. Each thread of the agent's own may wake up once a
    second, and three times more over the whole measurement (samples fall into it). gRPC brings
    threads whose timers run at about 1 Hz each and wake others up; they get five times as many.
    """
    lab.collector()
    agent = lab.agent('[collector]\naddress = "127.0.0.1:9620"\ninsecure = true\n')
    until(lambda: len(links(lab)) == 8, "a full pool")
    assert lab.job(["true"]).status == 0
    until(lambda: "event=final" in agent.stderr, "the job's record")
    process = psutil.Process(agent.pid)
    _at_rest(process)
    before, used = wake_ups(agent.pid), sum(process.cpu_times()[:2])
    time.sleep(SECONDS)
    after, used = wake_ups(agent.pid), sum(process.cpu_times()[:2]) - used
    resident = process.memory_info().rss
    woken = {thread: after[thread] - before.get(thread, 0) for thread in after}
    own = [count for thread, count in woken.items() if thread.endswith(" lark-agent")]
    print(f"{resident / 1e6:.1f} MB, {used / SECONDS:.3%} of a core, wake-ups {woken}")
    assert resident <= RSS_BYTES
    assert used <= CPU_SHARE * SECONDS
    assert max(own) <= SECONDS + 3, woken
    assert max(woken.values()) <= 5 * SECONDS, woken


def _at_rest(process: psutil.Process) -> None:
    """Wait until two seconds pass in which the agent uses no processor time worth mentioning."""

    def quiet() -> bool:
        before = sum(process.cpu_times()[:2])
        time.sleep(2)
        return sum(process.cpu_times()[:2]) - before <= 0.02

    until(quiet, "an agent at rest")
