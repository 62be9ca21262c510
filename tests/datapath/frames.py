"""Frames built by hand, for what no honest stack would send."""

from __future__ import annotations

import socket
import struct

from tests.datapath.network import FAR4, FAR6, HOST_MAC, JOB4, JOB6, JOB_MAC

TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132


def ethernet(
    payload: bytes, kind: int, source: bytes = JOB_MAC, destination: bytes = HOST_MAC
) -> bytes:
    return destination + source + struct.pack("!H", kind) + payload


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ipv4(
    payload: bytes = bytes(64), protocol: int = UDP, source: str = JOB4, destination: str = FAR4,
    *, options: bytes = b"", size: int | None = None, length: int | None = None, version: int = 4,
    fragment: int = 0, wrong_checksum: bool = False, service: int = 0,
) -> bytes:  # fmt: skip
    """Build a packet; `size` is the header length in words, `length` the total that it claims."""
    words = 5 + len(options) // 4 if size is None else size
    total = 20 + len(options) + len(payload) if length is None else length

    def header(check: int) -> bytes:
        fields = (version << 4 | words, service, total, 1, fragment, 64, protocol, check)
        addresses = socket.inet_aton(source) + socket.inet_aton(destination)
        return struct.pack("!BBHHHBBH", *fields) + addresses + options

    check = checksum(header(0)) ^ wrong_checksum
    return header(check) + payload


def ipv6(
    payload: bytes = bytes(64), following: int = UDP, source: str = JOB6, destination: str = FAR6,
    *, length: int | None = None, version: int = 6, service: int = 0, flow_label: int = 0,
    hops: int = 64,
) -> bytes:  # fmt: skip
    size = len(payload) if length is None else length
    first = version << 28 | service << 20 | flow_label
    addresses = (socket.inet_pton(socket.AF_INET6, a) for a in (source, destination))
    return struct.pack("!IHBB", first, size, following, hops) + b"".join(addresses) + payload


def tcp(payload: bytes, options: bytes = b"", words: int | None = None) -> bytes:
    size = 5 + len(options) // 4 if words is None else words
    return struct.pack("!HHIIBBHHH", 1, 2, 3, 4, size << 4, 0x10, 100, 0, 0) + options + payload


def udp(payload: bytes, source: int = 1, destination: int = 2) -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def syn(source: int, destination: int) -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, 3, 0, 5 << 4, 2, 100, 0, 0)


def icmp(kind: int, identifier: int = 7, payload: bytes = bytes(8)) -> bytes:
    """Build ICMP or ICMPv6; no program reads its checksum."""
    return struct.pack("!BBHHH", kind, 0, 0, identifier, 1) + payload


def extension(following: int, units: int = 0) -> bytes:
    """Build an IPv6 extension header of 8 bytes and `units` times 8 more."""
    return bytes([following, units, 0x1E, 4 + 8 * units]) + bytes(4 + 8 * units)


def routing(following: int, left: int, kind: int = 4, way: str = FAR6) -> bytes:
    """Build a routing header with one address (kind 4: segment routing, RFC 8754)."""
    return bytes([following, 2, kind, left]) + bytes(4) + socket.inet_pton(socket.AF_INET6, way)


def arp(
    mac: bytes = JOB_MAC, address: str = JOB4, *, hardware: int = 1, link_source: bytes = JOB_MAC
) -> bytes:
    body = struct.pack("!HHBBH", hardware, 0x0800, 6, 4, 1) + mac + socket.inet_aton(address)
    question = body + bytes(6) + socket.inet_aton("100.98.0.1")
    return ethernet(question, 0x0806, link_source, b"\xff" * 6)


def ip4(packet: bytes, **link: bytes) -> bytes:
    return ethernet(packet, 0x0800, **link)


def ip6(packet: bytes, **link: bytes) -> bytes:
    return ethernet(packet, 0x86DD, **link)
