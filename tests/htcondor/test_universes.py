"""Pools that start jobs in other ways: without new privileges, and several nodes as one job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.htcondor.jobs import WITNESS
from tests.htcondor.machine import DOMAIN
from tests.htcondor.pool import Pool
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.htcondor]

AGENT = """
[accounting]
interval_seconds = 1
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
[profiles.near]
reach = ["campus"]
[[rules]]
when = "StayNear =?= true"
profile = "near"
[[rules]]
when = "JobUniverse == 11"
set = { peers = '"owner"' }
"""
CONFIG = f"""
DISABLE_SETUID = true
DedicatedScheduler = "DedicatedScheduler@worker1.{DOMAIN}"
STARTD_ATTRS = $(STARTD_ATTRS) DedicatedScheduler
"""
NODE = """
import os, socket, sys, time
rank, ranks = (int(os.environ[f"_CONDOR_{name}"]) for name in ("PROCNO", "NPROCS"))
folder = os.environ["SUBMITTED_FROM"]
if rank == 0:
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.connect(("198.51.100.10", 9))
    listener = socket.create_server((out.getsockname()[0], 5000))
    with open(f"{folder}/where.new", "w") as file:
        file.write(out.getsockname()[0])
    os.rename(f"{folder}/where.new", f"{folder}/where")
    for _ in range(ranks - 1):
        connection, _ = listener.accept()
        print("rank 0 heard", connection.recv(100).decode())
        connection.sendall(b"done")
        connection.close()
else:
    until = time.monotonic() + 60
    while not os.path.exists(f"{folder}/where") and time.monotonic() < until:
        time.sleep(0.1)
    connection = socket.create_connection((open(f"{folder}/where").read(), 5000), 30)
    connection.sendall(f"rank {rank}".encode())
    print(f"rank {rank} heard", connection.recv(100).decode())
"""
"""A parallel program: the ranks find rank 0 by a file, as MPI's find each other by a hosts file."""


@pytest.fixture(scope="module")
def pool(condor_root: Path) -> Iterator[Pool]:
    """Give a pool whose processes get no privilege by exec, with a dedicated scheduler."""
    with Lab() as lab:
        agent = lab.agent(AGENT)
        yield Pool(lab, condor_root, config=CONFIG)
        agent.terminate()


def test_without_new_privileges_there_is_a_second_way_in(pool: Pool) -> None:
    """DISABLE_SETUID takes lark-enter's capability; jobs are confined and counted all the same."""
    job = pool.submit(
        f"{WITNESS}grep NoNewPrivs: /proc/self/status; ip -br address\n"
        "curl -sSf -o got http://server.campus.test/bytes/100000"
    )
    end = job.ended()
    assert end.status == 0, end
    assert end.stdout.split()[:2] == ["NoNewPrivs:", "1"]
    assert "uplink0" not in end.stdout
    assert pool.host() not in job.networks()
    record = job.record()
    assert record["received"]["bytes"] > 100_000
    assert record["owner"] == "alice"


def test_without_new_privileges_the_plan_holds(pool: Pool) -> None:
    """A job that may only reach the campus reaches nothing else; one that may does."""
    ask = "\n".join(
        f"curl -m 5 -sSf -o got http://server.{place}.test/bytes/1000; echo $?"
        for place in ("campus", "internet")
    )
    near, far = pool.submit(ask, my_StayNear="true"), pool.submit(ask)
    assert far.ended().stdout.split() == ["0", "0"]
    campus, internet = near.ended().stdout.split()
    assert (campus, near.record()["profile"]) == ("0", "near")
    assert internet in {"7", "28"}


def test_without_new_privileges_chirp_works_and_jobs_are_apart(pool: Pool) -> None:
    """The chirp proxy is reachable, and a second job has a network of its own."""
    jobs = [
        pool.submit(
            f"{WITNESS}/usr/libexec/condor/condor_chirp get_job_attr ClusterId; sleep 1",
            my_WantIOProxy="true",
        )
        for _ in range(2)
    ]
    for job in jobs:
        assert job.ended().stdout.strip() == job.number.split(".")[0]
    (first,), (second,) = (job.networks() for job in jobs)
    assert len({first, second, pool.host()}) == 3


def test_nodes_of_a_parallel_job_reach_each_other(pool: Pool) -> None:
    """Two nodes on one worker, each with a sandbox, are peers where the policy has owners' jobs be.

    Each node has a record under the job's one id.
    """
    job = pool.submit(
        f"{WITNESS}python3 node.py",
        inputs={"node.py": NODE},
        universe="parallel",
        machine_count=2,
        output="out.$(Node)",
        error="err.$(Node)",
        # else the job is over with its first node, and the other's files may not come
        **{"+ParallelShutdownPolicy": '"WAIT_FOR_ALL"'},
    )
    job.ended()
    said = [job.file(f"out.{rank}").read_text() for rank in (0, 1)]
    assert said == ["rank 0 heard rank 1\n", "rank 1 heard done\n"]
    assert len(set(job.networks())) == 2
    assert pool.host() not in job.networks()
    pool.await_true(lambda: [r["final"] for r in pool.records(job.number)] == [True, True])
    assert all(record["sent"]["bytes"] > 0 for record in pool.records(job.number))
