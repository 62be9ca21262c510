"""Ports name jobs: whatever a job binds, the outside sees ports of its block, in both families."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.agent.test_routed import occupied
from tests.agent.worker import QUICK, final, python, until
from tests.lab.capture import Capture, flows
from tests.lab.topology import CAMPUS, WORKER
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lark_agent.model import Count, Record
    from tests.lab.capture import Packet

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
# argv: addresses; both protocols, a port of the kernel's choice and one of the job's own
SPEAK = """
import socket, sys
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for port in (0, 1025, 33000, 65000):
            with socket.socket(family, kind) as sock:
                sock.settimeout(10)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(("::" if ":" in address else "0.0.0.0", port))
                sock.connect((address, 7))
                sock.send(b"hello")
                assert sock.recv(100) == b"hello"
"""
# as many connections to one place as there are ports, and then one more
EXHAUST = """
import errno, socket, sys
kept = []
while True:
    sock = socket.socket()
    sock.settimeout(10)
    try:
        sock.connect((sys.argv[1], 7))
    except OSError as error:
        print(len(kept), errno.errorcode[error.errno])
        break
    kept.append(sock)
for sock in kept:
    sock.send(b"x")
    assert sock.recv(1) == b"x"
"""
# what connection tracking takes for invalid: begins and ends at once
IMPOSSIBLE = """
import socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
    segment = struct.pack("!HHIIBBHHH", 33000, 7, 1, 1, 5 << 4, 3, 100, 0, 0)
    sock.sendto(segment, (sys.argv[1], 0))
"""
TINY_BLOCKS = QUICK + "[nat]\nfirst_port = 10240\nlast_port = 10407\n"
"""Four blocks of 42 ports: of an odd number connect() may miss one (__inet_hash_connect())."""


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab() as made:
        made.agent(TINY_BLOCKS)
        yield made


def outward(packets: list[Packet]) -> list[Packet]:
    return [packet for packet in packets if packet.src in {WORKER.ipv4, WORKER.ipv6}]


def seen(packets: list[Packet]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return packets and bytes sent and received by the worker."""
    sent = outward(packets)
    received = [packet for packet in packets if packet.dst in {WORKER.ipv4, WORKER.ipv6}]
    return (
        (len(sent), sum(packet.ip_len for packet in sent)),
        (len(received), sum(packet.ip_len for packet in received)),
    )


def counted(record: Record) -> tuple[tuple[int, int], tuple[int, int]]:
    def pair(count: Count) -> tuple[int, int]:
        return count.packets, count.bytes

    return pair(record.usage.sent), pair(record.usage.received)


def test_the_outside_sees_ports_of_the_block(world: Lab, tmp_path: Path) -> None:
    """Ports of the kernel's choice and ports bound outside the block: all leave within it."""
    with Capture("eth0", tmp_path / "campus.pcap", world.netns("campus")) as capture:
        job = world.start_job(python(SPEAK, CAMPUS.ipv4, CAMPUS.ipv6))
        done = job.result()
        assert done.status == 0, done.stderr
        record = final(world, job.job_id)
    packets = flows(capture.path)
    ports = {packet.sport for packet in outward(packets)}
    assert len(ports) >= 4
    assert record.first_port <= min(ports)
    assert max(ports) <= record.last_port
    assert record.last_port - record.first_port == 41
    assert {packet.proto for packet in outward(packets)} == {6, 17}
    assert {packet.src for packet in outward(packets)} == {WORKER.ipv4, WORKER.ipv6}
    assert counted(record) == seen(packets)


def test_a_job_out_of_ports_is_told_before_it_is_counted(world: Lab, tmp_path: Path) -> None:
    """connect() fails with EADDRNOTAVAIL after as many as the block has; counts stay exact."""
    with Capture("eth0", tmp_path / "campus.pcap", world.netns("campus")) as capture:
        job = world.start_job(python(EXHAUST, CAMPUS.ipv4))
        done = job.result()
        assert done.status == 0, done.stderr
        record = final(world, job.job_id)
    assert done.stdout == "42 EADDRNOTAVAIL\n"
    assert counted(record) == seen(flows(capture.path))


