"""On a layer-2 network a job tells its neighbours the truth alone, and only answers come in."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from typing import TYPE_CHECKING

import pytest

from lark_agent.datapath import RemoteJob
from lark_agent.datapath.layout import FLOWS_OF_SLOT, u32
from lark_agent.linux.bpf import Map, bpf
from lark_agent.model import Count, Direction, DropReason, Inbound, Peers
from tests.datapath.cases import STRANGE_MAC, back
from tests.datapath.frames import (
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    arp,
    ethernet,
    extension,
    icmp,
    ip4,
    ip6,
    ipv4,
    ipv6,
    syn,
    udp,
)
from tests.datapath.network import FAR4, FAR6, GATEWAYS, JOB4, JOB6, JOB_MAC, PEERS, PLAN, SLOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.datapath import Datapath
    from tests.datapath.judge import Judge

pytestmark = pytest.mark.root
LINK = replace(PLAN, link=True)
LINK6 = "fe80::6c:6bff:fe00:3"  # EUI-64 of JOB_MAC
SOLICITED, NODES, ROUTERS = "ff02::1:ff00:9", "ff02::1", "ff02::2"
SPOOFED, MARTIAN, MALFORMED = DropReason.SPOOFED_ADDRESS, DropReason.MARTIAN, DropReason.MALFORMED
FORGED, REFUSED = DropReason.FORGED_SERVICE, DropReason.INBOUND_DENIED


def option(kind: int, mac: bytes = JOB_MAC) -> bytes:
    return bytes([kind, 1]) + mac


def nd(
    kind: int, target: str, more: bytes = b"", *, source: str = JOB6, to: str = SOLICITED,
    flags: int = 0, hops: int = 255, before: bytes = b"",
) -> bytes:  # fmt: skip
    """Build a neighbour solicitation or advertisement, perhaps behind an extension header."""
    body = struct.pack("!BBHI", kind, 0, 0, flags) + socket.inet_pton(socket.AF_INET6, target)
    following = 60 if before else ICMPV6
    return ip6(ipv6(before + body + more, following, source, to, hops=hops))


def router(kind: int, source: str = LINK6, to: str = NODES, more: bytes = b"") -> bytes:
    body = struct.pack("!BBHI", kind, 0, 0, 0) + more
    return ip6(ipv6(body, ICMPV6, source, to, hops=255))


def test_honest_discovery_passes_in_no_class(judge: Judge) -> None:
    """What Linux says to find and keep neighbours passes, counted apart from every class."""
    judge.begin(LINK)
    honest = [
        nd(135, "2001:db8::9", option(1)),
        nd(135, "2001:db8::9", option(1), source=LINK6),
        nd(135, "2001:db8::9", to="2001:db8::9"),  # is it still there?
        nd(135, JOB6, option(14), source="::", to="ff02::1:ff00:5"),  # is this address free?
        nd(136, JOB6, option(2), to="fe80::9", flags=0x60000000),
        nd(136, LINK6, option(2), source=LINK6, to=NODES),
        arp(),
    ]
    assert [judge.sent(frame) for frame in honest] == [None] * len(honest)
    assert judge.upkeep(Direction.SENT).packets == len(honest)
    heard = [
        back(nd(136, "2001:db8::9", source="2001:db8::9", to=JOB6)),
        back(nd(135, JOB6, source="fe80::9", to="ff02::1:ff00:5")),
        back(arp()),
    ]
    assert [judge.received(frame) for frame in heard] == [None] * len(heard)
    assert judge.upkeep(Direction.RECEIVED).packets == len(heard)
    counters = judge.datapath.read([SLOT])[SLOT]
    assert counters.classes_in_use == frozenset()


def test_forged_discovery_does_not(judge: Judge) -> None:
    """Another's address or MAC, in every field that has one; headers that hide; free payloads."""
    judge.begin(LINK)
    lies = {
        nd(136, "2001:db8::9", option(2)): SPOOFED,
        nd(136, JOB6, option(2, STRANGE_MAC), to=NODES): DropReason.SPOOFED_MAC,
        nd(135, "2001:db8::9", option(1, STRANGE_MAC)): DropReason.SPOOFED_MAC,
        nd(135, "2001:db8::9", source="fe80::9"): SPOOFED,
        nd(136, JOB6, source="2001:db8::9", to=NODES): SPOOFED,
        nd(135, "2001:db8::9", source="::"): SPOOFED,
        nd(136, JOB6, option(2), to=NODES, flags=0x80000000): FORGED,
        nd(136, JOB6, option(2), to=NODES, hops=64): MALFORMED,
        nd(136, JOB6, option(5), to=NODES): MALFORMED,
        nd(136, JOB6, option(2) * 2, to=NODES): MALFORMED,
        nd(136, JOB6, bytes([2, 9]) + JOB_MAC, to=NODES): MALFORMED,
        nd(136, JOB6, option(2), to=NODES, before=extension(ICMPV6)): MALFORMED,
        nd(135, "2001:db8::bad", to="2001:db8::9"): MARTIAN,
        nd(135, "2001:db8::9", to="ff0e::1"): MARTIAN,
        nd(136, JOB6, to="ff02::5"): MARTIAN,
        arp(address="100.98.0.6"): SPOOFED,
        arp(mac=STRANGE_MAC): DropReason.SPOOFED_MAC,
        arp(link_source=STRANGE_MAC): DropReason.SPOOFED_MAC,
    }
    assert {frame: judge.sent(frame) for frame in lies} == lies
    assert judge.upkeep(Direction.SENT) == Count()


