"""Collectors that are down, slow, wrong or restarted: jobs do not notice, and nothing is lost.

Stand-ins for a collector are real gRPC servers in a process of the lab that behave badly on
purpose; the collector that gets the records in the end is the real one.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.agent.worker import ONCE, Talker, kill, until
from tests.lab.filesystem import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.lab.process import Process
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
CONFIG = """
[collector]
address = "127.0.0.1:9620"
insecure = true
[accounting]
interval_seconds = 1
[pool]
slots = 16
ready = 3
"""
STORE = "/var/lib/lark-collector/usage.sqlite"
# argv: what it does wrong
STAND_IN = """
import sys, time
from concurrent import futures
import grpc
from lark_agent.rpc.lark.v1 import report_pb2 as pb, report_pb2_grpc
class Collector(report_pb2_grpc.CollectorServicer):
    def Report(self, messages, context):
        next(messages)
        if sys.argv[1] == "protocol":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this collector speaks protocol 9")
        yield pb.CollectorMessage(welcome=pb.Welcome(protocol=9 if sys.argv[1] == "word" else 1))
        for message in messages:
            print("got", len(message.batch.records), flush=True)
server = grpc.server(futures.ThreadPoolExecutor(4))
report_pb2_grpc.add_CollectorServicer_to_server(Collector(), server)
server.add_insecure_port("127.0.0.1:9620")
server.start()
print("on", flush=True)
server.wait_for_termination()
"""


def stand_in(lab: Lab, fault: str) -> Process:
    process = lab.start([sys.executable, "-c", STAND_IN, fault], cwd=str(ROOT))
    until(lambda: "on" in process.stdout, "a stand-in")
    return process


def send_once(lab: Lab, number: int = 1) -> dict[str, int]:
    """Run jobs that each send `ONCE`; returns their ids and bytes."""
    talkers = [Talker(lab) for _ in range(number)]
    for talker in talkers:
        talker.talk()
        talker.end()
    return {talker.job.job_id: ONCE.bytes for talker in talkers}


def listed(lab: Lab) -> list[dict[str, Any]]:
    """Return what the collector has of jobs."""
    text = lab.run(["lark", "jobs", "--limit", "0", "--json"], check=False).stdout
    found: list[dict[str, Any]] = json.loads(text)["jobs"] if text else []
    return found


def finals(lab: Lab, wanted: Mapping[str, int]) -> list[dict[str, Any]]:
    """Wait until the collector has all these jobs' final records; returns what it has."""

    def all_there() -> list[dict[str, Any]] | None:
        jobs = listed(lab)
        done = {job["job_id"] for job in jobs if job["final"]}
        return jobs if done >= wanted.keys() else None

    found: list[dict[str, Any]] = until(all_there, "final records in the collector", 70)
    return found


def collected(lab: Lab, wanted: Mapping[str, int]) -> None:
    """Wait until the collector has every job once and final, with the bytes that were sent."""
    jobs = finals(lab, wanted)
    assert len(jobs) == len(wanted)
    assert {job["job_id"]: job["sent"]["bytes"] for job in jobs} == wanted
    usage = json.loads(lab.run(["lark", "usage", "--by", "worker", "--json"]).stdout)
    (row,) = usage["totals"]
    assert (row["jobs"], row["sent"]["bytes"]) == (len(wanted), sum(wanted.values()))


def test_a_collector_that_comes_later(lab: Lab) -> None:
    """Down at the start: jobs run, the log says so once, and later everything arrives once."""
    agent = lab.agent(CONFIG)
    jobs = send_once(lab, 2)
    until(lambda: "cannot report" in agent.stderr, "a complaint")
    lab.collector()
    collected(lab, jobs)
    complaints = [line for line in agent.stderr.splitlines() if "cannot report" in line]
    assert len(complaints) == 1
    assert "127.0.0.1:9620" in complaints[0]


