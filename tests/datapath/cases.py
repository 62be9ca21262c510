"""What each frame must come to: one table, read by the tests of both loaders and both directions.

A case is a frame with the reason it must be dropped for (None: it passes) and what it must count.
The counts are worked out by hand from the RFCs and the rule of the wire, not by the programs' own
arithmetic.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from lark_agent.model import Count, DropReason
from tests.datapath.frames import (
    ICMP,
    SCTP,
    TCP,
    UDP,
    arp,
    ethernet,
    extension,
    ip4,
    ip6,
    ipv4,
    ipv6,
    routing,
    tcp,
    udp,
)
from tests.datapath.network import FAR4, FAR6, HOST_MAC, JOB4, JOB6, JOB_MAC
from tests.datapath.testrun import Frame

STRANGE_MAC = bytes.fromhex("020000000001")
DENIED4, DENIED6 = "203.0.113.7", "2001:db8:dead::7"
PEER4, PEER6 = "100.98.0.9", "fd6c:6172:6b00::9"


class Case(NamedTuple):
    name: str
    frame: Frame
    reason: DropReason | None
    counted: Count
    non_ip: bool = False


def sent(payload: bytes, reason: DropReason, name: str, size: int) -> Case:
    return Case(name, Frame(payload), reason, Count(1, size))


def to(address: str, reason: DropReason) -> Case:
    family6 = ":" in address
    frame = ip6(ipv6(destination=address)) if family6 else ip4(ipv4(destination=address))
    return sent(frame, reason, f"to {address}", 104 if family6 else 84)


def first_of_two(following: int) -> bytes:
    """Build the fragment header of a first fragment."""
    return bytes([following, 0, 0, 1, 0, 0, 0, 9])


THREE = (extension(60, 2), extension(43), routing(TCP, 0))

LOOSE = bytes([131, 7, 4]) + socket.inet_aton(DENIED4)  # RFC 791
STRICT = bytes([137, 7, 4]) + socket.inet_aton(DENIED4)

SIZES = [
    Case("udp4", Frame(ip4(ipv4())), None, Count(1, 84)),
    Case("udp6", Frame(ip6(ipv6())), None, Count(1, 104)),
    Case("padded4", Frame(ip4(ipv4(bytes(1)) + bytes(25))), None, Count(1, 21)),
    Case("padded6", Frame(ip6(ipv6(bytes(1)) + bytes(25))), None, Count(1, 41)),
    Case("empty6", Frame(ip6(ipv6(b"", 59))), None, Count(1, 40)),
    Case("options4", Frame(ip4(ipv4(options=bytes([7, 39, 4]) + bytes(37)))), None, Count(1, 124)),
    Case("first fragment", Frame(ip4(ipv4(fragment=0x2000))), None, Count(1, 84)),
    Case("last fragment", Frame(ip4(ipv4(fragment=0x00B9))), None, Count(1, 84)),
    # payload 1000 in segments of 300: four packets, so three further headers
    Case("tcp4", Frame(ip4(ipv4(tcp(bytes(1000)), TCP)), 300, 4), None, Count(4, 1000 + 4 * 40)),
    Case("tcp4 no count", Frame(ip4(ipv4(tcp(bytes(1000)), TCP)), 300), None, Count(4, 1160)),
    Case("tcp4 lie", Frame(ip4(ipv4(tcp(bytes(1000)), TCP)), 300, 9), None, Count(4, 1160)),
    Case("tcp4 exact", Frame(ip4(ipv4(tcp(bytes(900)), TCP)), 300, 3), None, Count(3, 1020)),
    Case("tcp4 single", Frame(ip4(ipv4(tcp(bytes(200)), TCP)), 300, 1), None, Count(1, 240)),
    Case("tcp4 bytes", Frame(ip4(ipv4(tcp(bytes(50)), TCP)), 1, 50), None, Count(50, 50 * 41)),
    Case(
        "tcp4 options",
        Frame(ip4(ipv4(tcp(bytes(1000), bytes(12)), TCP, options=bytes(8))), 300),
        None,
        Count(4, 1000 + 4 * (20 + 8 + 20 + 12)),
    ),
    Case("tcp4 padded", Frame(ip4(ipv4(tcp(bytes(1000)), TCP) + bytes(9)), 300), None,
         Count(4, 1160)),
    Case("tcp4 big", Frame(ip4(ipv4(tcp(bytes(1000)), TCP, length=0)), 300), None, Count(4, 1160)),
    Case("udp4 cut", Frame(ip4(ipv4(udp(bytes(1000)))), 300, 4), None, Count(4, 1000 + 4 * 28)),
    Case("sctp4", Frame(ip4(ipv4(bytes(12 + 1000), SCTP)), 0xFFFF, 4), None,
         Count(4, 1000 + 4 * 32)),
    Case("tcp6", Frame(ip6(ipv6(tcp(bytes(1000)), TCP)), 300, 4), None, Count(4, 1000 + 4 * 60)),
    Case("udp6 cut", Frame(ip6(ipv6(udp(bytes(1000)))), 300, 4), None, Count(4, 1000 + 4 * 48)),
    Case(
        "tcp6 behind extensions",
        Frame(ip6(ipv6(b"".join(THREE) + tcp(bytes(1000)), 0)), 300),
        None,
        Count(4, 1000 + 4 * (60 + 24 + 8 + 24)),
    ),
    Case(
        "tcp6 big",  # RFC 2675; the kernel takes its own jumbo option out when it cuts
        Frame(
            ip6(ipv6(bytes([TCP, 0, 0xC2, 4, 0, 0, 4, 8]) + tcp(bytes(1000)), 0, length=0)), 300
        ),
        None,
        Count(4, 1000 + 4 * 60),
    ),
    Case("arp", Frame(arp()), None, Count(1, 28), non_ip=True),
]  # fmt: skip

HOSTILE = [
    sent(ip4(ipv4(), source=STRANGE_MAC), DropReason.SPOOFED_MAC, "mac4", 84),
    sent(ip6(ipv6(), source=STRANGE_MAC), DropReason.SPOOFED_MAC, "mac6", 104),
    sent(ip4(ipv4(source="100.98.0.6")), DropReason.SPOOFED_ADDRESS, "neighbour4", 84),
    sent(ip4(ipv4(source=FAR4)), DropReason.SPOOFED_ADDRESS, "far4", 84),
    sent(ip6(ipv6(source=FAR6)), DropReason.SPOOFED_ADDRESS, "far6", 104),
    sent(ip6(ipv6(source="fe80::1")), DropReason.SPOOFED_ADDRESS, "link-local", 104),
    sent(ip6(ipv6(source="::")), DropReason.SPOOFED_ADDRESS, "unspecified", 104),
    sent(arp(mac=STRANGE_MAC), DropReason.SPOOFED_MAC, "arp mac", 28),
    sent(arp(link_source=STRANGE_MAC), DropReason.SPOOFED_MAC, "arp frame mac", 28),
    sent(arp(address="100.98.0.1"), DropReason.SPOOFED_ADDRESS, "arp gateway", 28),
    sent(arp(hardware=6), DropReason.MALFORMED, "arp hardware", 28),
    sent(arp()[:30], DropReason.MALFORMED, "arp cut", 16),
    sent(ip4(ipv4(), destination=STRANGE_MAC), DropReason.LINK_LAYER, "for another mac", 84),
    sent(ip4(ipv4(), destination=b"\xff" * 6), DropReason.LINK_LAYER, "broadcast mac", 84),
    sent(ethernet(bytes(46), 0x88CC), DropReason.LINK_LAYER, "lldp", 46),
    sent(ethernet(bytes(46), 0x8847), DropReason.LINK_LAYER, "mpls", 46),
    sent(ethernet(bytes(46), 46), DropReason.LINK_LAYER, "802.3", 46),
    sent(ip4(ipv4(size=4)), DropReason.MALFORMED, "header of 16", 84),
    sent(ip4(ipv4(size=15, length=40)), DropReason.MALFORMED, "header over total", 84),
    sent(ip4(ipv4(length=19)), DropReason.MALFORMED, "total of 19", 84),
    sent(ip4(ipv4(length=85)), DropReason.MALFORMED, "total over frame", 84),
    sent(ip4(ipv4(length=0)), DropReason.MALFORMED, "total of 0", 84),
    sent(ip4(ipv4(version=6)), DropReason.MALFORMED, "version 6 in 4", 84),
    sent(ip4(ipv4(wrong_checksum=True)), DropReason.MALFORMED, "checksum", 84),
    sent(ip6(ipv6(length=65)), DropReason.MALFORMED, "payload over frame", 104),
    sent(ip6(ipv6(version=4)), DropReason.MALFORMED, "version 4 in 6", 104),
    sent(ip6(ipv6(extension(59, 6), 0, length=0)), DropReason.MALFORMED, "rider", 96),
    sent(ip6(ipv6(length=0)), DropReason.MALFORMED, "rider without options", 104),
    Case("cut fragment", Frame(ip4(ipv4(tcp(bytes(900)), TCP, fragment=185)), 300),
         DropReason.MALFORMED, Count(1, 940)),
    Case("cut icmp", Frame(ip4(ipv4(bytes(900), ICMP)), 300), DropReason.MALFORMED, Count(1, 920)),
    Case("tcp offset", Frame(ip4(ipv4(tcp(bytes(900), words=4), TCP)), 300),
         DropReason.MALFORMED, Count(1, 940)),
    to("127.0.0.1", DropReason.MARTIAN),
    to("0.1.2.3", DropReason.MARTIAN),
    to("224.0.0.251", DropReason.MARTIAN),
    to("255.255.255.255", DropReason.MARTIAN),
    to("::1", DropReason.MARTIAN),
    to("::ffff:198.51.100.2", DropReason.MARTIAN),
    to("ff02::1", DropReason.MARTIAN),
    to("ff0e::1", DropReason.MARTIAN),
    to("fe80::1", DropReason.MARTIAN),
    sent(ip4(ipv4(options=LOOSE + b"\1")), DropReason.CLASS_DENIED, "loose route", 92),
    sent(ip4(ipv4(options=STRICT + b"\0")), DropReason.CLASS_DENIED, "strict route", 92),
    sent(ip4(ipv4(options=b"\1" + LOOSE)), DropReason.CLASS_DENIED, "route behind padding", 92),
    sent(ip4(ipv4(options=bytes([7, 7, 4]) + bytes(4) + b"\1" + LOOSE + b"\0")),
         DropReason.CLASS_DENIED, "route behind an option", 100),
    sent(ip4(ipv4(options=b"\1" * 12 + LOOSE + b"\0")), DropReason.MALFORMED, "much padding", 104),
    sent(ip4(ipv4(options=bytes([7, 0, 4, 0]))), DropReason.MALFORMED, "option of no length", 88),
    sent(ip6(ipv6(routing(UDP, 1) + bytes(64), 43)), DropReason.CLASS_DENIED, "segment route", 128),
    sent(ip6(ipv6(routing(UDP, 1, 0) + bytes(64), 43)), DropReason.CLASS_DENIED, "type 0", 128),
    sent(ip6(ipv6(extension(43) + routing(UDP, 1) + bytes(64), 60)), DropReason.CLASS_DENIED,
         "segment route behind options", 136),
    sent(ip6(ipv6(first_of_two(43) + routing(UDP, 1) + bytes(64), 44)), DropReason.CLASS_DENIED,
         "segment route in a fragment", 136),
    sent(ip6(ipv6(first_of_two(60) + extension(43), 44) + extension(UDP)), DropReason.MALFORMED,
         "segment route in the next fragment", 64),
    sent(ip6(ipv6(extension(60) * 8 + extension(43) + routing(UDP, 1), 60)),
         DropReason.MALFORMED, "segment route behind too much", 136),
    to(PEER4, DropReason.PEER_DENIED),
    to("100.98.255.255", DropReason.PEER_DENIED),
    to(PEER6, DropReason.PEER_DENIED),
    to(DENIED4, DropReason.CLASS_DENIED),
    to(DENIED6, DropReason.CLASS_DENIED),
]  # fmt: skip


CUT = [
    # test runs refuse these, so they come over the wire only
    sent(ip4(ipv4()[:19]), DropReason.MALFORMED, "cut4", 19),
    sent(ip6(ipv6()[:39]), DropReason.MALFORMED, "cut6", 39),
]


def back(frame: bytes) -> bytes:
    """Address a frame from the host to the job."""
    return JOB_MAC + HOST_MAC + frame[12:]


def coming(packet: bytes, reason: DropReason | None, name: str, size: int) -> Case:
    frame = ip6(packet) if packet[0] >> 4 == 6 else ip4(packet)
    return Case(name, Frame(back(frame)), reason, Count(1, size))


INBOUND = [
    coming(ipv4(source=FAR4, destination=JOB4), None, "from far4", 84),
    coming(ipv6(source=FAR6, destination=JOB6), None, "from far6", 104),
    coming(ipv4(source="100.98.0.1", destination=JOB4), DropReason.INBOUND_DENIED, "gateway4", 84),
    coming(ipv6(source="fd6c:6172:6b00::1", destination=JOB6), DropReason.INBOUND_DENIED,
           "gateway6", 104),
    Case("merged", Frame(back(ip4(ipv4(tcp(bytes(1000)), TCP, FAR4, JOB4))), 300, 4), None,
         Count(4, 1160)),
    coming(ipv4(source=FAR4, destination="100.98.0.6"), DropReason.SPOOFED_ADDRESS, "misled", 84),
    coming(ipv4(source=PEER4, destination=JOB4), DropReason.PEER_DENIED, "from peer4", 84),
    coming(ipv6(source=PEER6, destination=JOB6), DropReason.PEER_DENIED, "from peer6", 104),
    coming(ipv4(source=DENIED4, destination=JOB4), DropReason.CLASS_DENIED, "denied4", 84),
    coming(ipv4(source="127.0.0.1", destination=JOB4), DropReason.MARTIAN, "from loopback", 84),
    coming(ipv6(source="fe80::1", destination="ff02::1"), DropReason.MARTIAN, "host mld", 104),
    Case("arp in", Frame(back(arp())), None, Count(1, 28), non_ip=True),
    Case("lldp in", Frame(back(ethernet(bytes(46), 0x88CC))), DropReason.LINK_LAYER, Count(1, 46)),
]  # fmt: skip
