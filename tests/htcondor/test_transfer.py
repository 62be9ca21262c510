"""Stage-in and stage-out: the starter in a sandbox of its own, and what it moved in the record.

Files come from the submit node, which is the worker itself, and from a server beyond it, where a
capture says what was on the wire.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from lark_agent.config import AgentSettings, parse
from lark_agent.hooks.htcondor_config import transferring
from tests.htcondor.pool import LARK, Pool
from tests.htcondor.test_chirp import TALK
from tests.lab.capture import Capture, sum_ip
from tests.lab.filesystem import WRAPPERS
from tests.lab.topology import CAMPUS, WORKER
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.capture import Packet

pytestmark = [pytest.mark.root, pytest.mark.htcondor]
ACCOUNTING = "[htcondor]\naccount_transfer = true\n"
POLICY = """
[accounting]
interval_seconds = 1
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
[networks.lab]
connectivity = "bridge"
bridge = "br0"
addresses = "static"
pool4 = "198.18.20.10-198.18.20.20/24"
[profiles.none]
connectivity = "none"
[profiles.nat]
connectivity = "nat"
[profiles.host]
connectivity = "host"
[profiles.bridge]
connectivity = "bridge"
network = "lab"
"""
RULES = "".join(
    f'[[rules]]\nwhen = \'On =?= "{name}"\'\nprofile = "{name}"\n'
    for name in ("nat", "none", "bridge", "host")
)
IN, FAR, OUT = 3_000_000, 4_000_000, 2_000_000
BLOCKS = range(10240, 32768)
"""NAT ports, which only sandboxes use."""
SLOW = """
import os, socket, time
listener = socket.create_server(("198.51.100.10", 8080))
stream, _ = listener.accept()
stream.recv(4096)
stream.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2000000\\r\\n\\r\\n" + bytes(1000000))
open("/run/lab/half", "w").close()
while not os.path.exists("/run/lab/go"):
    time.sleep(0.05)
stream.sendall(bytes(1000000))
stream.close()
"""
ASK = """
import socket, struct
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.connect("/run/lark/run.sock")
startd = b"STARTD=<192.0.2.10:9618?sock=startd>"
fields = [(5, b"t"), (2, startd)]
door.send(b"LARK\\1\\0\\0\\0" + b"".join(struct.pack("<HH", k, len(v)) + v for k, v in fields))
print(door.recv(1024)[6:].decode())
"""


class Worker:
    """A pool whose starters are wrapped as well, and its agent."""

    def __init__(self, lab: Lab, root: Path) -> None:
        settings = parse(AgentSettings, ACCOUNTING, "agent.toml")
        self.process = lab.agent(POLICY + RULES + ACCOUNTING)
        self.lab = lab
        self.pool = Pool(lab, root, lark=LARK + "\n".join(transferring(settings)))

    def restart(self, config: str = ACCOUNTING, number: int = signal.SIGTERM) -> None:
        """End the agent and start another."""
        self.process.signal(number)
        self.process.wait()
        self.process = self.lab.agent(POLICY + RULES + config)

    def unaccounted(self) -> int:
        """Return how many jobs the agent counts as without an account of their transfer."""
        return self.process.stderr.count("transfer is not accounted")


@pytest.fixture(scope="module")
def worker(condor_root: Path) -> Iterator[Worker]:
    """Give a worker whose agent accounts for transfers."""
    with Lab() as lab:
        lab.run(["ip", "link", "add", "br0", "type", "bridge"])
        lab.run(["ip", "link", "set", "br0", "up"])
        worker = Worker(lab, condor_root)
        yield worker
        worker.process.terminate()


@pytest.fixture
def accounted(worker: Worker) -> Pool:
    """Give its pool."""
    return worker.pool


def test_what_the_starter_moved_is_in_the_jobs_record(accounted: Pool, tmp_path: Path) -> None:
    """Stage-in and stage-out are in `transfer`: as many bytes as were on the wire, and no others.

    What the job itself fetched from the same server is in its own usage, and only there.
    """
    lab, address = accounted.lab, f"http://{CAMPUS.ipv4}"

    def of_sandboxes(packet: Packet) -> bool:
        return bool({packet.sport, packet.dport} & set(BLOCKS))

    with Capture("eth0", tmp_path / "campus.pcap", lab.netns("campus")):
        job = accounted.submit(
            f"head -c {OUT} /dev/urandom > made && curl -sSf -o mine {address}/bytes/50000",
            inputs={"data": "x" * IN},
            transfer_input_files=f"data, {address}/bytes/{FAR}",
        )
        end = job.ended()
        assert end.status == 0, end
        record = job.record()
    moved = record["transfer"]
    share = {each["class"]: each for each in moved["classes"]}
    assert share.keys() == {"campus", "worker"}
    # to the shadow: the executable, and what connections and their protocol add
    assert IN < share["worker"]["received"]["bytes"] < IN * 1.1 + 100_000
    assert OUT < share["worker"]["sent"]["bytes"] < OUT * 1.1 + 100_000
    assert 50_000 < record["received"]["bytes"] < 60_000
    assert [each["class"] for each in record["classes"]] == ["campus"]
    assert lab.lost() == 0
    wire = sum_ip(
        tmp_path / "campus.pcap", lambda p: of_sandboxes(p) and p.dst.endswith(WORKER.ipv4)
    )
    received = share["campus"]["received"], record["received"]
    assert wire.bytes == sum(each["bytes"] for each in received) > FAR
    wire = sum_ip(tmp_path / "campus.pcap", lambda p: of_sandboxes(p) and p.src == WORKER.ipv4)
    assert wire.bytes == share["campus"]["sent"]["bytes"] + record["sent"]["bytes"]
    said = lab.run(["lark", "job", job.record()["attachment_id"], "--bytes"]).stdout
    assert f"{moved['received']['bytes']:,}" in said
    usage = lab.run(["lark", "usage", "--by", "owner", "--bytes"]).stdout
    assert "root" not in usage


def test_chirp_reaches_the_starter_from_every_network(accounted: Pool) -> None:
    """Attributes and files go through, over loopbacks and the claim's connection: not counted."""
    jobs = {
        network: accounted.submit(TALK, my_WantIOProxy="true", my_On=f'"{network}"')
        for network in ("nat", "none", "bridge", "host")
    }
    for network, job in jobs.items():
        end = job.ended()
        assert end.status == 0, (network, end)
        assert end.stdout.strip() == '"hello"'
        assert job.file("put").stat().st_size == 3_000_000
        record = job.record()
        assert record["connectivity"] == network
        assert 0 < record["transfer"]["sent"]["bytes"] < 50_000
        assert record["sent"]["bytes"] == 0