def test_words_of_the_network_are_not_a_jobs(judge: Judge) -> None:
    """Router advertisements, redirects and DHCP answers of a job are dropped on every link."""
    hidden = ip6(ipv6(extension(ICMPV6) + icmp(134), 60, JOB6, NODES, hops=255))
    for plan in (PLAN, LINK, replace(LINK, router=True, dhcp=True)):
        judge.begin(plan)
        forged = [
            router(134), router(137), hidden,
            ip4(ipv4(icmp(5), ICMP)), ip4(ipv4(icmp(9), ICMP)),
            ip4(ipv4(udp(bytes(240), 67, 68))),
            ip4(ipv4(udp(bytes(240), 67, 68), destination="255.255.255.255")),
            ip6(ipv6(udp(bytes(64), 547, 546), UDP, LINK6, "fe80::9")),
            ip4(ipv4(udp(bytes(240), 67, 68), fragment=0x2000)),
        ]  # fmt: skip
        assert [judge.sent(frame) for frame in forged] == [FORGED] * len(forged)
        fragment = ipv6(b"\x3a\0\0\1\0\0\0\1" + icmp(134), 44, LINK6, NODES, hops=255)
        assert judge.sent(ip6(fragment)) is FORGED
        later = ipv6(b"\x3a\0\0\x09\0\0\0\1" + icmp(134), 44, LINK6, NODES, hops=255)
        assert judge.sent(ip6(later)) is MARTIAN


def test_routers_are_heard_where_addresses_come_from_them(judge: Judge) -> None:
    """Solicitations go out and advertisements come in with SLAAC, and not without."""
    for plan in (LINK, replace(LINK, router=True)):
        judge.begin(plan)
        expected = None if plan.router else MARTIAN
        assert judge.sent(router(133, to=ROUTERS, more=option(1))) is expected
        assert judge.received(back(router(134, source="fe80::9"))) is expected
        assert judge.received(back(router(137, source="fe80::9", to=JOB6))) is MARTIAN
        if plan.router:
            lie = router(133, to=ROUTERS, more=option(1, STRANGE_MAC))
            assert judge.sent(lie) is DropReason.SPOOFED_MAC
            assert judge.sent(router(133, "fe80::9", ROUTERS)) is SPOOFED


def test_dhcp_where_addresses_come_from_it(judge: Judge) -> None:
    """A client's broadcasts and their answers pass with DHCP, in no class, and not without."""
    ask = udp(bytes(240), 68, 67)
    questions = [
        ip4(ipv4(ask, UDP, "0.0.0.0", "255.255.255.255"), destination=b"\xff" * 6),
        ip4(ipv4(ask, UDP, JOB4, "255.255.255.255"), destination=b"\xff" * 6),
        ip6(ipv6(udp(bytes(64), 546, 547), UDP, LINK6, "ff02::1:2")),
    ]
    reply = udp(bytes(240), 67, 68)
    answers = [
        back(ip4(ipv4(reply, UDP, FAR4, "255.255.255.255"))),
        back(ip4(ipv4(reply, UDP, FAR4, JOB4))),
        back(ip6(ipv6(udp(bytes(64), 547, 546), UDP, "fe80::9", LINK6))),
    ]
    judge.begin(LINK)
    assert [judge.sent(frame) for frame in questions] == [MARTIAN] * 3
    assert [judge.received(frame) for frame in answers] == [MARTIAN, REFUSED, MARTIAN]
    judge.begin(replace(LINK, dhcp=True))
    assert [judge.sent(frame) for frame in questions] == [None] * 3
    assert [judge.received(frame) for frame in answers] == [None] * 3
    assert judge.upkeep(Direction.SENT).packets == judge.upkeep(Direction.RECEIVED).packets == 3
    spoofed = ip4(ipv4(ask, UDP, "100.98.0.6", "255.255.255.255"))
    assert judge.sent(spoofed) is SPOOFED


