"""What of the worker itself a job reaches: the services that the site lists, and nothing else.

The worker runs a server on each of a few ports, on all of its addresses and on its loopback; jobs
knock, and say which answered, and from whom the server saw them come.
"""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import WORKER_CLASS, Connectivity, Count
from tests.agent.worker import QUICK, drops, final, kill, python, until, wanted
from tests.lab.filesystem import STATE
from tests.lab.topology import CAMPUS, WORKER
from tests.lab.world import PROGRAMS, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lark_agent.model import Record
    from tests.lab.jobs import AdValue
    from tests.lab.process import Process

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
GATEWAYS = ("100.98.0.1", "fd6c:6172:6b00::1")
SERVICES = """
[services]
proxy = { port = "tcp/3128" }
time = { port = "udp/3123" }
license = { port = "tcp/27000", loopback = true }
tally = { port = "udp/27001", loopback = true }
"""
CONFIG = (
    QUICK.replace("slots = 4", "slots = 8")
    + SERVICES
    + '[addresses]\nrouted4 = "198.18.7.0/24"\nrouted6 = "2001:db8:7::/112"\n'
    + wanted(
        {
            "proxy-only": 'services = ["proxy"]',
            "nothing-of-it": "services = []",
            "no-network": 'connectivity = "none"\nservices = ["license", "proxy"]',
            "slow": 'connectivity = "none"\nservices = ["license"]\nrate = "8 Mbit/s"',
            "public": 'connectivity = "routed"',
        }
    )
)
# argv: ADDRESS,PROTOCOL,PORT. Tells whoever asks where it sees them come from.
SERVE = """
import select, socket, sys
socks = []
for where in sys.argv[1:]:
    address, protocol, port = where.split(",")
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, int(port)))
    if protocol == "tcp":
        sock.listen(64)
    socks.append(sock)
print("on", flush=True)
while True:
    for sock in select.select(socks, [], [])[0]:
        if sock.type == socket.SOCK_DGRAM:
            data, origin = sock.recvfrom(65536)
            sock.sendto(origin[0].encode() + bytes(len(data)), origin)
        else:
            stream, origin = sock.accept()
            with stream:
                size = int(stream.makefile("rb").readline())
                stream.sendall(origin[0].encode() + b" " + bytes(size))
"""
# argv: ADDRESS,PROTOCOL,PORT. Prints each that answers, and whom the server saw.
ASK = """
import socket, sys
for where in sys.argv[1:]:
    address, protocol, port = where.split(",")
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        sock.settimeout(1)
        try:
            sock.connect((address, int(port)))
            sock.send(b"10\\n")
            answer = sock.recv(100)
        except OSError:
            continue
        print(where, answer.strip(bytes(1) + b" ").decode())
"""
BULK = """
import socket
with socket.create_connection(("127.0.0.1", 27000)) as sock:
    sock.sendall(b" " * 30_000_000 + b"30000000\\n")
    total = 0
    while data := sock.recv(1 << 20):
        total += len(data)
print(total)
"""
OWN = """
import socket, threading
listener = socket.create_server(("127.0.0.1", 5555))
def serve():
    stream, _ = listener.accept()
    stream.sendall(b"mine")
    stream.close()
threading.Thread(target=serve).start()
print(socket.create_connection(("127.0.0.1", 5555)).recv(10).decode())
"""
ASK_IN_TURNS = (
    f"code = {ASK!r}"
    """
import itertools, pathlib, subprocess, sys, time
there = pathlib.Path(sys.argv[1])
(there / "ready").touch()
for number in itertools.count(1):
    while not (there / f"ask{number}").exists():
        if (there / "end").exists():
            raise SystemExit(0)
        time.sleep(0.02)
    where = (there / f"ask{number}").read_text().split()
    command = [sys.executable, "-I", "-S", "-c", code, *where]
    (there / "new answers").write_bytes(subprocess.run(command, capture_output=True).stdout)
    (there / "new answers").rename(there / f"answers{number}")
"""
)
LISTENERS = [
    "::,tcp,3128",
    "::,tcp,22",
    "::,udp,3123",
    "::,udp,3124",
    "127.0.0.1,tcp,27000", "127.0.0.1,udp,27001", "127.0.0.1,tcp,27002",
]  # fmt: skip
_names = itertools.count(1)
ADDRESSES = (*GATEWAYS, WORKER.ipv4, WORKER.ipv6)


