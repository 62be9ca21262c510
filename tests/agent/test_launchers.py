"""Where a job's own launcher listens for it (HTCondor's chirp): that port is there, and only there.

The lab's starter listens as HTCondor's does, on the worker's loopback and a port of the kernel's
choice, and answers who it is and whom it sees. Jobs knock, also where they should not.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import WORKER_CLASS, Connectivity, Count
from tests.agent.worker import QUICK, drops, final, kill, python, until, wanted
from tests.lab.filesystem import WRAPPERS
from tests.lab.topology import CAMPUS, WORKER
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.lab.jobs import AdValue, JobHandle, Scheduler

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
LOOPBACK, GATEWAY = "127.0.0.1", "100.98.0.1"
PROFILES = wanted(
    {
        "alone": 'connectivity = "none"',
        "public": 'connectivity = "routed"',
        "only6": 'ip = "ipv6"',
        "together": 'peers = "owner"\ninbound = "all"',
    }
)
CONFIG = QUICK.replace("slots = 4", "slots = 8") + PROFILES
ROUTED6 = '[addresses]\nrouted6 = "2001:db8:7::/112"\n'
ROUTED = ROUTED6 + 'routed4 = "198.18.7.0/24"\n'
LICENSE = '[services]\nlicense = { port = "tcp/27000", loopback = true }\n'
# Asks where chirp's configuration says, and at each ADDRESS,PORT of argv; prints what answers.
ASK = """
import os, socket, sys
def ask(address, port, size=0):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(1)
        try:
            sock.connect((address, int(port)))
            sock.sendall(b"%d\\n" % size)
            return b"".join(iter(lambda: sock.recv(1 << 16), b""))
        except OSError:
            return b""
def told():
    return open(os.environ["_CONDOR_CHIRP_CONFIG"]).read().split()
"""
ONCE = (
    ASK
    + """
host, port, _ = told()
print("chirp", ask(host, port).decode())
for where in sys.argv[1:]:
    if answer := ask(*where.split(",")):
        print(where, answer.decode())
"""
)
BULK = ASK + "host, port, _ = told()\nprint(len(ask(host, port, 30_000_000)))\n"
IN_TURNS = (
    ASK
    + """
import itertools, pathlib, time
there = pathlib.Path(sys.argv[1])
(there / "ready").touch()
for number in itertools.count(1):
    while not (there / f"ask{number}").exists():
        if (there / "end").exists():
            raise SystemExit(0)
        time.sleep(0.02)
    where = (there / f"ask{number}").read_text().split(",")
    (there / "new").write_bytes(ask(*where))
    (there / "new").rename(there / f"answer{number}")
"""
)
# argv: ADDRESS PORT. Answers whoever comes.
SERVE = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("on", flush=True)
while True:
    listener.accept()[0].sendall(b"somebody else")
"""
OWN = """
import socket, threading
listener = socket.create_server(("127.0.0.1", 5555))
threading.Thread(target=lambda: listener.accept()[0].sendall(b"mine")).start()
print(socket.create_connection(("127.0.0.1", 5555)).recv(10).decode())
"""
_names = itertools.count(1)


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab(delegated=("198.18.7.0/24", "2001:db8:7::/112")) as made:
        made.agent(CONFIG + ROUTED)
        yield made


def wants(want: str) -> Mapping[str, AdValue]:
    return {"Want": want} if want else {}


def start(
    lab: Lab,
    *where: str,
    want: str = "",
    listen: tuple[str, ...] = (LOOPBACK,),
    user: str = "alice",
) -> JobHandle:
    """Start a job that asks its own starter and at each ADDRESS,PORT."""
    return lab.start_job(python(ONCE, *where), user=user, ad=wants(want), listen=listen)


def answers(job: JobHandle) -> dict[str, str]:
    """Return what answered, by whom it was asked."""
    done = job.result()
    assert done.status == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def told(job: JobHandle) -> str:
    """Return what the job's starter says to a job that it sees on its own loopback."""
    return f"{job.job_id.partition('#')[2].partition('.')[0]} {LOOPBACK} "