def test_a_collector_restarted_in_the_middle(lab: Lab) -> None:
    """SIGKILL and restart while records stream: each job is there once, with its true total."""
    collector = lab.collector()
    lab.agent(CONFIG)
    running = Talker(lab)
    running.talk()
    jobs = send_once(lab)
    collector.signal(9)
    collector.wait()
    jobs |= send_once(lab)
    lab.collector()
    jobs |= send_once(lab)
    running.end()
    collected(lab, {**jobs, running.job.job_id: ONCE.bytes})


@pytest.mark.parametrize("kept", ["an hour ago", "nothing"])
def test_a_collector_that_lost_what_it_acknowledged(lab: Lab, kept: str) -> None:
    """Restored from a backup, or with a new store: it is sent all again, and has each job once."""
    collector = lab.collector()
    agent = lab.agent(CONFIG)
    running = Talker(lab)
    running.talk()
    jobs = send_once(lab)
    finals(lab, jobs)
    assert "lost what it had acknowledged" not in agent.stderr
    lab.run(["sqlite3", STORE, ".backup /run/backup"])
    jobs |= send_once(lab)
    finals(lab, jobs)
    collector.signal(9)
    collector.wait()
    lab.run(["sh", "-c", f"rm {STORE}*"])
    if kept == "an hour ago":
        lab.run(["mv", "/run/backup", STORE])
    lab.collector()
    running.end()
    jobs[running.job.job_id] = ONCE.bytes
    collected(lab, jobs)
    until(lambda: "lost what it had acknowledged" in agent.stderr, "a word about it", 10)


def test_a_worker_that_was_installed_anew(lab: Lab) -> None:
    """Same name, new journal, while a job's records are under way: what is there stays as it is."""
    lab.collector()
    agent = lab.agent(CONFIG)
    wanted = send_once(lab, 2)
    collected(lab, wanted)
    before = {job["attachment_id"]: job for job in finals(lab, wanted)}
    left = Talker(lab)
    left.talk()
    until(lambda: len(listed(lab)) == 3, "a report of a job that runs")
    kill(agent)
    for file in lab.path("/var/lib/lark").iterdir():
        file.unlink()
    left.end()
    lab.agent(CONFIG)
    later = send_once(lab, 2)
    after = {job["attachment_id"]: job for job in finals(lab, later)}
    assert {key: after[key] for key in before} == before
    final = {job["job_id"]: job["sent"]["bytes"] for job in after.values() if job["final"]}
    assert final == wanted | later
    (open_one,) = (job for job in after.values() if not job["final"])
    assert (open_one["job_id"], open_one["sent"]["bytes"]) in {
        (left.job.job_id, 0), (left.job.job_id, ONCE.bytes)
    }  # fmt: skip


def test_a_collector_that_never_acknowledges(lab: Lab) -> None:
    """It takes records and says nothing: jobs are not delayed, and the real one gets them all."""
    slow = stand_in(lab, "silent")
    lab.agent(CONFIG)
    jobs = send_once(lab, 2)
    until(lambda: "got" in slow.stdout, "a batch")
    done = lab.start_job(["true"])
    result = done.result()
    assert result.status == 0
    assert result.seconds < 2
    slow.signal(9)
    slow.wait()
    lab.collector()
    collected(lab, {**jobs, done.job_id: 0})


@pytest.mark.parametrize("fault", ["protocol", "word"])
def test_a_collector_of_another_version(lab: Lab, fault: str) -> None:
    """Refused by either side: the log says once what to install, jobs run, nothing is lost."""
    other = stand_in(lab, fault)
    agent = lab.agent(CONFIG)
    jobs = send_once(lab)
    until(lambda: "cannot report" in agent.stderr, "a complaint")
    complaints = [line for line in agent.stderr.splitlines() if "cannot report" in line]
    assert "protocol 9" in complaints[0]
    assert "got" not in other.stdout, "records were sent to a collector of another version"
    other.signal(9)
    other.wait()
    lab.collector()
    collected(lab, jobs)
    assert "Traceback" not in agent.stderr