def test_connections_are_forgotten_with_the_sandbox(world: Lab) -> None:
    """After a job no entry of connection tracking names its sandbox's addresses."""
    job = world.start_job(python(SPEAK, CAMPUS.ipv4, CAMPUS.ipv6))
    assert job.result().status == 0
    slot = final(world, job.job_id).slot
    addresses = {f"src=100.98.0.{slot + 2} ", f"src=fd6c:6172:6b00::{slot + 2:x} "}

    def forgotten() -> bool:
        table = "".join(
            world.run(["conntrack", "-L", "-f", family]).stdout for family in ("ipv4", "ipv6")
        )
        return not any(address in table for address in addresses)

    until(forgotten, "connection tracking to forget", 15)


def test_what_cannot_be_translated_does_not_leave(world: Lab, tmp_path: Path) -> None:
    """A packet that belongs to no connection ends at the worker: no private address is seen."""
    job = world.start_job(["sleep", "60"])
    until(lambda: job.job_id in world.run(["lark", "jobs"]).stdout, "the job")
    with Capture("eth0", tmp_path / "campus.pcap", world.netns("campus")) as capture:
        inside = ["ip", "netns", "exec", occupied(world)]
        world.run([*inside, *python(IMPOSSIBLE, CAMPUS.ipv4)])
        world.run([*inside, "ping", "-c1", CAMPUS.ipv4])  # comes after it
    job.kill(9)
    assert final(world, job.job_id).usage.sent.packets == 2
    assert {p.src for p in flows(capture.path) if p.dst == CAMPUS.ipv4} == {WORKER.ipv4}
    assert 6 not in {p.proto for p in flows(capture.path)}


def test_jobs_side_by_side_have_ports_of_their_own(world: Lab, tmp_path: Path) -> None:
    """Two jobs that bind the same port are told apart by their blocks on the outside."""
    with Capture("eth0", tmp_path / "campus.pcap", world.netns("campus")) as capture:
        jobs = [world.start_job(python(SPEAK, CAMPUS.ipv4), user=user) for user in ("alice", "bob")]
        for job in jobs:
            assert job.result().status == 0
        records = [final(world, job.job_id) for job in jobs]
    packets = outward(flows(capture.path))
    for record in records:
        mine = [p for p in packets if record.first_port <= p.sport <= record.last_port]
        total = sum(packet.ip_len for packet in mine)
        assert (len(mine), total) == (record.usage.sent.packets, record.usage.sent.bytes)
    assert sum(record.usage.sent.packets for record in records) == len(packets)


def test_the_worker_keeps_off_the_blocks(world: Lab) -> None:
    """The blocks are reserved: a program of the worker never gets one of them by chance."""
    reserved = world.run(["cat", "/proc/sys/net/ipv4/ip_local_reserved_ports"]).stdout
    assert reserved.strip() == "10240-10407"


ANY_PORTS = """
import pathlib, socket
span = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")
before = span.read_text()
span.write_text("10300 10420")
sockets = [socket.create_server(("", 0)) for _ in range(13)]
span.write_text(before)
print(*sorted(s.getsockname()[1] for s in sockets))
"""


def test_the_worker_keeps_off_the_blocks_when_its_ports_are_widened(world: Lab) -> None:
    """HTCondor's master widens the ephemeral ports over the blocks: what is reserved stays so."""
    ports = world.run(python(ANY_PORTS)).stdout.split()
    assert ports == [str(port) for port in range(10408, 10421)]


def test_rules_do_not_change_with_jobs(world: Lab) -> None:
    """A job's start and end leave the firewall exactly as it is."""

    def rules() -> str:
        text = world.run(["nft", "-j", "list", "table", "inet", "lark"]).stdout
        wanted = [
            entry
            for entry in json.loads(text)["nftables"]
            if "rule" not in entry or "counter" not in str(entry)
        ]
        for entry in wanted:  # what the kernel itself adds to as connections come and go
            if entry.get("set", {}).get("name", "").startswith("count"):
                entry["set"].pop("elem", None)
        return json.dumps(wanted)

    before = rules()
    job = world.start_job(["true"])
    assert job.result().status == 0
    final(world, job.job_id)
    assert rules() == before
