"""Bytes and packets equal to a capture at the far side, for every kind of traffic."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import Count, DropReason
from tests.datapath.network import FAR4, FAR6, HOST4, HOST6, JOB4, JOB6, Network, Side, sh
from tests.lab.capture import Capture, flows, sum_ip

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
UDP_SEGMENT = 103
IPV6_HOPOPTS, IPV6_DSTOPTS = 54, 59
MEGABYTE = 1 << 20


def job(family: int) -> str:
    return JOB4 if family == socket.AF_INET else JOB6


def far(family: int) -> str:
    return FAR4 if family == socket.AF_INET else FAR6


@contextlib.contextmanager
def compared(network: Network, path: Path) -> Iterator[None]:
    """Claim that the counters say what the capture says, both ways, and no more than MLD drops."""
    file = path / "far.pcap"
    with Capture("eth0", file, network.far.netns):
        yield
    assert network.lost == 0, "the wire itself lost packets; the capture proves nothing"
    ours = {JOB4, JOB6}
    sent = sum_ip(file, lambda packet: packet.src in ours)
    received = sum_ip(file, lambda packet: packet.dst in ours)
    assert (network.sent, network.received) == (sent, received)
    assert sent
    assert network.drops.keys() <= {DropReason.MARTIAN}


def connect(
    client: Side, server: Side, family: int, address: str, window: int = 1 << 16
) -> tuple[socket.socket, ...]:
    """Connect with so small a receive window (bytes) that a veth's queue of 256 never overflows."""
    with server.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        listening.bind((address, 0))
        listening.listen()
        calling = client.socket(family, socket.SOCK_STREAM)
        calling.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        calling.connect(listening.getsockname()[:2])
        answering, _ = listening.accept()
    answering.settimeout(60)
    return calling, answering


def pump(source: socket.socket, sink: socket.socket, size: int) -> None:
    """Send `size` bytes and wait until all have arrived."""

    def send() -> None:
        chunk = memoryview(bytes(min(MEGABYTE, size)))
        left = size
        while left:
            left -= source.send(chunk[: min(left, len(chunk))])

    sender = threading.Thread(target=send)
    sender.start()
    buffer = bytearray(MEGABYTE)
    left = size
    while left:
        got = sink.recv_into(buffer)
        assert got, "the connection ended early"
        left -= got
    sender.join()


def hang_up(first: socket.socket, second: socket.socket) -> None:
    """Close a connection and wait until both sides know."""
    first.shutdown(socket.SHUT_WR)
    assert second.recv(1) == b""
    second.shutdown(socket.SHUT_WR)
    assert first.recv(1) == b""
    # the last acknowledgement may still be on its way: a further exchange on the same path is not
    first.close()
    second.close()


@FAMILIES
def test_tcp_bulk_both_ways(network: Network, tmp_path: Path, family: int) -> None:
    """Half a gigabyte up and down, in super-packets of 64 KiB, differs by nothing from the wire."""
    with compared(network, tmp_path):
        calling, answering = connect(network.sandbox, network.far, family, far(family))
        pump(calling, answering, 512 * MEGABYTE)
        pump(answering, calling, 512 * MEGABYTE)
        hang_up(calling, answering)
    for direction, count in (("rx", network.sent), ("tx", network.received)):
        crossed = Path(f"/sys/class/net/lark3/statistics/{direction}_packets").read_text()
        assert int(crossed) < count.packets / 4, "no super-packets crossed the veth"


@FAMILIES
def test_tcp_one_byte_segments(network: Network, tmp_path: Path, family: int) -> None:
    """A thousand segments of one byte count a thousand headers."""
    with compared(network, tmp_path):
        calling, answering = connect(network.sandbox, network.far, family, far(family))
        calling.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(1000):
            calling.send(b"x")
            assert answering.recv(1) == b"x"
        hang_up(calling, answering)
    assert network.sent.packets > 1000


