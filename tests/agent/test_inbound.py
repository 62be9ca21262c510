"""What comes in to jobs from outside: nothing, answers, listed ports, or everything.

One agent serves most of these tests; a job's ad says what it lets in. The job listens on every port
that matters and says who came; the campus knocks.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import Count
from tests.agent.worker import QUICK, drops, final, kill, python, until
from tests.lab.capture import Capture, flows
from tests.lab.topology import CAMPUS, WORKER
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lark_agent.model import Record
    from tests.lab.jobs import AdValue, JobHandle

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
PREFIXES = ("198.18.7.0/24", "2001:db8:7::/112")
INBOUND = "".join(
    f"""
[profiles.{kind}-{inbound}]
connectivity = "{kind}"
inbound = "{inbound}"
{'ports = ["tcp/8000", "udp/8000", "tcp/8443"]' if inbound == "ports" else ""}
[[rules]]
when = 'Want == "{kind}-{inbound}"'
profile = "{kind}-{inbound}"
"""
    for kind in ("nat", "routed")
    for inbound in ("none", "established", "ports", "all")
)
CONFIG = (
    QUICK.replace("slots = 4", "slots = 8")
    + f'[addresses]\nrouted4 = "{PREFIXES[0]}"\nrouted6 = "{PREFIXES[1]}"\n'
    + INBOUND
)
# Echoes streams and datagrams on the ports given, or on the first and last of its block ("block"),
# and says "tcp PORT FAMILY" for each; ends when told.
SERVE = """
import pathlib, select, socket, subprocess, sys
there, *ports = sys.argv[1:]
there = pathlib.Path(there)
first, last = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
ports = [int(first), int(last)] if ports == ["block"] else [int(port) for port in ports]
socks = {}
for port in ports:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        socks[sock] = "tcp" if kind == socket.SOCK_STREAM else "udp"
show = ["ip", "-o", "address", "show", "dev", "eth0"]
print(*ports, flush=True)
print(subprocess.run(show, capture_output=True, text=True).stdout, flush=True)
(there / "ready").touch()
while not (there / "end").exists():
    for sock in select.select(list(socks), [], [], 0.02)[0]:
        if socks[sock] == "udp":
            data, origin = sock.recvfrom(65536)
            sock.sendto(data, origin)
        else:
            stream, origin = sock.accept()
            while data := stream.recv(1 << 20):
                stream.sendall(data)
            stream.close()
        family = "ipv4" if origin[0].startswith("::ffff:") else "ipv6"
        print(socks[sock], sock.getsockname()[1], family, flush=True)
"""
# Has words echoed by each ADDRESS,PORT and says which did: "tcp PORT FAMILY".
KNOCK = """
import socket, sys
for target in sys.argv[1:]:
    address, port = target.split(",")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for name, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)):
        with socket.socket(family, kind) as sock:
            sock.settimeout(1)
            try:
                sock.connect((address, int(port)))
                sock.send(b"hello")
                assert sock.recv(100) == b"hello"
                print(name, port, "ipv6" if ":" in address else "ipv4")
            except OSError:
                pass
"""
# Has a word echoed again and again over one connection to ADDRESS PORT, and says how it went.
CONVERSE = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as sock:
    sock.settimeout(1)
    while True:
        try:
            sock.send(b"x")
            print("echo" if sock.recv(1) else "end", flush=True)
        except OSError:
            print("silence", flush=True)
        time.sleep(0.02)
"""
_names = itertools.count(1)


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab(delegated=PREFIXES) as made:
        made.agent(CONFIG)
        yield made


class Server:
    """A job that listens."""

    def __init__(self, lab: Lab, want: str, *ports: int | str) -> None:
        inside = f"/run/lab/home/bob/inbound{next(_names)}"
        self.lab, self._there = lab, lab.path(inside)
        self._there.mkdir()
        self._there.chmod(0o777)
        ad: Mapping[str, AdValue] = {"Want": want}
        command = python(SERVE, inside, *map(str, ports))
        self.job: JobHandle = lab.start_job(command, user="bob", ad=ad)
        until((self._there / "ready").exists, f"a job that listens: {self.job.starter.stderr}")
        first, *lines = self.job.starter.stdout.splitlines()
        self.ports = [int(word) for word in first.split()]
        words = " ".join(lines).split()
        self.own = [
            words[n + 1].partition("/")[0] for n, w in enumerate(words) if w in {"inet", "inet6"}
        ]
        self.seen = self.own if want.startswith("routed") else [WORKER.ipv4, WORKER.ipv6]
        """Where the far side reaches it."""

    def knock(self, *ports: int, host: str = "campus", at: list[str] | None = None) -> set[str]:
        """Knock at ports of its addresses; returns "PROTOCOL PORT FAMILY" of what was answered."""
        targets = [f"{address},{port}" for address in at or self.seen for port in ports]
        return set(self.lab.run(python(KNOCK, *targets), host=host).stdout.splitlines())

    def end(self) -> Record:
        (self._there / "end").touch()
        assert self.job.result().status == 0
        record = final(self.lab, self.job.job_id)
        closed(self.lab, *self.own)
        return record


