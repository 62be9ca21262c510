"""A worker and its collector know each other: enrolled, renewed, revoked, taken for no other.

The collector is on the campus, across the worker's uplink, as it is at a site.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from lark_agent.trust import token as tokens
from tests.agent.worker import QUICK, kill, until
from tests.lab.topology import CAMPUS, WORKER2
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.process import Process

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
COLLECTOR = 'listen = "0.0.0.0:9620"\nenroll = "0.0.0.0:9621"\n'
AGENT = f'worker = "w1.campus.test"\n{QUICK}[collector]\naddress = "{CAMPUS.ipv4}:9620"\n'
QUERY = ["lark", "--collector", "/run/lark-collector/query.sock"]
IDENTITY = "/var/lib/lark/identity.json"


class Pool:
    """A laboratory with a collector on the campus that uses TLS."""

    def __init__(self, lab: Lab, more: str = "") -> None:
        self.lab = lab
        self.settings = COLLECTOR + more
        self.lab.path("/etc/lark").mkdir(parents=True, exist_ok=True)
        self.lab.path("/etc/lark/collector.toml").write_text(self.settings)
        self.lab.path("/etc/lark/agent.toml").write_text(AGENT)
        self.process = self.start()

    def start(self) -> Process:
        return self.lab.collector(self.settings, host="campus", insecure=False)

    def admin(self, *words: str) -> str:
        """Run `lark-collector …` on the collector."""
        return self.lab.run(["lark-collector", *words], host="campus").stdout

    def token(self, *options: str) -> str:
        return self.admin("token", "create", *options)

    def enroll(self, token: str, *more: str) -> Process:
        """Run `lark-agent enroll` on the worker; it has ended."""
        done = self.lab.start(["lark-agent", "enroll", *more], stdin=token)
        done.wait()
        return done

    def records(self) -> list[str]:
        """Return the jobs that the collector knows."""
        found = self.lab.run([*QUERY, "jobs", "--json", "--limit", "0"], host="campus").stdout
        return [job["job_id"] for job in json.loads(found)["jobs"]]

    def identity(self) -> Any:
        return json.loads(self.lab.path(IDENTITY).read_bytes())

    def reported(self) -> None:
        """Run a job and wait until the collector has its record."""
        done = self.lab.start_job(["true"])
        assert done.result().status == 0
        until(lambda: done.job_id in self.records(), f"a report of {done.job_id}")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def test_a_worker_enrols_and_is_known(lab: Lab) -> None:
    """Jobs run before; with a token their records arrive, without the agent being restarted."""
    pool = Pool(lab)
    agent = lab.agent(AGENT)
    before = lab.start_job(["true"])
    assert before.result().status == 0
    until(lambda: "this worker is not enrolled" in agent.stderr, "a word in the log")
    assert "lark-agent enroll" in agent.stderr
    token = pool.token("--worker", "w1.campus.test")
    assert token.count("\n") == 1
    done = pool.enroll(token)
    assert done.status == 0, done.stderr
    assert lab.path(IDENTITY).stat().st_mode & 0o777 == 0o600
    until(lambda: before.job_id in pool.records(), "the records of before")
    (known,) = json.loads(pool.admin("agent", "list", "--json"))["workers"]
    assert (known["worker"], known["state"]) == ("w1.campus.test", "enrolled")
    # once: not for another key, and not for the same worker again without a word
    again = pool.enroll(token)
    assert again.status == 125
    assert "was used already, by another machine" in again.stderr
    taken = pool.enroll(pool.token())
    assert taken.status == 125
    assert "is enrolled already" in taken.stderr
    assert "--replace" in taken.stderr
    pool.reported()
    # nothing of what was carried is in the clear
    assert tokens.parse(token).secret not in agent.stderr + pool.process.stderr


def test_a_revoked_worker_is_cut_off_and_comes_back(lab: Lab) -> None:
    """Its open stream ends within a second; nothing is lost when it is enrolled anew."""
    pool = Pool(lab)
    assert pool.enroll(pool.token()).status == 0
    agent = lab.agent(AGENT)
    pool.reported()
    pool.admin("agent", "revoke", "w1.campus.test")
    until(lambda: "w1.campus.test was revoked" in agent.stderr, "the end of the stream", 5)
    missed = lab.start_job(["true"])
    assert missed.result().status == 0
    assert "was revoked" in agent.stderr
    assert missed.job_id not in pool.records()
    denied = pool.enroll(pool.token())
    assert denied.status == 125
    assert pool.enroll(pool.token("--replace")).status == 0
    until(lambda: missed.job_id in pool.records(), "what waited in the journal", 90)


def test_a_certificate_is_renewed_while_reports_go_on(lab: Lab) -> None:
    """One of a few seconds: it is renewed again and again, over a new signer of the collector."""
    days = 12 / 86400
    pool = Pool(lab, f"certificate_days = {days}\n")
    assert pool.enroll(pool.token()).status == 0
    agent = lab.agent(AGENT)
    first = pool.identity()
    pool.admin("authority", "rotate")
    ends = first["ends"]
    for _ in range(3):
        until(lambda: pool.identity()["ends"] > ends, "a renewal")  # noqa: B023  asked in this round
        ends = pool.identity()["ends"]
        pool.reported()
    last = pool.identity()
    assert last["key"] != first["key"]
    assert last["authorities"].count("BEGIN") == 2
    # the collector too is new at each handshake, and restarts
    kill(pool.process)
    pool.start()
    pool.reported()
    assert "cannot renew" not in agent.stderr


def test_what_is_no_member_gets_nothing(lab: Lab) -> None:
    """Neither plain text, nor another authority's worker, nor a worker in another's name."""
    pool = Pool(lab)
    assert pool.enroll(pool.token()).status == 0
    plain = lab.agent(f"{AGENT}insecure = true\n")
    until(lambda: "cannot report" in plain.stderr, "a refusal of plain text")
    assert plain.terminate() == 0
    other = lab.agent(AGENT.replace("w1.", "w2."))
    until(lambda: "is of worker w1.campus.test" in other.stderr, "a word about the name")
    assert other.terminate() == 0
    spoken = lab.start(
        [sys.executable, "-I", "-c", SPEAK, f"{CAMPUS.ipv4}:9620", IDENTITY, "w2.campus.test"]
    )
    spoken.wait()
    refusal = (
        "PERMISSION_DENIED the certificate is of worker w1.campus.test, which cannot speak for"
    )
    assert spoken.stdout.splitlines() == [f"{refusal} w2.campus.test"] * 2, spoken.stderr
    # a collector with another authority is nobody to this worker
    pool.process.signal(9)
    pool.process.wait()
    lab.run(["rm", "-r", "/var/lib/lark-collector/authority"], host="campus")
    pool.start()
    stranger = lab.agent(AGENT)
    until(lambda: "cannot report" in stranger.stderr, "a refusal of the stranger")
    assert "UNAVAILABLE" in stranger.stderr
    assert pool.records() == []


@pytest.mark.parametrize("insecure", [True, False])
def test_a_second_machine_cannot_report_under_a_name(*, insecure: bool) -> None:
    """Without TLS, or with a copy of the key: it is told and counted; the first reports on."""
    plain = "insecure = true\n" if insecure else ""
    with Lab(second=True) as lab:
        pool = Pool(lab, plain)
        if not insecure:
            assert pool.enroll(pool.token()).status == 0
            copy = json.dumps(pool.identity())
            lab.run(["mkdir", "-p", "/var/lib/lark"], host=WORKER2.name)
            lab.run(["tee", IDENTITY], host=WORKER2.name, stdin=copy)
        first = lab.agent(AGENT + plain)
        until(lambda: "event=reporting" in first.stderr, "the first machine's stream")
        second = lab.agent(AGENT + plain, host=WORKER2.name)
        until(lambda: "ALREADY_EXISTS" in second.stderr, "a refusal")
        assert "another machine" in second.stderr
        said = lab.run(["lark", "doctor"], host=WORKER2.name, check=False).stdout
        assert "report refused" in said
        assert "code=ALREADY_EXISTS" in pool.process.stderr
        pool.reported()


# argv: address, identity, a worker's name to claim
SPEAK = """
import pathlib, sys
import grpc
from lark_agent.rpc import secure
from lark_agent.rpc.lark.v1 import report_pb2, report_pb2_grpc
from lark_agent.trust.identity import load
identity = load(pathlib.Path(sys.argv[2]))
with grpc.secure_channel(sys.argv[1], secure.credentials(identity), secure.OPTIONS) as channel:
    stub = report_pb2_grpc.CollectorStub(channel)
    hello = report_pb2.WorkerMessage(hello=report_pb2.Hello(protocol=1, worker=sys.argv[3]))
    follow = report_pb2.FollowJobsRequest(protocol=1, worker=sys.argv[3])
    for call in (stub.Report(iter([hello]), timeout=10), stub.FollowJobs(follow, timeout=10)):
        try:
            next(call)
            print("ADMITTED")
        except grpc.RpcError as error:
            print(error.code().name, error.details())
"""