def test_many_parallel_flows(network: Network, tmp_path: Path) -> None:
    """Sixty connections at once, half of them inbound data, are counted to the byte."""
    sh("ethtool -K far0 gro off")  # its queue is too short for this many windows
    with compared(network, tmp_path):
        pairs = [
            connect(network.sandbox, network.far, family, far(family), window=4096)
            for family in (socket.AF_INET, socket.AF_INET6)
            for _ in range(30)
        ]
        threads = [
            threading.Thread(target=pump, args=(pair if n % 2 else pair[::-1]) + (300_000 + n,))
            for n, pair in enumerate(pairs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for calling, answering in pairs:
            hang_up(calling, answering)


@FAMILIES
@pytest.mark.parametrize("segment", [0, 1, 500, 1400])
def test_udp_with_and_without_segmentation(
    network: Network, tmp_path: Path, family: int, segment: int
) -> None:
    """A datagram that the kernel cuts (UDP_SEGMENT) counts as what it is cut into."""
    size = {0: 1400, 1: 60}.get(segment, 20_001)
    with compared(network, tmp_path):
        receiver = network.far.socket(family, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        receiver.bind((far(family), 0))
        sender = network.sandbox.socket(family, socket.SOCK_DGRAM)
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, segment)
        for _ in range(20):
            sender.sendto(bytes(size), receiver.getsockname())
            arrived = 0
            while arrived < size:
                data, origin = receiver.recvfrom(65536)
                arrived += len(data)
            receiver.sendto(b"answer", origin)
            sender.recv(100)
    expected = -(-size // segment) if segment else 1
    assert network.sent.packets == 20 * expected


@FAMILIES
def test_fragments(network: Network, tmp_path: Path, family: int) -> None:
    """Datagrams of ten fragments, both ways, count every fragment's header."""
    with compared(network, tmp_path):
        receiver = network.far.socket(family, socket.SOCK_DGRAM)
        receiver.bind((far(family), 0))
        sender = network.sandbox.socket(family, socket.SOCK_DGRAM)
        for size in (1473, 14_000, 14_801):
            sender.sendto(bytes(size), receiver.getsockname())
            data, origin = receiver.recvfrom(65536)
            receiver.sendto(data, origin)
            assert len(sender.recv(65536)) == size
    assert network.sent.packets == network.received.packets > 20


@FAMILIES
def test_fragments_through_nat(network: Network, tmp_path: Path, family: int) -> None:
    """Connection tracking puts fragments together and apart again; the counts stay the wire's."""
    for table in ("ip", "ip6"):
        sh(f"nft add table {table} nat")
        sh(f"nft add chain {table} nat post {{ type nat hook postrouting priority 100 ; }}")
        sh(f"nft add rule {table} nat post oifname far0 masquerade")
    with Capture("eth0", tmp_path / "far.pcap", network.far.netns):
        receiver = network.far.socket(family, socket.SOCK_DGRAM)
        receiver.bind((far(family), 0))
        sender = network.sandbox.socket(family, socket.SOCK_DGRAM)
        for size in (100, 1473, 14_801):
            sender.sendto(bytes(size), receiver.getsockname())
            data, origin = receiver.recvfrom(65536)
            assert origin[0] in {HOST4, HOST6}
            receiver.sendto(data, origin)
            assert len(sender.recv(65536)) == size
    udp = [p for p in flows(tmp_path / "far.pcap") if p.proto == socket.IPPROTO_UDP]
    sent = [p.ip_len for p in udp if p.dst == far(family)]
    received = [p.ip_len for p in udp if p.src == far(family)]
    assert network.sent == Count(len(sent), sum(sent))
    assert network.received == Count(len(received), sum(received))
    assert len(sent) > 10


@FAMILIES
def test_ping(network: Network, tmp_path: Path, family: int) -> None:
    """Echo requests and answers, small, full and fragmented, count as on the wire."""
    with compared(network, tmp_path):
        for size in (0, 1, 56, 1400, 1500, 9000):
            network.sandbox.run("ping", "-c", "3", "-i", "0.01", "-s", str(size), far(family))
    assert network.sent == network.received


@pytest.mark.parametrize("option", [IPV6_HOPOPTS, IPV6_DSTOPTS])
def test_ipv6_extension_headers(network: Network, tmp_path: Path, option: int) -> None:
    """Super-packets with extension headers repeat them in every segment, and so do the counters."""
    # 24 bytes, one option that hosts skip (RFC 4727, 0x1e); Linux drops padding over 7 bytes
    headers = struct.pack("!BBBB", 0, 2, 0x1E, 20) + bytes(20)
    with compared(network, tmp_path):
        listening = network.far.socket(socket.AF_INET6, socket.SOCK_STREAM)
        listening.bind((FAR6, 0))
        listening.listen()
        calling = network.sandbox.socket(socket.AF_INET6, socket.SOCK_STREAM)
        calling.setsockopt(socket.IPPROTO_IPV6, option, headers)
        calling.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        calling.connect(listening.getsockname()[:2])
        answering, _ = listening.accept()
        answering.settimeout(60)
        pump(calling, answering, 32 * MEGABYTE)
        pump(answering, calling, MEGABYTE)
        hang_up(calling, answering)
        datagrams = network.sandbox.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        datagrams.setsockopt(socket.IPPROTO_IPV6, option, headers)
        datagrams.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        receiver = network.far.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        receiver.bind((FAR6, 0))
        datagrams.sendto(bytes(10_000), receiver.getsockname())
        for _ in range(10):
            assert len(receiver.recv(2000)) == 1000


def test_ipv4_options(network: Network, tmp_path: Path) -> None:
    """Super-packets with IPv4 options repeat them in every segment, and so do the counters."""
    with compared(network, tmp_path):
        listening = network.far.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.bind((FAR4, 0))
        listening.listen()
        calling = network.sandbox.socket(socket.AF_INET, socket.SOCK_STREAM)
        record_route = bytes([7, 39, 4]) + bytes(36) + b"\0"
        calling.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, record_route)
        calling.connect(listening.getsockname())
        answering, _ = listening.accept()
        answering.settimeout(60)
        pump(calling, answering, 32 * MEGABYTE)
        hang_up(calling, answering)


def test_ten_thousand_connections(network: Network, tmp_path: Path) -> None:
    """Ten thousand short connections are counted to the byte."""
    with compared(network, tmp_path):
        listening = network.far.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.bind((FAR4, 0))
        listening.listen(64)

        def connections() -> None:
            for _ in range(10_000):
                with socket.create_connection(listening.getsockname(), timeout=60) as calling:
                    answering, _ = listening.accept()
                    calling.send(b"question")
                    assert answering.recv(100) == b"question"
                    answering.close()
                    assert calling.recv(1) == b""

        network.sandbox.inside(connections)
    assert network.sent.packets >= 10_000 * 4


def test_arp_is_counted_apart(network: Network) -> None:
    """ARP of the job passes and is in no class."""
    network.sandbox.run("ip", "neigh", "del", "100.98.0.1", "dev", "eth0")
    network.sandbox.run("ping", "-c", "1", FAR4)
    usage = network.counters.usage(network.datapath.classes.names)
    assert (usage.non_ip_sent, usage.non_ip_received) == (Count(1, 28), Count(1, 28))
    assert usage.sent == usage.received == Count(1, 84)