def closed(lab: Lab, *addresses: str) -> None:
    """Wait until nothing is open to jobs with these addresses: just after the final record."""
    command = ["nft", "list", "table", "inet", "lark"]

    def elements() -> list[str]:
        lines = lab.run(command).stdout.replace(",", "\n").splitlines()
        found = [line for line in lines if " : " in line or " . " in line]
        return [line for line in found if set(line.split()) & set(addresses) and "goto" not in line]

    until(lambda: not elements(), f"openings to {addresses}")


def both(*answers: str) -> set[str]:
    """Return answers ("tcp 8000") of both families."""
    return {f"{answer} {family}" for answer in answers for family in ("ipv4", "ipv6")}


LISTED = both("tcp 8000", "udp 8000", "tcp 8443")


@pytest.mark.parametrize("kind", ["nat", "routed"])
def test_listed_ports_are_open_and_no_others(world: Lab, kind: str, tmp_path: Path) -> None:
    """Both families, by protocol and port; what comes in and what answers it counts to the byte."""
    with Capture("eth0", tmp_path / "campus.pcap", world.netns("campus")) as capture:
        server = Server(world, f"{kind}-ports", 8000, 8443, 9000)
        assert server.knock(8000, 8443, 9000) == LISTED
        record = server.end()
    assert server.knock(8000) == set()
    campus = {CAMPUS.ipv4, CAMPUS.ipv6}
    packets = [p for p in flows(capture.path) if {p.sport, p.dport} & {8000, 8443}]
    opened = [p for p in packets if (p.proto, 8443) not in {(17, p.sport), (17, p.dport)}]
    sent = [p for p in opened if p.dst in campus and p.proto in {6, 17}]
    received = [p for p in opened if p.src in campus and p.proto in {6, 17}]
    assert record.usage.sent == Count(len(sent), sum(p.ip_len for p in sent))
    assert record.usage.received == Count(len(received), sum(p.ip_len for p in received))
    assert record.usage.dropped == Count()


def test_all_of_a_routed_job_is_open(world: Lab) -> None:
    """Any port of its own address, and ping."""
    server = Server(world, "routed-all", 1024, 65535)
    assert server.knock(1024, 65535) == both("tcp 1024", "udp 1024", "tcp 65535", "udp 65535")
    for address in server.own:
        world.run(["ping", "-c1", "-W2", address], host="campus")
    server.end()


def test_all_of_a_nat_job_is_its_port_block(world: Lab) -> None:
    """First and last port of the block, which the job reads from its ephemeral range."""
    server, other = Server(world, "nat-all", "block"), Server(world, "nat-all", "block")
    for each in (server, other):
        ports = each.ports
        wanted = {f"{p} {n} {f}" for p in ("tcp", "udp") for n in ports for f in ("ipv4", "ipv6")}
        assert each.knock(*ports) == wanted
    assert set(server.ports).isdisjoint(other.ports)
    # by its private address, which a neighbour may have routed here, it is as closed as ever
    world.run(["ip", "route", "replace", server.own[0], "via", WORKER.ipv4], host="router")
    assert server.knock(*server.ports, at=server.own[:1]) == set()
    world.run(["ip", "route", "delete", server.own[0]], host="router")
    for each in (server, other):
        record = each.end()
        assert each.ports == [record.first_port, record.last_port]
        assert each.knock(*each.ports) == set()


@pytest.mark.parametrize("kind", ["nat", "routed"])
def test_without_a_word_only_answers_come_in(world: Lab, kind: str) -> None:
    """`established`, the default: nothing is open, and nothing counts."""
    server = Server(world, f"{kind}-established", 8000)
    assert server.knock(8000) == set()
    assert server.end().usage.received == Count()


@pytest.mark.parametrize("kind", ["nat", "routed"])
def test_with_none_not_even_answers_come_in(world: Lab, kind: str) -> None:
    """What the job sends arrives, and the answers are dropped at its link as inbound-denied."""
    ask = python(KNOCK, f"{CAMPUS.ipv4},7", f"{CAMPUS.ipv6},7")
    job = world.start_job(ask, ad={"Want": f"{kind}-none"})
    assert job.result().stdout == ""
    record = final(world, job.job_id)
    assert record.usage.received == Count()
    assert record.usage.sent.packets >= 4
    assert set(drops(record)) == {"inbound-denied"}