class Asker:
    """A running job that asks whenever it is told to."""

    def __init__(
        self, lab: Lab, want: str = "", *, listen: tuple[str, ...] = (LOOPBACK,),
        scheduler: Scheduler = "htcondor",
    ) -> None:  # fmt: skip
        inside = f"/run/lab/home/alice/chirper{next(_names)}"
        self._there = lab.path(inside)
        self._there.mkdir()
        self._there.chmod(0o777)
        self._turns = itertools.count(1)
        self.job = lab.start_job(
            python(IN_TURNS, inside), ad=wants(want), listen=listen, scheduler=scheduler
        )
        until((self._there / "ready").exists, "a job that starts")
        self.port = self.job.listening[0][1]

    def ask(self, address: str = LOOPBACK, port: int = 0) -> str:
        """Return what it is told there; by default at its own starter's port."""
        number = next(self._turns)
        (self._there / "to").write_text(f"{address},{port or self.port}")
        (self._there / "to").rename(self._there / f"ask{number}")
        answer = self._there / f"answer{number}"
        until(answer.exists, "an answer")
        return answer.read_text()

    def end(self) -> None:
        """Let it end."""
        (self._there / "end").touch()


@pytest.mark.parametrize("want", ["", "alone", "public", "only6", "together"])
def test_a_job_reaches_its_own_starter(world: Lab, want: str) -> None:
    """At the port and address it was told, on every kind; the starter sees a local client."""
    job = start(world, want=want)
    assert answers(job) == {"chirp": told(job)}
    usage = final(world, job.job_id).usage
    assert {share.traffic_class for share in usage.classes} == {WORKER_CLASS}
    assert usage.dropped == Count()


def test_without_ipv4_too() -> None:
    """Where addresses are IPv6 alone, the starter is on 127.0.0.1 too; IPv4 goes no further."""
    with Lab(delegated=("2001:db8:7::/112",)) as lab:
        lab.agent(CONFIG + ROUTED6)
        job = start(lab, f"{CAMPUS.ipv4},7", f"{WORKER.ipv4},22", want="public")
        assert answers(job) == {"chirp": told(job)}
        record = final(lab, job.job_id)
        assert (record.connectivity, record.ipv4) == (Connectivity.ROUTED, "")
        assert {share.traffic_class for share in record.usage.classes} == {WORKER_CLASS}


def test_with_no_network_only_that_port_is_there(world: Lab) -> None:
    """`none`: the starter's port by the loopback, and nothing else anywhere; its bytes count."""
    others = [f"{LOOPBACK},22", f"{GATEWAY},53", f"{WORKER.ipv4},53", f"{CAMPUS.ipv4},7",
              f"{CAMPUS.ipv6},7"]  # fmt: skip
    job = start(world, *others, want="alone")
    assert answers(job) == {"chirp": told(job)}
    record = final(world, job.job_id)
    assert record.connectivity == Connectivity.NONE
    assert set(drops(record)) == {"service-denied", "class-denied"}
    (share,) = record.usage.classes
    assert share.traffic_class == WORKER_CLASS
    names = world.job(["getent", "ahosts", "server.campus.test"], ad=wants("alone"))
    assert names.status != 0


def test_bulk_counts(world: Lab) -> None:
    """What chirp moves is the job's, to the byte of its payload and with its headers."""
    job = world.start_job(python(BULK), listen=[LOOPBACK])
    done = job.result()
    assert done.stdout == f"{30_000_000 + len(told(job))}\n", done.stderr
    usage = final(world, job.job_id).usage
    assert usage.dropped == Count()
    assert 30_000_000 < usage.received.bytes < 1.1 * 30_000_000


def test_a_listener_on_all_addresses_is_not_one_of_the_loopback(world: Lab) -> None:
    """Of two listeners of a starter, only the one on the loopback appears."""
    asker = Asker(world, listen=("0.0.0.0", LOOPBACK))
    (_, everywhere), (_, port) = asker.job.listening
    for address in (LOOPBACK, GATEWAY, WORKER.ipv4):
        assert asker.ask(address, everywhere) == ""
    assert asker.ask(port=port) == told(asker.job)
    asker.end()


def test_several_listeners(world: Lab) -> None:
    """All that a starter has on the loopback."""
    asker = Asker(world, listen=(LOOPBACK, LOOPBACK))
    ports = {port for _, port in asker.job.listening}
    assert len(ports) == 2
    assert {asker.ask(port=port) for port in ports} == {told(asker.job)}
    asker.end()