def listeners(lab: Lab) -> Process:
    """Start the worker's servers."""
    server = lab.start(python(SERVE, *LISTENERS))
    until(lambda: "on" in server.stdout, f"servers: {server.stderr}")
    return server


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab(delegated=("198.18.7.0/24", "2001:db8:7::/112")) as made:
        listeners(made)
        made.agent(CONFIG)
        yield made


def ask(lab: Lab, *where: str, want: str = "") -> tuple[dict[str, str], Record]:
    """Have a job ask; returns who was seen by each that answered, and the job's record."""
    ad: Mapping[str, AdValue] = {"Want": want} if want else {}
    job = lab.start_job(python(ASK, *where), ad=ad)
    done = job.result()
    assert done.status == 0, done.stderr
    return dict(line.split(" ") for line in done.stdout.splitlines()), final(lab, job.job_id)


def on(addresses: tuple[str, ...], *ports: str) -> list[str]:
    """Return ADDRESS,PROTOCOL,PORT of each."""
    return [f"{address},{port}" for address in addresses for port in ports]


def test_listed_services_and_nothing_else(world: Lab) -> None:
    """Whatever address of the worker, either family; what is refused is told as service-denied."""
    # a program that is bound to no address answers a datagram from the link's: the gateway
    listed = [*on(ADDRESSES, "tcp,3128"), *on(GATEWAYS, "udp,3123")]
    others = on(ADDRESSES, "tcp,22", "udp,3124")
    answered, record = ask(world, *listed, *others)
    assert set(answered) == set(listed)
    assert drops(record)["service-denied"] >= len(others)
    assert set(drops(record)) == {"service-denied"}
    (share,) = record.usage.classes
    assert share.traffic_class == WORKER_CLASS


def test_the_wrong_protocol_is_another_service(world: Lab) -> None:
    """tcp/3123 is not udp/3123, nor the other way round."""
    answered, record = ask(world, *on(GATEWAYS, "udp,3128", "tcp,3123"))
    assert answered == {}
    assert drops(record)["service-denied"] >= 4


def test_a_plan_may_allow_fewer(world: Lab) -> None:
    """One of the listed, or none; names are resolved in any case."""
    where = on(GATEWAYS, "tcp,3128", "udp,3123")
    answered, _ = ask(world, *where, want="proxy-only")
    assert set(answered) == set(on(GATEWAYS, "tcp,3128"))
    answered, record = ask(world, *where, want="nothing-of-it")
    assert answered == {}
    assert record.usage.sent == Count()


def test_ping_is_no_service(world: Lab) -> None:
    """The worker does not answer pings of its jobs; the world beyond it does."""
    for address, status in (*((a, 1) for a in ADDRESSES), (CAMPUS.ipv4, 0), (CAMPUS.ipv6, 0)):
        assert world.job(["ping", "-qc1", "-W1", address]).status == status


@pytest.mark.parametrize("want", ["", "public"])
def test_services_of_the_loopback_are_on_the_jobs_loopback(world: Lab, want: str) -> None:
    """TCP and UDP at the same port, and the service takes the job for a local client."""
    where = ["127.0.0.1,tcp,27000", "127.0.0.1,udp,27001", "127.0.0.1,tcp,27002"]
    answered, record = ask(world, *where, want=want)
    assert answered == dict.fromkeys(where[:2], "127.0.0.1")
    assert record.usage.dropped == Count()
    assert {share.traffic_class for share in record.usage.classes} == {WORKER_CLASS}


def test_nothing_else_of_the_loopback(world: Lab) -> None:
    """A port of the loopback that is not listed cannot be had by the gateway's address either."""
    answered, _ = ask(world, *on(ADDRESSES, "tcp,27002"), "127.0.0.1,tcp,3128")
    assert answered == {}


