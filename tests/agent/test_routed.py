"""Connectivity `routed`: jobs have addresses of their own, and stay as closed as ever."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import Connectivity, Count, ExitReason, Usage
from tests.agent.test_following import stub
from tests.agent.test_isolation import KNOCK, Listener
from tests.agent.worker import (
    ONCE,
    QUICK,
    Talker,
    drops,
    final,
    in_kernel,
    kill,
    python,
    refused_start,
    sandboxes,
    until,
)
from tests.lab.capture import Capture, flows
from tests.lab.topology import CAMPUS, INTERNET, WORKER
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
ROUTED4, ROUTED6 = "198.18.7.0/24", "2001:db8:7::/112"
PREFIXES = (ROUTED4, ROUTED6)
PROFILES = """
[profiles.public]
connectivity = "routed"
[[rules]]
when = "WantNat"
profile = "nat"
"""
CONFIG = 'default_profile = "public"\n' + QUICK + PROFILES
BOTH = CONFIG + f'[addresses]\nrouted4 = "{ROUTED4}"\nrouted6 = "{ROUTED6}"\n'
ONLY6 = CONFIG + f'[addresses]\nrouted6 = "{ROUTED6}"\n'
# argv: addresses. Both ways in bulk, echoes from ports of the job's choice, and UDP_SEGMENT
SPEAK = """
import socket, sys, urllib.request
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    url = f"http://[{address}]" if ":" in address else f"http://{address}"
    with urllib.request.urlopen(url + "/bytes/20000000") as answer:
        while answer.read(1 << 20):
            pass
    up = urllib.request.Request(url + "/up", bytes(20_000_000), method="PUT")
    assert urllib.request.urlopen(up).read() == b"20000000"
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for port in (1025, 65000):
            with socket.socket(family, kind) as sock:
                sock.settimeout(10)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(("::" if ":" in address else "0.0.0.0", port))
                sock.connect((address, 7))
                sock.send(b"hello")
                assert sock.recv(100) == b"hello"
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 9))
        sock.setsockopt(socket.IPPROTO_UDP, 103, 1100)
        for size in (1, 1100, 1101, 20 * 1100 + 13):
            sock.send(bytes(size))
"""
# as root of the namespace: what a job without IPv4 might send with it
NO_ADDRESS = f"""
import socket, struct
mac, gateway = bytes.fromhex("026c6b0000%02x"), bytes.fromhex("026c6bff00%02x")
def send(kind, body):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        raw.send(gateway + mac + struct.pack("!H", kind) + body)
for source in (bytes(4), bytes([198, 18, 7, 2])):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 29, 1, 0, 64, 17, 0, source,
                       socket.inet_aton("{CAMPUS.ipv4}"))
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    send(0x0800, head + struct.pack("!HHHH", 1000, 9, 9, 0) + b"x")
    send(0x0806, struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, source, bytes(6),
                             socket.inet_aton("198.18.7.1")))
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab(delegated=PREFIXES) as made:
        made.agent(BOTH)
        yield made


@pytest.fixture
def fresh() -> Iterator[Lab]:
    with Lab(delegated=PREFIXES) as made:
        yield made


def own_addresses(slot: int) -> tuple[str, str]:
    """Return what the arithmetic says of a slot."""
    ipv4, ipv6 = (str(ip_network(prefix)[2 + slot]) for prefix in PREFIXES)
    return ipv4, ipv6


def occupied(lab: Lab) -> str:
    """Return the name of the one sandbox in which something runs."""
    list_pids = ["ip", "netns", "pids"]
    (name,) = [n for n in sandboxes(lab) if lab.run([*list_pids, n]).stdout.strip()]
    return name


def test_the_far_end_sees_the_jobs_own_address(world: Lab, tmp_path: Path) -> None:
    """Both families, TCP and UDP, both ways: addresses and ports are the job's, counts exact."""
    with Capture("eth0", tmp_path / "campus.pcap", world.netns("campus")) as capture:
        job = world.start_job(python(SPEAK, CAMPUS.ipv4, CAMPUS.ipv6))
        done = job.result(120)
        assert done.status == 0, done.stderr
        record = final(world, job.job_id)
    packets = flows(capture.path)
    addresses = own_addresses(record.slot)
    assert (record.ipv4, record.ipv6) == addresses
    assert (record.connectivity, record.first_port) == (Connectivity.ROUTED, 0)
    sent = [packet for packet in packets if packet.src in addresses]
    received = [packet for packet in packets if packet.dst in addresses]
    assert not {WORKER.ipv4, WORKER.ipv6} & {packet.src for packet in packets}
    assert {packet.src for packet in sent} == set(addresses)
    for address in addresses:
        for proto in (6, 17):
            ports = {p.sport for p in sent if (p.src, p.proto) == (address, proto)}
            assert {1025, 65000} < ports
    assert world.lost() == 0
    assert record.usage.sent == Count(len(sent), sum(packet.ip_len for packet in sent))
    assert record.usage.received == Count(len(received), sum(packet.ip_len for packet in received))
    assert record.usage.sent.bytes > 40_000_000 < record.usage.received.bytes
    assert record.usage.dropped == Count()