def test_tail_and_ssh_reach_the_job_through_its_starter(accounted: Pool) -> None:
    """condor_tail shows the output; condor_ssh_to_job's shell is in the job's own sandbox."""
    job = accounted.submit(
        "readlink /proc/self/ns/net > $SUBMITTED_FROM/net; echo so far so good\n"
        "until [ -e $SUBMITTED_FROM/enough ]; do sleep 0.2; done"
    )
    accounted.await_true(lambda: job.file("net").exists() and bool(job.file("net").read_text()))

    def tailed() -> bool:
        said = accounted.run(["condor_tail", job.number], user="alice", check=False).stdout
        return "so far so good" in said

    accounted.await_true(tailed)
    there = accounted.run(
        ["condor_ssh_to_job", "-auto-retry", job.number, "readlink", "/proc/self/ns/net"],
        user="alice",
    )
    assert there.stdout.strip().endswith(job.file("net").read_text().strip())
    job.file("enough").touch()
    assert job.ended().status == 0
    assert job.record()["transfer"] is not None


def test_nobody_but_the_startd_has_a_sandbox_for_a_starter(accounted: Pool) -> None:
    """Neither a user nor root by another way gets one."""
    for user in ("alice", "root"):
        said = accounted.lab.run(["/usr/bin/python3", "-c", ASK], user=user).stdout
        assert "only what condor_startd starts as root" in said


def test_only_the_starters_children_start_jobs_from_its_sandbox(accounted: Pool) -> None:
    """A process of a user's that got there by other means is in a sandbox like any other."""
    job = accounted.submit(
        "touch $SUBMITTED_FROM/there; until [ -e $SUBMITTED_FROM/enough ]; do sleep 0.2; done"
    )
    accounted.await_true(job.file("there").exists)
    starter = accounted.lab.run(["pgrep", "-x", "condor_starter"]).stdout.strip()
    inside = ["nsenter", f"--target={starter}", "--net", "--"]
    become = ["setpriv", "--reuid=1001", "--regid=1001", "--clear-groups"]
    done = accounted.lab.run([*inside, *become, f"{WRAPPERS}/lark-run", "true"], check=False)
    assert done.returncode == 125
    assert "in a sandbox already" in done.stderr
    job.file("enough").touch()
    assert job.ended().status == 0


