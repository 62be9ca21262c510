"""Forget the connections of an address.

A sandbox's address is used again by a later job; what connection tracking still remembers of the
earlier one must go first, or the later job inherits its translations. An entry is deleted by
echoing the original tuple from a dump. Of connections that others began, the address is the source
of the answers: with translation, the original tuple does not have it at all.

The kernel (5.8+) can filter a dump by source address, which older ones ignore, so the filter is
repeated here. It is not asked to for IPv6, where its comparison is the wrong way round: entries of
the address are left out, all others are given (ctnetlink_filter_match_tuple() takes the result 0 of
ipv6_addr_cmp(), equal, for different). One whole dump then serves all IPv6 addresses.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from lark_agent.errors import KernelError
from lark_agent.linux.netlink import Netlink, attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from lark_agent.model import Port

_NETFILTER = 12
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_TUPLE_ORIG, _TUPLE_REPLY, _FILTER, _ID = 1, 2, 25, 12
_TUPLE_IP, _IP_V4_SRC, _IP_V6_SRC = 1, 1, 3
_TUPLE_PROTO, _PROTO_NUM, _PROTO_SRC_PORT = 2, 1, 2
_FILTER_FLAGS = {_TUPLE_ORIG: 1, _TUPLE_REPLY: 2}
_FLAG_IP_SRC = 1 << 0


def forget(addresses: set[IPv4Address | IPv6Address]) -> int:
    """Delete the entries that one of `addresses` originated; returns how many (CAP_NET_ADMIN)."""
    return _forget(addresses, _TUPLE_ORIG)


def forget_incoming(addresses: set[IPv4Address | IPv6Address], kept: Collection[Port] = ()) -> int:
    """Delete the entries that others originated to one of `addresses`, but to its ports `kept`."""
    return _forget(addresses, _TUPLE_REPLY, {port.on_wire for port in kept})


def _forget(
    addresses: set[IPv4Address | IPv6Address],
    side: int,
    kept: Collection[tuple[int, int]] = (),
) -> int:
    deleted = 0
    with Netlink(_NETFILTER) as netlink:
        for original, entry_id, family, port in _entries(netlink, addresses, side):
            if port in kept:
                continue
            body = struct.pack("=BBH", family, 0, 0)
            body += attribute(_TUPLE_ORIG, original, nested=True) + attribute(_ID, entry_id)
            try:
                netlink.call(_DELETE, body, "deleting a connection")
                deleted += 1
            except KernelError:
                continue  # it ended by itself between the dump and now
    return deleted


def _entries(
    netlink: Netlink, addresses: set[IPv4Address | IPv6Address], side: int
) -> list[tuple[bytes, bytes, int, tuple[int, int]]]:
    """Return original tuple, id, family, and the port of `side`'s source, of its entries."""
    found: list[tuple[bytes, bytes, int, tuple[int, int]]] = []
    for address in addresses:
        if address.version == 4:
            tried = f"listing the connections of {address}"
            messages = netlink.dump(_GET, _from(address.packed, side), tried)
            found += _chosen(messages, socket.AF_INET, side, _IP_V4_SRC, {address.packed})
    wanted = {address.packed for address in addresses if address.version == 6}
    if wanted:
        everything = struct.pack("=BBH", socket.AF_INET6, 0, 0)
        messages = netlink.dump(_GET, everything, "listing IPv6 connections")
        found += _chosen(messages, socket.AF_INET6, side, _IP_V6_SRC, wanted)
    return found


def _from(source: bytes, side: int) -> bytes:
    """Pack a request for the entries of one IPv4 source."""
    wanted = attribute(_TUPLE_IP, attribute(_IP_V4_SRC, source), nested=True)
    flags = attribute(_FILTER_FLAGS[side], struct.pack("=I", _FLAG_IP_SRC))
    return (
        struct.pack("=BBH", socket.AF_INET, 0, 0)
        + attribute(side, wanted, nested=True)
        + attribute(_FILTER, flags, nested=True)
    )


def _chosen(
    messages: list[bytes], family: int, side: int, source: int, wanted: set[bytes]
) -> Iterator[tuple[bytes, bytes, int, tuple[int, int]]]:
    for message in messages:
        fields = dict(attributes(message[4:]))
        original = fields.get(_TUPLE_ORIG, b"")
        of_side = dict(attributes(fields.get(side, b"")))
        ip = dict(attributes(of_side.get(_TUPLE_IP, b"")))
        if ip.get(source) in wanted and _ID in fields:
            yield original, fields[_ID], family, _source_port(of_side.get(_TUPLE_PROTO, b""))


def _source_port(transport: bytes) -> tuple[int, int]:
    """Return protocol and source port of a tuple; 0 where there is none."""
    fields = dict(attributes(transport))
    number = int.from_bytes(fields.get(_PROTO_NUM, b""), "big")
    return number, int.from_bytes(fields.get(_PROTO_SRC_PORT, b""), "big")