@pytest.mark.parametrize("kind", ["nat", "routed"])
@pytest.mark.parametrize(
    ("inbound", "answered"),
    [
        ("none", set()),
        ("established", set()),
        ("ports", LISTED),
        ("all", LISTED | both("udp 8443", "tcp 9000", "udp 9000")),
    ],
)
def test_programs_of_the_worker_are_outside_as_well(
    world: Lab, kind: str, inbound: str, answered: set[str]
) -> None:
    """The same ports are open to them and no others, at the job's own address; both ways count."""
    server = Server(world, f"{kind}-{inbound}", 8000, 8443, 9000)
    assert server.knock(8000, 8443, 9000, host="worker", at=server.own) == answered
    record = server.end()
    by_class = {share.traffic_class: share for share in record.usage.classes}
    assert by_class.keys() == ({"worker"} if answered else set())
    assert set(drops(record)) == ({"inbound-denied"} if inbound != "all" else set())
    if answered:
        assert by_class["worker"].received.packets >= len(answered)
        assert by_class["worker"].sent.packets >= len(answered)


def test_a_port_that_a_program_of_the_worker_has_is_refused(world: Lab) -> None:
    """The program keeps it; the job is told which port, and goes when the port is free."""
    taken = world.start(
        python(
            "import socket, time; s = socket.create_server(('127.0.0.1', 8443)); "
            "print('on', flush=True); time.sleep(60)"
        )
    )
    until(lambda: "on" in taken.stdout, "a program that listens")
    refused = world.job(["true"], ad={"Want": "nat-ports"})
    assert refused.status != 0
    assert "tcp/8443" in refused.stderr + refused.wrapper_error
    taken.signal(9)
    taken.wait()
    Server(world, "nat-ports", 8443).end()


def test_two_jobs_do_not_have_the_same_port_of_the_worker(world: Lab) -> None:
    """The second is refused while the first runs; routed ones have addresses of their own."""
    first = Server(world, "nat-ports", 8000)
    refused = world.job(["true"], ad={"Want": "nat-ports"})
    assert refused.status != 0
    assert "8000" in refused.stderr + refused.wrapper_error
    routed = [Server(world, "routed-ports", 8000) for _ in range(2)]
    for server in routed:
        assert server.knock(8000) == both("tcp 8000", "udp 8000")
    for server in (first, *routed):
        server.end()


def test_what_is_open_survives_the_agent_and_the_firewall(lab_of_routed: Lab) -> None:
    """Agent gone, agent back, ruleset flushed: the same ports are open, and no others."""
    lab = lab_of_routed
    agent = lab.agent(CONFIG)
    servers = {
        Server(lab, "nat-ports", 8000, 8443, 9000): LISTED,
        Server(lab, "routed-ports", 8000, 8443, 9000): LISTED,
        Server(lab, "routed-all", 8000): both("tcp 8000", "udp 8000"),
    }

    def check() -> None:
        for server, answers in servers.items():
            assert server.knock(*server.ports) == answers

    check()
    kill(agent)
    check()
    agent = lab.agent(CONFIG)
    check()
    lab.run(["nft", "flush", "ruleset"])
    until(lambda: "the nftables table lark was removed" in agent.stderr, "a word in the log")
    check()
    refused = lab.job(["true"], ad={"Want": "nat-ports"})
    assert "8000" in refused.stderr + refused.wrapper_error
    for server in servers:
        server.end()


def test_a_running_job_is_opened_and_closed(world: Lab) -> None:
    """`lark job ID set inbound=…` holds at once, for what begins then."""
    server = Server(world, "nat-established", 8000, 9000)

    def put(*settings: str) -> None:
        world.run(["lark", "job", server.job.job_id, "set", *settings])

    put("inbound=ports", "ports=tcp/8000")
    assert server.knock(8000, 9000) == both("tcp 8000")
    put("ports=tcp/9000")
    assert server.knock(8000, 9000) == both("tcp 9000")
    put("cut=yes")
    assert server.knock(8000, 9000) == set()
    put("cut=no")
    assert server.knock(8000, 9000) == both("tcp 9000")
    put("inbound=established")
    assert server.knock(8000, 9000) == set()
    server.end()


@pytest.mark.parametrize("family", [0, 1])
@pytest.mark.parametrize("kind", ["nat", "routed"])
def test_a_connection_goes_on_until_nothing_may_come_in(world: Lab, kind: str, family: int) -> None:
    """It outlives changes to what may begin, also to its own port, and ends with `none`."""
    server = Server(world, f"{kind}-established", 9000)

    def put(*settings: str) -> None:
        world.run(["lark", "job", server.job.job_id, "set", *settings])

    put("inbound=ports", "ports=tcp/9000")
    talk = world.start(python(CONVERSE, server.seen[family], "9000"), host="campus")
    until(lambda: "echo" in talk.stdout, "a conversation")
    put("ports=tcp/9001")
    heard = talk.stdout.count("echo")
    until(lambda: talk.stdout.count("echo") > heard + 5, "more of it")
    assert "silence" not in talk.stdout
    put("inbound=none")
    until(lambda: talk.stdout.endswith("silence\n"), "silence", 15)
    talk.signal(9)
    server.job.kill(9)
    final(world, server.job.job_id)
    closed(world, *server.own)


@pytest.fixture
def lab_of_routed() -> Iterator[Lab]:
    with Lab(delegated=PREFIXES) as made:
        yield made