def test_another_job_does_not_reach_it(world: Lab) -> None:
    """Of the same owner or of another, by the loopback or the gateway or the worker's address."""
    with_chirp = Asker(world, "together")
    assert with_chirp.ask() == told(with_chirp.job)
    places = (LOOPBACK, GATEWAY, WORKER.ipv4, "::1", "fd6c:6172:6b00::1")
    knock = [f"{address},{with_chirp.port}" for address in places]
    for user in ("alice", "bob"):
        for want in ("", "alone", "together"):
            job = start(world, *knock, user=user, want=want)
            assert answers(job) == {"chirp": told(job)}
            assert set(drops(final(world, job.job_id))) == {"service-denied"}
    with_chirp.end()


def test_it_is_there_by_one_address_alone(world: Lab) -> None:
    """A program that has the number on another address of the worker is not reached."""
    asker = Asker(world)
    server = world.start(python(SERVE, WORKER.ipv4, str(asker.port)))
    until(lambda: "on" in server.stdout, f"a server: {server.stderr}")
    assert asker.ask(WORKER.ipv4) == ""
    assert asker.ask() == told(asker.job)
    server.signal(9)
    server.wait()
    asker.end()


def test_other_ports_of_the_loopback_are_the_jobs(world: Lab) -> None:
    """What a job listens on itself is its own, and not counted."""
    job = world.start_job(python(OWN), listen=[LOOPBACK])
    assert job.result().stdout == "mine\n"
    assert final(world, job.job_id).usage.sent == Count()


def test_a_starter_that_listens_after_it_has_announced_the_job(world: Lab) -> None:
    """The sandbox is ready before the starter listens; the job that comes then reaches it."""
    prepare = f"{WRAPPERS}/lark-prepare"
    job = world.start_job(python(ONCE), listen=[LOOPBACK], hook=prepare)
    assert answers(job) == {"chirp": told(job)}


@pytest.mark.parametrize("scheduler", ["plain", "slurm"])
def test_only_condors_starter_has_a_say(world: Lab, scheduler: Scheduler) -> None:
    """At a prompt, and under another batch system, nobody listens for the job."""
    asker = Asker(world, scheduler=scheduler)
    assert asker.ask() == ""
    asker.end()


def test_it_survives_the_agent_and_the_firewall(lab: Lab) -> None:
    """Agent gone, back with other services, ruleset flushed: the running job has its port."""
    agent = lab.agent(CONFIG + ROUTED6)
    askers = [Asker(lab), Asker(lab, "alone")]

    def all_reached() -> bool:
        return all(asker.ask() == told(asker.job) for asker in askers)

    assert all_reached()
    kill(agent)
    assert all_reached()
    agent = lab.agent(
        CONFIG + ROUTED6 + '[services]\nlicense = { port = "tcp/27000", loopback = true }\n'
    )
    assert all_reached()
    lab.run(["nft", "flush", "ruleset"])
    until(lambda: "the nftables table lark was removed" in agent.stderr, "a word in the log")
    assert all_reached()
    stranger = Asker(lab)
    for asker in askers:
        assert stranger.ask(port=asker.port) == ""
    for asker in (*askers, stranger):
        asker.end()
        assert asker.job.result().status == 0


@pytest.mark.parametrize("present", [True, False], ids=["agent", "no-agent"])
def test_it_goes_with_the_starter(lab: Lab, present: bool) -> None:
    """A starter that dies leaves its number to anybody, so its job loses it."""
    agent = lab.agent(CONFIG + ROUTED6)
    asker = Asker(lab)
    assert asker.ask() == told(asker.job)
    if not present:
        kill(agent)
    asker.job.starter.signal(9)
    asker.job.starter.wait()
    if not present:
        agent = lab.agent(CONFIG + ROUTED6)
    until(lambda: "the launcher has ended" in agent.stderr, "a word in the log")
    server = lab.start(python(SERVE, LOOPBACK, str(asker.port)))
    until(lambda: "on" in server.stdout, f"a server: {server.stderr}")
    assert asker.ask() == asker.ask(GATEWAY) == ""
    asker.end()
