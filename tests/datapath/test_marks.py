"""What leaves bears the plan's DSCP, flow label and queue, whatever the job wrote."""

from __future__ import annotations

import socket
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pytest

from tests.datapath.cases import back
from tests.datapath.frames import TCP, checksum, ip4, ip6, ipv4, ipv6, tcp
from tests.datapath.network import FAR4, FAR6, JOB4, JOB6, PLAN, SLOT, Network
from tests.datapath.testrun import Frame

if TYPE_CHECKING:
    from tests.datapath.judge import Judge

pytestmark = pytest.mark.root
RECORD_ROUTE = bytes([7, 39, 4]) + bytes(37)


def test_dscp_of_ipv4(judge: Judge) -> None:
    """The six bits are the plan's, the two of ECN the job's, and the checksum is right."""
    written = (0, 0x03, 0xB8, 0xFF)
    for dscp, service, options in product((0, 8, 46, 63), written, (b"", RECORD_ROUTE)):
        judge.begin(replace(PLAN, dscp=dscp))
        before = ip4(ipv4(service=service, options=options))
        after = judge.after(Frame(before)).data
        assert after[15] == dscp << 2 | service & 3
        assert checksum(after[14 : 34 + len(options)]) == 0
        assert after[:15] + after[16:24] == before[:15] + before[16:24]
        assert after[26:] == before[26:]


def test_dscp_and_flow_label_of_ipv6(judge: Judge) -> None:
    """All 20 bits of the label and six of the class are the plan's, and nothing else changes."""
    plans = ((0, 0), (46, 0), (0, 0xFFFFF), (63, 0x12345))
    for (dscp, label), (service, written) in product(plans, ((0, 0), (0xFF, 0xFFFFF), (1, 7))):
        judge.begin(replace(PLAN, dscp=dscp, flow_label=label))
        before = ip6(ipv6(service=service, flow_label=written))
        after = judge.after(Frame(before)).data
        first = int.from_bytes(after[14:18], "big")
        assert first == 6 << 28 | (dscp << 2 | service & 3) << 20 | label
        assert after[:14] + after[18:] == before[:14] + before[18:]


def test_super_packets_are_marked(judge: Judge) -> None:
    """A super-packet is marked once, before it is cut, in both families."""
    judge.begin(replace(PLAN, dscp=10, flow_label=5))
    four = judge.after(Frame(ip4(ipv4(tcp(bytes(1000)), TCP)), 300, 4)).data
    assert four[15] == 40
    assert checksum(four[14:34]) == 0
    six = judge.after(Frame(ip6(ipv6(tcp(bytes(1000)), TCP)), 300, 4)).data
    assert six[14:18] == (6 << 28 | 40 << 20 | 5).to_bytes(4, "big")


def test_what_comes_in_is_not_marked(judge: Judge) -> None:
    """A job sees what others have written."""
    judge.begin(replace(PLAN, dscp=10, flow_label=5))
    for frame in (
        back(ip4(ipv4(source=FAR4, destination=JOB4, service=0xFF))),
        back(ip6(ipv6(source=FAR6, destination=JOB6, service=0xFF, flow_label=9))),
    ):
        assert judge.after(Frame(frame), "to_job").data == frame


def test_each_direction_has_its_queue(judge: Judge) -> None:
    """Packets go on with the plan's queue of their direction as priority, and 0 without one."""
    answer = Frame(back(ip4(ipv4(source=FAR4, destination=JOB4))))
    for queues in ((0x11003, 0x21003), (0, 0)):
        judge.begin(replace(PLAN, queues=queues))
        assert judge.after(Frame(ip4(ipv4()))).priority == queues[0]
        assert judge.after(answer, "to_job").priority == queues[1]


def test_marked_connections_work(network: Network) -> None:
    """TCP and UDP through the marking, both families: checksums hold, so bytes arrive."""
    network.datapath.change(SLOT, replace(PLAN, dscp=46, flow_label=0x54321))
    for family, far in ((socket.AF_INET, FAR4), (socket.AF_INET6, FAR6)):
        with network.far.socket(family, socket.SOCK_STREAM) as listening:
            listening.bind((far, 0))
            listening.listen()
            calling = network.sandbox.socket(family, socket.SOCK_STREAM)
            calling.connect(listening.getsockname()[:2])
            answering, _ = listening.accept()
            sent = bytes(range(256)) * 4000
            calling.sendall(sent[:200_000])
            arrived = b""
            while len(arrived) < 200_000:
                arrived += answering.recv(1 << 20)
            assert arrived == sent[:200_000]
            for opened in (calling, answering):
                opened.close()