def test_connections_are_not_translated_and_forgotten_with_the_sandbox(world: Lab) -> None:
    """Connection tracking has equal tuples in both directions, and none after the job."""
    hold = (
        f"import socket, time; s = socket.create_connection(('{CAMPUS.ipv4}', 7)); "
        f"t = socket.create_connection(('{CAMPUS.ipv6}', 7)); print('on', flush=True); "
        "time.sleep(60)"
    )
    job = world.start_job(python(hold))
    until(lambda: "on" in job.starter.stdout, "connections")

    def tracked(address: str) -> list[list[str]]:
        family = "ipv6" if ":" in address else "ipv4"
        table = world.run(["conntrack", "-L", "-f", family, "-s", address]).stdout
        wanted = ("src=", "dst=", "sport=", "dport=")
        return [[w for w in row.split() if w.startswith(wanted)] for row in table.splitlines()]

    def value(word: str) -> str:
        return word.partition("=")[2]

    running = occupied(world)
    slot = int(running.removeprefix("lark"))
    addresses = own_addresses(slot)
    for address in addresses:
        ((src, dst, sport, dport, *reply),) = tracked(address)
        assert [value(w) for w in reply] == [value(w) for w in (dst, src, dport, sport)]
    job.kill(9)
    assert final(world, job.job_id).slot == slot
    until(lambda: not any(map(tracked, addresses)), "connection tracking to forget", 15)


def test_nobody_outside_reaches_a_job(world: Lab) -> None:
    """Router and campus know the way to a listening job and get nothing through; nobody counts."""
    listener = Listener(world, "routed")
    networks = [ip_network(prefix) for prefix in PREFIXES]
    assert all(ip_address(a) in n for a, n in zip(listener.addresses, networks, strict=True))
    for host in ("router", "campus"):
        done = world.run(python(KNOCK, *listener.addresses), host=host)
        assert "CONNECTED" not in done.stdout
        assert done.stdout.count("\n") == 2
    assert "REACHED" not in listener.end()
    assert final(world, listener.job.job_id).usage == Usage()


def test_unused_addresses_of_the_prefix_do_not_circle(world: Lab) -> None:
    """What comes for an address that no sandbox has ends at the worker, not by its TTL."""
    for prefix in PREFIXES:
        unused = str(ip_network(prefix)[200])
        done = world.run(["ping", "-c2", "-W1", unused], host="campus", check=False)
        assert "100% packet loss" in done.stdout
        assert "exceeded" not in done.stdout.lower()


def test_they_do_not_circle_on_a_worker_that_is_a_router_itself(fresh: Lab) -> None:
    """Also where the site forwards on its own account, and connections from outside are its own."""
    fresh.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    fresh.agent(BOTH)
    test_unused_addresses_of_the_prefix_do_not_circle(fresh)


def test_jobs_of_either_kind_do_not_reach_each_other(world: Lab) -> None:
    """Routed or nat, a job gets to no other job's address of either kind: peer-denied."""
    listener = Listener(world, "beside")
    for ad in ({"WantNat": True}, {}):
        knocker = world.start_job(python(KNOCK, *listener.addresses), ad=ad)
        assert "CONNECTED" not in knocker.result().stdout
        record = final(world, knocker.job_id)
        assert drops(record)["peer-denied"] >= 4
        assert record.usage.sent.packets == 0
    assert "REACHED" not in listener.end()


def test_a_nat_job_beside_routed_ones_is_as_ever(world: Lab) -> None:
    """Its record has its block and its private addresses, and it reaches the campus."""
    job = world.start_job(["curl", "-sSf", f"http://{CAMPUS.ipv4}/bytes/5"], ad={"WantNat": True})
    assert job.result().status == 0
    record = final(world, job.job_id)
    assert record.connectivity == Connectivity.NAT
    assert record.first_port > 0
    assert record.ipv4 == f"100.98.0.{2 + record.slot}"
    assert ip_address(record.ipv6) == ip_address(f"fd6c:6172:6b00::{2 + record.slot:x}")


def test_ipv6_alone(fresh: Lab) -> None:
    """Without an IPv4 prefix a job has no IPv4 beyond its worker, even if root puts it there."""
    fresh.agent(ONLY6)
    fetch = f"curl -sS -m 3 http://{CAMPUS.ipv4}/bytes/1"
    job = fresh.start_job(
        ["sh", "-c", f"{fetch}; curl -sSf http://[{CAMPUS.ipv6}]/bytes/5; sleep 30"]
    )
    until(lambda: job.starter.stdout == "\0" * 5, "five bytes over IPv6")
    name = occupied(fresh)
    slot = int(name.removeprefix("lark"))
    fresh.run(["ip", "netns", "exec", name, *python(NO_ADDRESS % (slot, slot))])
    job.kill(9)
    record = final(fresh, job.job_id)
    assert (record.ipv4, record.ipv6) == ("", own_addresses(record.slot)[1])
    # the datagram from 0.0.0.0 and both ARP requests are as much spoofed as the other datagram
    assert drops(record) == {"spoofed-address": 4}
    assert record.usage.non_ip_sent == Count()