def test_bulk_over_the_loopback_fits_the_path(world: Lab) -> None:
    """Segments are cut to the link's MTU, though both ends believe in their own loopback."""
    job = world.start_job(python(BULK))
    done = job.result()
    assert done.stdout == "30000010\n", done.stderr
    usage = final(world, job.job_id).usage
    assert usage.dropped == Count()
    for count in (usage.sent, usage.received):
        assert count.bytes > 30_000_000
        assert 700 < count.bytes / count.packets <= 1500  # the other way, there are bare ACKs


def test_a_jobs_own_loopback_is_its_own(world: Lab) -> None:
    """A port that is no service serves the job itself, and is not counted."""
    job = world.start_job(python(OWN))
    assert job.result().stdout == "mine\n"
    assert final(world, job.job_id).usage.sent == Count()


def test_services_without_a_network(world: Lab) -> None:
    """`none` with services: those, and neither other services, nor names, nor anybody else."""
    wanted = ["127.0.0.1,tcp,27000", *on(GATEWAYS, "tcp,3128")]
    others = ["127.0.0.1,udp,27001", *on(GATEWAYS, "udp,3123"), *on((CAMPUS.ipv4,), "tcp,7")]
    answered, record = ask(world, *wanted, *others, want="no-network")
    assert set(answered) == set(wanted)
    assert record.connectivity == Connectivity.NONE
    assert set(drops(record)) == {"service-denied", "class-denied"}
    names = world.job(["getent", "ahosts", "server.campus.test"], ad={"Want": "no-network"})
    assert names.status != 0


def test_a_rate_holds_for_a_job_with_nothing_but_services(world: Lab) -> None:
    """Two megabytes at 8 Mbit/s take two seconds, though the worker itself serves them."""
    job = world.start_job(python(BULK.replace("30000000", "2000000")), ad={"Want": "slow"})
    done = job.result()
    assert done.status == 0, done.stderr
    assert done.seconds > 1.5
    assert final(world, job.job_id).usage.received.bytes > 2_000_000


class Asker:
    """A running job that asks whenever it is told to."""

    def __init__(self, lab: Lab, want: str = "") -> None:
        inside = f"/run/lab/home/alice/asker{next(_names)}"
        self._there = lab.path(inside)
        self._there.mkdir()
        self._there.chmod(0o777)
        self._turns = itertools.count(1)
        ad: Mapping[str, AdValue] = {"Want": want} if want else {}
        self.job = lab.start_job(python(ASK_IN_TURNS, inside), ad=ad)
        until((self._there / "ready").exists, "a job that starts")

    def ask(self, *where: str) -> set[str]:
        """Return what answers."""
        number = next(self._turns)
        (self._there / "new").write_text(" ".join(where))
        (self._there / "new").rename(self._there / f"ask{number}")
        answers = self._there / f"answers{number}"
        until(answers.exists, "answers")
        return {line.split()[0] for line in answers.read_text().splitlines()}

    def end(self) -> None:
        """Let it end."""
        (self._there / "end").touch()
        assert self.job.result().status == 0


def test_services_survive_the_agent_and_the_firewall(lab: Lab) -> None:
    """Agent gone and back, ruleset flushed: a running job has its services and no others."""
    listeners(lab)
    agent = lab.agent(CONFIG)
    asker = Asker(lab, "no-network")
    allowed = {"127.0.0.1,tcp,27000", "100.98.0.1,tcp,3128"}
    where = [*allowed, "127.0.0.1,udp,27001", f"{CAMPUS.ipv4},tcp,7"]
    assert asker.ask(*where) == allowed
    kill(agent)
    assert asker.ask(*where) == allowed
    agent = lab.agent(CONFIG)
    assert asker.ask(*where) == allowed
    lab.run(["nft", "flush", "ruleset"])
    until(lambda: "the nftables table lark was removed" in agent.stderr, "a word in the log")
    assert asker.ask(*where) == allowed
    asker.end()
    record = final(lab, asker.job.job_id)
    assert record.connectivity == Connectivity.NONE
    assert record.usage.sent.packets > 0 == record.usage.non_ip_sent.packets
    assert set(drops(record)) == {"service-denied", "class-denied"}


