"""Whatever fails, no job of a real pool runs on the worker's own network, and its user reads why.

Every job writes down in which network namespace it runs (`WITNESS`) before anything else, where it
stays whatever becomes of the job: the worker's must never be there.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.htcondor.jobs import EXECUTING, STARTER_ERROR, WITNESS
from tests.htcondor.pool import Pool
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.process import Process

pytestmark = [pytest.mark.root, pytest.mark.htcondor]

UNTIL_ENOUGH = "until [ -e $SUBMITTED_FROM/enough ]; do sleep 0.2; done"
TWO_SLOTS = "[pool]\nslots = 2\nready = 2\nwait_seconds = 0.5\n"


@pytest.fixture(scope="module")
def worker(condor_root: Path) -> Iterator[Pool]:
    """Give a pool whose agent is the tests' to start."""
    with Lab() as lab:
        yield Pool(lab, condor_root)


@contextlib.contextmanager
def agent(worker: Pool, config: str = "") -> Iterator[Process]:
    """Run an agent for a while."""
    process = worker.lab.agent(config)
    try:
        yield process
    finally:
        process.terminate()


def test_without_an_agent_no_job_runs(worker: Pool) -> None:
    """Agent stopped: the job waits, its log says why, and it runs when the agent is there."""
    job = worker.submit(f"{WITNESS} echo done")
    said = job.await_event(STARTER_ERROR).text
    assert "lark-run" in said, said
    assert job.networks() == []
    with agent(worker):
        assert job.ended().stdout == "done\n"
    assert worker.host() not in job.networks()


def test_an_agent_that_restarts_costs_no_job(worker: Pool) -> None:
    """Jobs that run go on, jobs that start meanwhile wait or try again: each ends, confined."""
    with agent(worker):
        running = [worker.submit(f"{WITNESS}{UNTIL_ENOUGH}") for _ in range(4)]
        for job in running:
            job.await_event(EXECUTING)
    starting = [worker.submit(WITNESS) for _ in range(4)]
    with agent(worker):
        for job in running:
            job.file("enough").touch()
        assert [job.ended().status for job in (*running, *starting)] == [0] * 8
        assert [len(job.networks()) for job in running] == [1] * 4
        for job in running:
            assert job.record()["final"]
    assert not any(worker.host() in job.networks() for job in (*running, *starting))


def test_more_jobs_than_sandboxes_wait_for_one(worker: Pool) -> None:
    """With every sandbox taken a job waits, its log says why, and it runs when one is free."""
    with agent(worker, TWO_SLOTS):
        running = [worker.submit(f"{WITNESS}{UNTIL_ENOUGH}") for _ in range(2)]
        worker.await_true(lambda: all(job.networks() for job in running))
        late = worker.submit(WITNESS)
        assert "sandbox" in late.await_event(STARTER_ERROR).text
        assert late.networks() == []
        for job in running:
            job.file("enough").touch()
        assert [job.ended().status for job in (*running, late)] == [0] * 3
    assert not any(worker.host() in job.networks() for job in (*running, late))


BESIDES: dict[str, dict[str, Any]] = {
    "pre-script": {"my_PreCmd": '"beside.sh"'},
    "post-script": {"my_PostCmd": '"beside.sh"'},
    "tool daemon": {"tool_daemon_cmd": "beside.sh"},
    "transfer plugin": {
        "transfer_plugins": "mine=beside.sh",
        "transfer_input_files": "beside.sh, mine://x/y",
    },
}


@pytest.mark.parametrize("kind", BESIDES)
def test_what_would_run_beside_the_job_keeps_the_job_away(worker: Pool, kind: str) -> None:
    """The starter runs some programs of users without the wrapper: jobs with one do not match."""
    beside = "#!/bin/sh\nreadlink /proc/self/ns/net >> /home/alice/beside\n"
    with agent(worker):
        job = worker.submit(WITNESS, inputs={"beside.sh": beside}, **BESIDES[kind])
        other = worker.submit(WITNESS)
        assert other.ended().status == 0
        worker.await_true(lambda: "1 reject your job" in _why(worker, job.number))
        worker.run(["condor_rm", job.number])
    assert job.networks() == []
    assert not worker.machine.path("/home/alice/beside").exists()


def _why(worker: Pool, number: str) -> str:
    return worker.run(["condor_q", "-better-analyze", number]).stdout
