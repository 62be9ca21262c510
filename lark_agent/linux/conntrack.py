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
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address

_NETFILTER = 12
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_TUPLE_ORIG, _TUPLE_REPLY, _FILTER, _ID = 1, 2, 25, 12
_TUPLE_IP, _IP_V4_SRC, _IP_V6_SRC = 1, 1, 3
_FILTER_FLAGS = {_TUPLE_ORIG: 1, _TUPLE_REPLY: 2}
_FLAG_IP_SRC = 1 << 0


def forget(addresses: set[IPv4Address | IPv6Address]) -> int:
    """Delete the entries that one of `addresses` originated; returns how many (CAP_NET_ADMIN)."""
    return _forget(addresses, _TUPLE_ORIG)


def forget_incoming(addresses: set[IPv4Address | IPv6Address]) -> int:
    """Delete the entries that others originated to one of `addresses`, as `forget`."""
    return _forget(addresses, _TUPLE_REPLY)


def _forget(addresses: set[IPv4Address | IPv6Address], side: int) -> int:
    deleted = 0
    with Netlink(_NETFILTER) as netlink:
        for original, entry_id, family in _entries(netlink, addresses, side):
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
) -> list[tuple[bytes, bytes, int]]:
    """Return original tuple, id and family of entries with such a source on one side."""
    found: list[tuple[bytes, bytes, int]] = []
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
) -> Iterator[tuple[bytes, bytes, int]]:
    for message in messages:
        fields = dict(attributes(message[4:]))
        original = fields.get(_TUPLE_ORIG, b"")
        of_side = dict(attributes(fields.get(side, b"")))
        ip = dict(attributes(of_side.get(_TUPLE_IP, b"")))
        if ip.get(source) in wanted and _ID in fields:
            yield original, fields[_ID], family