def test_a_reload_lists_and_unlists_services(lab: Lab) -> None:
    """Running jobs whose plan names none by name follow the list, on the loopback too."""
    listeners(lab)
    file = STATE / "agent.toml"
    lab.path(file).write_text(CONFIG)
    agent = lab.service([str(PROGRAMS / "lark-agent"), "run", "--config", str(file)])
    everything, one = Asker(lab), Asker(lab, "proxy-only")
    before = {"127.0.0.1,tcp,27000", "100.98.0.1,tcp,3128", "100.98.0.1,udp,3123"}
    added = {"127.0.0.1,tcp,27002", "100.98.0.1,tcp,22"}
    assert everything.ask(*before, *added) == before

    def reload(services: str) -> None:
        lab.path(file).write_text(CONFIG.replace(SERVICES, services))
        times = agent.stderr.count("reloaded")
        agent.signal(signal.SIGHUP)
        until(lambda: agent.stderr.count("reloaded") > times, f"a reload: {agent.stderr}")

    more = SERVICES + 'a = { port = "tcp/22" }\nb = { port = "tcp/27002", loopback = true }\n'
    reload(more)
    assert everything.ask(*before, *added) == before | added
    reload(more.replace("tcp/27000", "tcp/27009"))
    gone = {"127.0.0.1,tcp,27000"}
    assert everything.ask(*before, *added) == before - gone | added
    later = Asker(lab)
    assert later.ask(*before, *added) == before - gone | added
    assert one.ask(*before, *added) == {"100.98.0.1,tcp,3128"}
    for asker in (everything, one, later):
        asker.end()


def test_the_firewall_keeps_what_the_datapath_cannot_know(lab: Lab) -> None:
    """An address that comes while no agent runs gives jobs the listed services and no others."""
    listeners(lab)
    agent = lab.agent(CONFIG)
    asker = Asker(lab)
    kill(agent)
    lab.run(["ip", "address", "add", "192.0.2.77/24", "dev", "uplink0"])
    assert asker.ask("192.0.2.77,tcp,22", "192.0.2.77,tcp,3128") == {"192.0.2.77,tcp,3128"}
    lab.agent(CONFIG)
    asker.end()


def known(agent: Process, addresses: tuple[str, ...], what: str) -> None:
    """Wait until the agent says so of each address."""

    def said() -> bool:
        lines = [line for line in agent.stderr.splitlines() if what in line]
        return all(any(f"{address}/" in line for line in lines) for address in addresses)

    until(said, f"addresses: {what}", 10)


def test_an_address_that_comes_is_the_worker(lab: Lab) -> None:
    """What was a place of the world is the worker itself a moment later, and back again."""
    listeners(lab)
    agent = lab.agent(CONFIG)
    asker = Asker(lab)
    moving = ("192.0.2.77", "2001:db8:1::77")
    for address in moving:
        size = "64" if ":" in address else "24"
        command = ["ip", "address", "add", f"{address}/{size}", "dev", "uplink0"]
        lab.run([*command, "nodad"] if ":" in address else command)
    known(agent, moving, "is the worker's now")
    assert asker.ask(*on(moving, "tcp,22", "tcp,3128")) == set(on(moving, "tcp,3128"))
    for address in moving:
        size = "64" if ":" in address else "24"
        lab.run(["ip", "address", "delete", f"{address}/{size}", "dev", "uplink0"])
    known(agent, moving, "is the worker's no more")
    assert asker.ask(*on(moving, "tcp,3128")) == set()
    asker.end()
    record = final(lab, asker.job.job_id)
    assert set(drops(record)) == {"service-denied"}
    shares = {share.traffic_class: share for share in record.usage.classes}
    assert shares[WORKER_CLASS].received.packets > 0
    # only what was sent after they had gone, and nobody answered
    assert shares["other"].received == Count()