def test_before_a_job_only_addresses_are_found(judge: Judge) -> None:
    """In the set-up phase DHCP, ARP and discovery pass, uncounted, and nothing else does."""
    judge.datapath.prepare(SLOT, replace(LINK, addr4=None, addr6=None, dhcp=True, router=True))
    probe = ip4(ipv4(udp(bytes(240), 68, 67), UDP, "0.0.0.0", "255.255.255.255"))
    new = "2001:db8::6c:6bff:fe00:3"
    passing = [probe, arp(address="0.0.0.0"), nd(135, new, source="::"), router(133, to=ROUTERS)]
    assert [judge.sent(frame) for frame in passing] == [None] * 4
    assert judge.received(back(router(134, source="fe80::9"))) is None
    assert sum(judge.datapath.read([SLOT])[SLOT].used) == 0
    assert SLOT not in judge.datapath.active_slots()
    for frame in (ip4(ipv4()), ip6(ipv6()), ip4(ipv4(icmp(8), ICMP))):
        assert judge.sent(frame) is DropReason.NO_PLAN
    assert judge.sent(arp(mac=STRANGE_MAC)) is DropReason.SPOOFED_MAC


def test_frames_of_the_link(judge: Judge) -> None:
    """A job may address any one neighbour, no group, and gets no frame that is for another."""
    judge.begin(replace(LINK, inbound=Inbound.ALL))
    assert judge.sent(ip4(ipv4(), destination=STRANGE_MAC)) is None
    assert judge.sent(ip4(ipv4(), destination=b"\xff" * 6)) is DropReason.LINK_LAYER
    assert judge.sent(ip4(ipv4(), source=STRANGE_MAC)) is DropReason.SPOOFED_MAC
    assert judge.sent(ethernet(ipv4(), 0x8100)) is DropReason.LINK_LAYER
    coming = ipv4(source=FAR4, destination=JOB4)
    assert judge.received(back(ip4(coming))) is None
    assert judge.received(ip4(coming, destination=STRANGE_MAC)) is DropReason.LINK_LAYER
    assert judge.received(ip4(coming, destination=b"\xff" * 6)) is DropReason.LINK_LAYER


def far4(payload: bytes, protocol: int, fragment: int = 0, source: str = FAR4) -> bytes:
    return back(ip4(ipv4(payload, protocol, source, JOB4, fragment=fragment)))


def far6(payload: bytes, protocol: int) -> bytes:
    return back(ip6(ipv6(payload, protocol, FAR6, JOB6)))


def test_only_answers_come_in(judge: Judge) -> None:
    """Established: answers of the very host and ports, echoes by identifier; no earlier job's."""
    judge.begin(LINK)
    answer4, answer6 = far4(syn(80, 4000), TCP), far6(syn(80, 4000), TCP)
    assert judge.received(answer4) is judge.received(answer6) is REFUSED
    assert judge.sent(ip4(ipv4(syn(4000, 80), TCP))) is None
    assert judge.received(answer4) is None
    assert judge.received(answer6) is REFUSED
    assert judge.sent(ip6(ipv6(syn(4000, 80), TCP))) is None
    assert judge.received(answer6) is None
    for other in (
        far4(syn(81, 4000), TCP), far4(syn(80, 4001), TCP), far4(udp(b"", 80, 4000), UDP),
        far4(syn(80, 4000), TCP, source="198.51.100.3"), far4(icmp(8), ICMP), far4(icmp(0), ICMP),
    ):  # fmt: skip
        assert judge.received(other) is REFUSED
    assert judge.sent(ip4(ipv4(icmp(8, 77), ICMP))) is None
    assert judge.received(far4(icmp(0, 77), ICMP)) is None
    assert judge.received(far4(icmp(0, 78), ICMP)) is REFUSED
    assert judge.received(far4(icmp(8, 77), ICMP)) is REFUSED, "a question is no answer"
    judge.begin(LINK)
    assert judge.received(answer4) is REFUSED, "the flow was an earlier job's"


