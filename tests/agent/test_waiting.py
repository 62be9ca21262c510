"""More jobs than slots: they wait in order, give up in time, and cost nothing once gone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.agent.worker import Talker, final, records, sandboxes, until

if TYPE_CHECKING:
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
MOST_MEMORY = 60 << 20
"""Bytes that a thousand who wait may have cost, at their most; Python keeps what it once had."""
ONE_SLOT = "[pool]\nslots = 1\nready = 1\nwait_seconds = {wait}\n[nat]\nrest_seconds = 0\n"


JOBS, OF_ALICE, SLOTS = 1000, 900, 64


def test_a_thousand_at_once(lab: Lab) -> None:
    """All run; users take turns; what the agent needs for it is bounded, and given back."""
    config = f"[pool]\nslots = {SLOTS}\nwait_seconds = 240\n[nat]\nrest_seconds = 0\n"
    agent = lab.agent(config)
    assert lab.job(["true"]).status == 0
    process = psutil.Process(agent.pid)
    before, memory = process.num_fds(), process.memory_info().rss
    started = lab.path("/run/lab/home/order")
    started.touch()
    started.chmod(0o666)
    jobs = lab.start_jobs(
        ["sh", "-c", "id -un >> /run/lab/home/order; sleep 0.05"],
        ["alice"] * OF_ALICE + ["bob"] * (JOBS - OF_ALICE),
    )
    assert [job.result(240).status for job in jobs] == [0] * JOBS
    order = started.read_text().split()
    assert len(order) == JOBS
    last = JOBS - order[::-1].index("bob")
    assert last < JOBS / 2, "bob's, who came last, waited for nearly all of alice's"
    final(lab, jobs[-1].job_id)
    until(lambda: all(record.final for record in records(lab).values()), "the last records")
    assert len(records(lab)) == JOBS + 1
    until(lambda: process.num_fds() <= before + 8, "descriptors to be given back")
    assert process.memory_info().rss - memory < MOST_MEMORY


def test_jobs_wait_in_order(lab: Lab) -> None:
    """With one slot, jobs get it in the order in which they came."""
    lab.agent(ONE_SLOT.format(wait=60))
    holder = Talker(lab)
    jobs = []
    for number in range(4):
        jobs.append(lab.start_job(["sh", "-c", "date +%s.%N"], user=("alice", "bob")[number % 2]))
        waiting = number + 1
        until(lambda: _waiting(lab) == waiting, "the next in the queue")  # noqa: B023  called here
    holder.end()
    times = [float(job.result(60).stdout) for job in jobs]
    assert times == sorted(times)


def _waiting(lab: Lab) -> int:
    """Count the connections that the agent has accepted and that wait for an answer."""
    lines = lab.path("/proc/1/net/unix").read_text().splitlines()
    return sum(line.endswith("/run/lark/run.sock") and line.split()[5] == "03" for line in lines)


def test_waiting_ends_with_a_refusal(lab: Lab) -> None:
    """After `wait_seconds` the job is refused: 125, one line, the time and what to do."""
    lab.agent(ONE_SLOT.format(wait=1.5))
    holder = Talker(lab)
    done = lab.job(["echo", "ran"], user="bob")
    assert (done.status, done.stdout) == (125, "")
    assert len(done.stderr.splitlines()) == 1
    assert "no network sandbox became free within 1.5 s; try again later" in done.stderr
    assert done.wrapper_error == done.stderr
    assert 1.4 < done.seconds < 6
    holder.end()


def test_who_hangs_up_gives_up_the_place(lab: Lab) -> None:
    """A job killed while it waits takes no sandbox and leaves no record; the next one is served."""
    lab.agent(ONE_SLOT.format(wait=60))
    holder = Talker(lab)
    impatient = lab.start_job(["true"])
    until(lambda: _waiting(lab) == 1, "a queue")
    patient = lab.start_job(["true"], user="bob")
    until(lambda: _waiting(lab) == 2, "a queue of two")
    impatient.kill(9)
    assert impatient.result().status == -9
    until(lambda: _waiting(lab) == 1, "the agent to notice")
    holder.end()
    assert patient.result().status == 0
    final(lab, patient.job_id)
    assert impatient.job_id not in records(lab)


def test_the_pool_fills_up_again(lab: Lab) -> None:
    """When freed slots have rested, sandboxes are ready again without a job that asks."""
    lab.agent("[pool]\nslots = 4\nready = 2\n[nat]\nrest_seconds = 1\n")
    used = until(lambda: len(now := indices(lab)) == 2 and now, "a full pool")
    jobs = [lab.start_job(["true"]) for _ in range(2)]
    for job in jobs:
        assert job.result().status == 0
    until(lambda: len(now := indices(lab)) == 2 and not now & used, "two new sandboxes", 15)


def indices(lab: Lab) -> set[str]:
    """Return the numbers that the kernel gave the sandboxes' links: a new link, a new number."""
    lines = lab.run(["ip", "-o", "link"]).stdout.splitlines()
    return {line.split(":")[0] for line in lines if ": lark" in line}


def test_freed_slots_rest(lab: Lab) -> None:
    """Slots are used in turn: nobody gets a port block that was somebody's a moment ago."""
    lab.agent("[pool]\nslots = 6\nready = 1\n[nat]\nrest_seconds = 600\n")
    blocks = []
    for _ in range(6):
        job = lab.start_job(["true"])
        assert job.result().status == 0
        blocks.append(final(lab, job.job_id).first_port)
        # a job that waited would take the sandbox that is kept for one without a network
        until(lambda: len(sandboxes(lab)) == 2, "what is kept ready and nothing else")
    # one of the six slots is kept for a job without a network
    assert len(set(blocks[:5])) == 5
    assert blocks[5] == blocks[0], "not the one that rested longest"


def test_an_agent_that_stops_tells_who_waits(lab: Lab) -> None:
    """A job that waits when the agent is stopped is refused and leaves no record."""
    agent = lab.agent(ONE_SLOT.format(wait=60))
    holder = Talker(lab)
    job = lab.start_job(["echo", "ran"], user="bob")
    until(lambda: _waiting(lab) == 1, "a queue")
    assert agent.terminate() == 0
    done = job.result()
    assert (done.status, done.stdout) == (125, "")
    assert "the agent is stopping; try again" in done.stderr
    assert job.job_id not in records(lab)
    holder.end()
    assert "Traceback" not in agent.stderr
