"""A job with raw sockets: what it forges goes nowhere and is counted for what it is."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from pyroute2 import IPRoute

from lark_agent.datapath import Hooks
from lark_agent.linux import namespaces
from lark_agent.model import Count, Direction, DropReason
from tests.datapath.cases import CUT, DENIED4, DENIED6, HOSTILE
from tests.datapath.frames import TCP, ethernet, ip4, ipv4, tcp
from tests.datapath.network import FAR4, GATEWAYS, INSIDE, PEERS, PLAN, SLOT, Network, total
from tests.lab.capture import Capture, flows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.root

PACKET_VNET_HDR = 15
GSO_TCPV4 = 1
NEEDS_CHECKSUM = 1


def until(done: Callable[[], bool]) -> None:
    """Wait for frames that are on their way through softirqs; fails after 10 s."""
    patience = time.monotonic() + 10
    while not done():
        assert time.monotonic() < patience, "what was sent was not counted"
        time.sleep(0.002)


def test_hostile_frames_reach_nobody(network: Network, tmp_path: Path) -> None:
    """Every forged frame is dropped under its reason; the far host and the counters see none."""
    table = network.datapath.set_classes(
        {"denied": [f"{DENIED4}/32", f"{DENIED6}/128"]}, PEERS, GATEWAYS
    )
    network.datapath.activate(SLOT, replace(PLAN, classes=table.mask({"other"})))
    # super-packets need an offload header and are in the test with one
    cases = [case for case in HOSTILE + CUT if not case.frame.gso_size]
    wire = network.sandbox.wire()
    with Capture("eth0", tmp_path / "far.pcap", network.far.netns):
        for case in cases:
            before = network.drops.get(case.reason or DropReason.NO_PLAN, Count())
            wire.send(case.frame.data)
            until(lambda c=case, b=before: network.drops.get(c.reason, Count()) - b == c.counted)  # type: ignore[misc]
    assert network.sent == Count()
    ours = ("100.98.", "fd6c:")
    assert [p for p in flows(tmp_path / "far.pcap") if p.src.startswith(ours)] == []


@pytest.mark.parametrize("tag", [0x8100, 0x88A8])
def test_vlan_tags_do_not_pass(network: Network, tmp_path: Path, tag: int) -> None:
    """A good packet in a VLAN tag, also a double one or priority tag, is dropped as link-layer."""
    inner = struct.pack("!HH", 5, 0x0800) + ipv4()
    priority = struct.pack("!HH", 0x2000, 0x0800) + ipv4()
    double = struct.pack("!HHHH", 5, 0x8100, 6, 0x0800) + ipv4()
    wire = network.sandbox.wire()
    with Capture("eth0", tmp_path / "far.pcap", network.far.netns):
        for payload in (inner, priority, double):
            wire.send(ethernet(payload, tag))
        until(lambda: network.drops[DropReason.LINK_LAYER].packets >= 3)
    assert network.sent == Count()
    assert [p for p in flows(tmp_path / "far.pcap") if p.src == str(PLAN.addr4)] == []


def test_forged_offloads_count_what_leaves(network: Network, tmp_path: Path) -> None:
    """Super-packets made by a raw socket, without a segment count, count as on the wire."""
    wire = network.sandbox.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    wire.setsockopt(263, PACKET_VNET_HDR, 1)  # SOL_PACKET
    wire.bind(("eth0", 0x0800))
    frame = ip4(ipv4(tcp(bytes(10_000), bytes(8)), TCP))
    with Capture("eth0", tmp_path / "far.pcap", network.far.netns):
        for size in (1400, 999, 50):
            offload = struct.pack(
                "=BBHHHH", NEEDS_CHECKSUM, GSO_TCPV4, 14 + 20 + 28, size, 14 + 20, 16
            )
            wire.send(offload + frame)
        expected = sum(-(-10_000 // size) for size in (1400, 999, 50))
        until(lambda: network.sent.packets >= expected)
    seen = [p.ip_len for p in flows(tmp_path / "far.pcap") if p.src == str(PLAN.addr4)]
    assert network.sent == Count(len(seen), sum(seen)) == Count(expected, 30_000 + 48 * expected)


def test_nothing_passes_after_the_end(network: Network, tmp_path: Path) -> None:
    """After deactivate and settle, a flood that goes on changes no final total, only drops."""
    receiver = network.far.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((FAR4, 9999))
    flood = network.sandbox.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stop = False

    def send() -> int:
        sent = 0
        while not stop:
            flood.sendto(bytes(1000), (FAR4, 9999))
            sent += 1
        return sent

    with Capture("eth0", tmp_path / "far.pcap", network.far.netns):
        flooder = Thread(target=lambda: namespaces.in_thread(send))
        flooder.start()
        until(lambda: network.sent.packets > 1000)
        network.datapath.deactivate(SLOT)
        network.datapath.settle()
        final = network.counters
        dropped = network.drops[DropReason.NO_PLAN].packets
        until(lambda: network.drops[DropReason.NO_PLAN].packets > dropped + 1000)
        stop = True
        flooder.join()
    later = network.counters
    assert later.used == final.used
    seen = [p.ip_len for p in flows(tmp_path / "far.pcap") if p.src == str(PLAN.addr4)]
    assert Count(final.used[0], final.used[1]) == Count(len(seen), sum(seen))


def test_hooks_in_the_sandbox_see_the_same(network: Network) -> None:
    """On the sandbox's own device the programs count alike; a lie about a frame's type fails."""
    inner = SLOT + 1

    def attach() -> None:
        with IPRoute() as netlink:
            network.datapath.attach(netlink, INSIDE, inner, Hooks.SANDBOX)

    network.sandbox.inside(attach)
    network.datapath.activate(inner, PLAN)
    network.sandbox.run("ping", "-c", "3", FAR4)
    inside = network.datapath.read([inner])[inner]
    assert inside.used == network.counters.used
    assert total(inside, Direction.SENT) == total(inside, Direction.RECEIVED) == Count(3, 252)
    wire = network.sandbox.wire()
    tagged = ethernet(struct.pack("!HH", 5, 0x0800) + ipv4(), 0x8100)
    for frame in (tagged, ethernet(bytes(64), 0x88CC), ip4(ipv4(source="10.9.9.9"))):
        with pytest.raises(OSError, match="No buffer space"):  # here a drop is the sender's
            wire.sendto(frame, ("eth0", 0x0800))
    network.datapath.settle()
    counters = network.datapath.read([inner])[inner]
    assert counters.dropped_for(DropReason.LINK_LAYER).packets == 2
    assert counters.dropped_for(DropReason.SPOOFED_ADDRESS).packets == 1
    assert DropReason.LINK_LAYER not in network.drops, "nothing got to the other end"
    assert total(counters, Direction.SENT) == Count(3, 252)


def test_a_frame_is_what_it_says(network: Network) -> None:
    """What the sandbox's root gives out as something else to its own kernel does not leave."""
    inner = SLOT + 1

    def attach() -> None:
        with IPRoute() as netlink:
            network.datapath.attach(netlink, INSIDE, inner, Hooks.SANDBOX)

    network.sandbox.inside(attach)
    network.datapath.activate(inner, PLAN)
    wire = network.sandbox.wire()
    wire.sendto(ip4(ipv4()), ("eth0", 0x0800))
    for said in (0x8100, 0x88CC, 0x86DD, 0x0806):
        with pytest.raises(OSError, match="No buffer space"):
            wire.sendto(ip4(ipv4()), ("eth0", said))
    counters = network.datapath.read([inner])[inner]
    assert total(counters, Direction.SENT) == Count(1, 84)
    assert counters.dropped_for(DropReason.LINK_LAYER).packets == 4
