"""How users reach a running job of a real pool: condor_tail, condor_ssh_to_job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.htcondor.jobs import CondorJob
    from tests.htcondor.pool import Pool

pytestmark = [pytest.mark.root, pytest.mark.htcondor]

BOUNDLESS = 'WantNetwork = true\\nNetworkProfile = "wide"\\n'
UNTIL_ENOUGH = "until [ -e $SUBMITTED_FROM/enough ]; do sleep 0.2; done"


def started(pool: Pool, script: str) -> CondorJob:
    """Return a job that runs until the test makes the file `enough`."""
    job = pool.submit(f"readlink /proc/self/ns/net > $SUBMITTED_FROM/net; {script}\n{UNTIL_ENOUGH}")
    pool.await_true(lambda: job.file("net").exists() and bool(job.file("net").read_text()))
    return job


def test_tail_shows_what_the_job_has_said(pool: Pool) -> None:
    """condor_tail prints the output of a job that runs in a sandbox."""
    job = started(pool, "echo so far so good")
    said: list[str] = []

    def tailed() -> bool:
        said.append(pool.run(["condor_tail", job.number], user="alice", check=False).stdout)
        return "so far so good" in said[-1]

    pool.await_true(tailed)
    job.file("enough").touch()
    assert job.ended().status == 0


def test_a_shell_joins_the_sandbox_of_its_job(pool: Pool) -> None:
    """condor_ssh_to_job's shell is in the job's network, also after the job rewrote its ad."""
    rewrite = f"printf '{BOUNDLESS}' > more; mv more .job.ad"
    job = started(pool, f"{rewrite}; echo rewritten")
    there = pool.run(
        ["condor_ssh_to_job", "-auto-retry", job.number, "readlink", "/proc/self/ns/net"],
        user="alice",
    )
    assert there.stdout.strip().endswith(job.file("net").read_text().strip())
    assert len(pool.records(job.number)) == 1
    job.file("enough").touch()
    assert job.ended().status == 0
    assert job.record()["final"]