def test_a_checkpointed_job_has_two_records_and_each_byte_once(accounted: Pool) -> None:
    """The first record ends with the checkpoint's transfer; what comes later is the second's."""
    job = accounted.submit(
        "[ -e state ] && { head -c 2000000 /dev/urandom > late; exit 0; }\n"
        "head -c 1000000 /dev/urandom > state; exit 85",
        checkpoint_exit_code=85,
        transfer_checkpoint_files="state",
    )
    assert job.ended().status == 0
    accounted.await_true(lambda: all(each["final"] for each in accounted.records(job.number)))
    second, first = accounted.records(job.number)
    assert 1_000_000 < first["transfer"]["sent"]["bytes"] < 1_200_000
    assert 3_000_000 < second["transfer"]["sent"]["bytes"] < 3_300_000  # state and late


def test_a_transfer_goes_on_without_the_agent(worker: Worker) -> None:
    """Stage-in while the agent restarts: the job runs, and each byte is in its record."""
    lab, pool = worker.lab, worker.pool
    for name in ("half", "go"):
        lab.path(f"/run/lab/{name}").unlink(missing_ok=True)
    server = lab.start(["/usr/bin/python3", "-c", SLOW], host="campus")
    pool.await_true(lambda: ":8080" in lab.run(["ss", "-ltn"], host="campus").stdout)
    job = pool.submit("ls -l big", transfer_input_files=f"http://{CAMPUS.ipv4}:8080/big")
    pool.await_true(lab.path("/run/lab/half").exists)
    worker.restart(number=signal.SIGKILL)
    lab.path("/run/lab/go").touch()
    end = job.ended()
    assert end.status == 0, end
    assert " 2000000 " in end.stdout
    server.wait()
    share = {each["class"]: each for each in job.record()["transfer"]["classes"]}
    assert 2_000_000 < share["campus"]["received"]["bytes"] < 2_200_000


def test_a_record_waits_for_stage_out_also_through_a_restart(worker: Worker) -> None:
    """The job has ended, its starter has not: the record keeps how it ended, and is final later."""
    lab, pool = worker.lab, worker.pool
    job = pool.submit(
        f"head -c {OUT} /dev/zero > made; touch $SUBMITTED_FROM/made\n"
        "until [ -e $SUBMITTED_FROM/enough ]; do sleep 0.1; done; exit 3"
    )
    pool.await_true(job.file("made").exists)
    starter = lab.run(["pgrep", "-x", "condor_starter"]).stdout.strip()
    lab.run(["kill", "-STOP", starter])
    job.file("enough").touch()
    pool.await_true(lambda: bool(pool.records(job.number)[0]["ended_ns"]))
    (before,) = pool.records(job.number)
    assert (before["final"], before["state"], before["exit_status"]) == (False, "ended", 3)
    worker.restart(number=signal.SIGKILL)
    lab.run(["kill", "-CONT", starter])
    assert job.ended().status == 3
    after = job.record()
    assert after["ended_ns"] == before["ended_ns"]
    assert (after["exit_reason"], after["exit_status"]) == ("exited", 3)
    assert OUT < after["transfer"]["sent"]["bytes"] < OUT * 1.2


UNREACHABLE = "insert rule inet lark input iifname lark* tcp dport 9618 reject with tcp reset"


def test_no_job_stops_because_its_transfer_cannot_be_accounted(worker: Worker) -> None:
    """Not wanted, no sandbox free, or a firewall between: jobs run, their records say nothing."""
    assert run_under(worker, "") == 0
    assert run_under(worker, f"{ACCOUNTING}[pool]\nslots = 1\nready = 1\n") == 1
    assert run_under(worker, ACCOUNTING, *UNREACHABLE.split()) == 1


def run_under(worker: Worker, config: str, *rule: str) -> int:
    """Run a job under another agent; returns how many that one counts as without an account."""
    worker.restart(config)
    if rule:
        worker.lab.run(["nft", *rule])
    job = worker.pool.submit("cat data", inputs={"data": "x"})
    assert job.ended().stdout == "x"
    assert job.record()["transfer"] is None
    return worker.unaccounted()