def test_errors_about_known_flows_come_in(judge: Judge) -> None:
    """An error passes if it quotes what the job sent, whoever answers, and else does not."""
    judge.begin(LINK)
    ours4, ours6 = ipv4(udp(b"", 4000, 33434)), ipv6(udp(b"", 4000, 33434))
    hop4 = far4(icmp(11, payload=ours4), ICMP, source="198.18.0.1")
    too_big = far6(icmp(2, payload=ours6), ICMPV6)
    assert judge.received(hop4) is judge.received(too_big) is REFUSED
    assert judge.sent(ip4(ours4)) is judge.sent(ip6(ours6)) is None
    assert judge.received(hop4) is judge.received(too_big) is None
    others = ipv4(udp(b"", 4000, 33434), source="100.98.0.6")
    assert judge.received(far4(icmp(3, payload=others), ICMP)) is REFUSED
    wrong = ipv4(udp(b"", 4000, 33435))
    assert judge.received(far4(icmp(3, payload=wrong), ICMP)) is REFUSED
    assert judge.received(far4(icmp(3, payload=b""), ICMP)) is REFUSED


def test_open_ports_let_others_begin(judge: Judge) -> None:
    """Ports: the listed ones of each protocol, from everywhere; a change closes them at once."""
    opened = replace(LINK, inbound=Inbound.PORTS, ports=frozenset({(TCP, 8000), (UDP, 9000)}))
    judge.begin(opened)
    assert judge.received(far4(syn(5, 8000), TCP)) is None
    assert judge.received(far6(syn(5, 8000), TCP)) is None
    assert judge.received(far4(udp(b"", 5, 9000), UDP)) is None
    assert judge.received(far4(udp(b"", 5, 8000), UDP)) is REFUSED
    assert judge.received(far4(syn(5, 9000), TCP)) is REFUSED
    judge.datapath.change(SLOT, replace(opened, ports=frozenset({(TCP, 8001)})))
    assert judge.received(far4(syn(6, 8000), TCP)) is REFUSED
    assert judge.received(far4(syn(6, 8001), TCP)) is None
    judge.begin(replace(LINK, inbound=Inbound.PORTS))
    assert judge.received(far4(syn(7, 8001), TCP)) is REFUSED
    judge.begin(replace(LINK, inbound=Inbound.NONE))
    assert judge.sent(ip4(ipv4(syn(4000, 80), TCP))) is None
    assert judge.received(far4(syn(80, 4000), TCP)) is REFUSED


def test_ports_of_a_plan_that_opens_none_are_closed(judge: Judge) -> None:
    """Ports are open where the plan opens ports; listed ones are not with established."""
    judge.begin(replace(LINK, ports=frozenset({(TCP, 8000)})))
    assert judge.received(far4(syn(5, 8000), TCP)) is REFUSED


def flows_of(datapath: Datapath, slot: int) -> Map:
    """Open the map of a slot's flows; the caller closes it."""
    number = datapath._maps["flows"].get(u32(slot))
    assert number is not None
    map_get_fd_by_id = 14
    return Map(bpf(map_get_fd_by_id, bytearray(number), "open the flows"), "flows")


def test_flows_are_forgotten(judge: Judge) -> None:
    """Answers come in for three minutes after the last packet, of TCP for five days."""
    judge.begin(LINK)
    flows = flows_of(judge.datapath, SLOT)
    for seconds, frame, answer in (
        (180, ipv4(udp(b"", 4000, 80)), far4(udp(b"", 80, 4000), UDP)),
        (5 * 86400, ipv4(syn(4000, 80), TCP), far4(syn(80, 4000), TCP)),
    ):
        for ago, expected in ((seconds - 60, None), (seconds + 1, REFUSED)):
            judge.begin(LINK)
            assert judge.sent(ip4(frame)) is None
            seen = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ago * 10**9
            for key in list(flows.keys()):
                flows.set(key, struct.pack("=Q", seen % 2**64))
            assert judge.received(answer) is expected
    flows.close()