def test_names_behind_a_stub_resolver(fresh: Lab) -> None:
    """A routed job asks the worker's stub resolver by way of the gateway, as a nat job does."""
    stub(fresh, "127.0.0.1")
    fresh.path("/etc/resolv.conf").write_text("nameserver 127.0.0.1\nsearch internet.test\n")
    fresh.agent(BOTH)
    done = fresh.job(["getent", "ahosts", "server"])
    assert INTERNET.ipv4 in done.stdout, done.stderr


def test_routed_jobs_outlive_the_agent(fresh: Lab) -> None:
    """Killed and started again, the agent adopts a routed job: exact totals, nothing left after."""
    agent = fresh.agent(BOTH)
    job, other = Talker(fresh), Talker(fresh, user="bob")
    job.talk()
    kill(agent)
    job.talk()
    other.talk()
    other.end()
    agent = fresh.agent(BOTH)
    job.talk()
    absent = final(fresh, other.job.job_id)
    assert (absent.exit_reason, absent.usage.sent) == (ExitReason.AGENT_ABSENT, ONCE)
    job.end()
    record = final(fresh, job.job.job_id)
    assert record.usage.sent == Count(3 * ONCE.packets, 3 * ONCE.bytes)
    assert (record.exit_reason, record.ipv4) == (ExitReason.EXITED, own_addresses(record.slot)[0])
    assert agent.terminate() == 0
    assert in_kernel(fresh) == set()
    assert "Traceback" not in agent.stderr


@pytest.mark.parametrize(
    "change",
    [
        BOTH.replace("198.18.7.0/24", "198.18.8.0/24"),
        BOTH.replace("2001:db8:7::", "2001:db8:8::"),
        ONLY6,
        QUICK,
    ],
    ids=["routed4", "routed6", "no-routed4", "no-routed"],
)
def test_the_prefix_stays_while_routed_jobs_run(fresh: Lab, change: str) -> None:
    """Another prefix under a running routed job is refused, and the job goes on."""
    fresh.agent(BOTH).terminate()
    agent = fresh.agent(BOTH)
    talker = Talker(fresh)
    agent.terminate()
    status, words = refused_start(fresh, change)
    assert status == 3
    assert "1 jobs still run with other addresses or NAT ports" in words
    fresh.agent(BOTH)
    talker.talk()
    talker.end()
    assert final(fresh, talker.job.job_id).usage.sent == ONCE


def test_a_prefix_can_be_added_while_nat_jobs_run(fresh: Lab) -> None:
    """Jobs behind NAT do not stand in the way of a first prefix."""
    agent = fresh.agent(QUICK)
    talker = Talker(fresh)
    agent.terminate()
    fresh.agent(BOTH)
    talker.talk()
    talker.end()
    record = final(fresh, talker.job.job_id)
    assert (record.connectivity, record.usage.sent) == (Connectivity.NAT, ONCE)
    assert fresh.job(["true"]).status == 0


def test_a_reload_cannot_bring_a_prefix(fresh: Lab) -> None:
    """A profile that a reload makes routed refuses jobs with the remedy, and others still run."""
    agent = fresh.agent(QUICK)
    config = fresh.path(agent.command[-1])
    config.write_text(BOTH)
    agent.signal(1)

    def refused() -> str:
        done = fresh.job(["true"])
        return done.stderr if done.status == 125 else ""

    words = until(refused, "a refusal")
    assert "this worker has no routed networks" in words
    assert "restart lark-agent" in words
    assert fresh.job(["true"], ad={"WantNat": True}).status == 0


@pytest.mark.parametrize(
    ("route", "refused"),
    [
        ("198.18.7.128/25 via 192.0.2.1", True),
        ("198.18.7.0/24 dev uplink0", True),
        ("198.18.0.0/15 dev uplink0", True),
        ("198.18.0.0/15 via 192.0.2.1", False),
        ("unreachable 198.18.7.0/24", False),
    ],
)
def test_a_prefix_that_is_somebody_elses(fresh: Lab, route: str, refused: bool) -> None:
    """A route into the prefix, or a link that holds it, is refused; a way through a router not."""
    fresh.run(["ip", "route", "add", *route.split()])
    if refused:
        status, words = refused_start(fresh, BOTH)
        assert status == 3
        assert "198.18.7.0/24 overlaps this worker's route" in words
    else:
        fresh.agent(BOTH)
        assert fresh.job(["curl", "-sSf", f"http://{CAMPUS.ipv4}/bytes/5"]).status == 0