@contextmanager
def one_processor() -> Iterator[None]:
    """Stay on one: what another noted, an LRU map may keep in that one's list and not forget."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def test_a_flood_of_flows_makes_only_its_own_job_forget(judge: Judge) -> None:
    """However many flows one job begins, another's is known, and its own latest are."""
    other = SLOT + 1
    answer = far4(udp(b"", 80, 4000), UDP)
    with one_processor():
        judge.begin(LINK)
        assert judge.sent(ip4(ipv4(udp(b"", 4000, 80)))) is None
        judge.bind(other)
        judge.begin(LINK)
        for port in range(1, 2 * FLOWS_OF_SLOT.max_entries + 1):
            judge.run("from_job", ip4(ipv4(udp(b"", port, 81))))
    assert judge.received(far4(udp(b"", 81, 2 * FLOWS_OF_SLOT.max_entries), UDP)) is None
    assert judge.received(far4(udp(b"", 81, 1), UDP)) is REFUSED, "nothing was forgotten at all"
    judge.bind(SLOT)
    assert judge.received(answer) is None


def test_only_slots_that_need_flows_have_room_for_them(judge: Judge) -> None:
    """A plan behind the worker's firewall takes no memory for flows; one that opens ports does."""
    flows = judge.datapath._maps["flows"]
    judge.begin(PLAN)
    assert flows.get(u32(SLOT)) is None
    judge.datapath.change(SLOT, replace(PLAN, inbound=Inbound.ALL))
    assert flows.get(u32(SLOT)) is not None


def test_fragments_follow_their_first(judge: Judge) -> None:
    """Later fragments come in after a first one that was let in, and not by themselves."""
    judge.begin(LINK)
    first, later = (far4(udp(bytes(64), 80, 4000), UDP, fragment=f) for f in (0x2000, 9))
    assert judge.received(later) is judge.received(first) is REFUSED
    assert judge.sent(ip4(ipv4(udp(b"", 4000, 80)))) is None
    assert judge.received(later) is REFUSED
    assert judge.received(first) is judge.received(later) is None


def test_jobs_elsewhere_are_peers_by_their_address(judge: Judge) -> None:
    """In the networks of jobs a listed address passes if both agree; others are nobody's."""
    here, there = IPv4Address("198.18.20.10"), IPv4Address("198.18.20.11")
    networks = [ip_network("198.18.20.0/24")]
    judge.datapath.set_classes({"wide": ["198.18.0.0/15"]}, PEERS, GATEWAYS, networks)
    to, of = ipv4(syn(1, 2), TCP, JOB4, str(there)), ipv4(syn(2, 1), TCP, str(there), JOB4)
    judge.datapath.remote_jobs.set({here: RemoteJob("alice", "", Peers.ALL)})
    denied = DropReason.PEER_DENIED
    for peers, owner, agree in (
        (Peers.OWNER, "alice", True), (Peers.OWNER, "bob", False), (Peers.NONE, "alice", False),
        (Peers.ALL, "bob", True), (Peers.GROUP, "alice", False),
    ):  # fmt: skip
        for plan in (PLAN, LINK):
            mode = Peers.ALL if peers is Peers.ALL else Peers.OWNER
            judge.begin(replace(plan, peers=mode, owner="alice"))
            judge.datapath.remote_jobs.set({})
            assert judge.sent(ip4(to)) is judge.received(back(ip4(of))) is denied
            judge.datapath.remote_jobs.set({there: RemoteJob(owner, "", peers)})
            expected = None if agree else denied
            assert judge.sent(ip4(to)) is expected
            assert judge.received(back(ip4(of))) is expected


def test_discovery_cannot_hide_behind_any_number_of_headers(judge: Judge) -> None:
    """What is wrapped in more extension headers than are followed is dropped, lies or not."""
    lie = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + socket.inet_pton(
        socket.AF_INET6, "2001:db8::1"
    )
    for number in (1, 7, 8, 9, 20):
        wrapped = extension(60) * (number - 1) + extension(ICMPV6) + lie + option(2)
        frame = ip6(ipv6(wrapped, 60, JOB6, FAR6, hops=255))
        judge.begin(LINK)
        assert judge.sent(frame) is MALFORMED, number
        judge.begin(PLAN)
        datagram = extension(60) * (number - 1) + extension(UDP) + udp(bytes(8))
        expected = None if number <= 8 else MALFORMED
        assert judge.sent(ip6(ipv6(datagram, 60, JOB6, FAR6))) is expected, number
