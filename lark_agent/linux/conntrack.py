"""Forget the connections of an address.

A sandbox's address is used again by a later job; what connection tracking still remembers of the
earlier one must go first, or the later job inherits its translations. The kernel (5.8+) filters
the dump by source address; older ones return everything and the filter is repeated here. An entry
is deleted by echoing the original tuple from the dump.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from lark_agent.errors import KernelError
from lark_agent.linux.netlink import Netlink, attribute, attributes

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

_NETFILTER = 12
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_TUPLE_ORIG, _FILTER, _ID = 1, 25, 12
_TUPLE_IP, _IP_V4_SRC, _IP_V6_SRC = 1, 1, 3
_FILTER_ORIG_FLAGS, _FLAG_IP_SRC = 1, 1 << 0


def forget(addresses: set[IPv4Address | IPv6Address]) -> int:
    """Delete the entries that one of `addresses` originated; returns how many (CAP_NET_ADMIN)."""
    deleted = 0
    with Netlink(_NETFILTER) as netlink:
        for address in addresses:
            for family, tuple_orig, entry_id in _entries(netlink, address):
                body = struct.pack("=BBH", family, 0, 0)
                body += attribute(_TUPLE_ORIG, tuple_orig, nested=True) + attribute(_ID, entry_id)
                try:
                    netlink.call(_DELETE, body, f"deleting a connection of {address}")
                    deleted += 1
                except KernelError:
                    continue  # it ended by itself between the dump and now
    return deleted


def _entries(
    netlink: Netlink, address: IPv4Address | IPv6Address
) -> list[tuple[int, bytes, bytes]]:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    source = _IP_V4_SRC if address.version == 4 else _IP_V6_SRC
    wanted = attribute(source, address.packed)
    body = struct.pack("=BBH", family, 0, 0)
    body += attribute(_TUPLE_ORIG, attribute(_TUPLE_IP, wanted, nested=True), nested=True)
    flags = struct.pack("=I", _FLAG_IP_SRC)
    body += attribute(_FILTER, attribute(_FILTER_ORIG_FLAGS, flags), nested=True)
    found: list[tuple[int, bytes, bytes]] = []
    for message in netlink.dump(_GET, body, f"listing the connections of {address}"):
        fields = dict(attributes(message[4:]))
        original = fields.get(_TUPLE_ORIG, b"")
        ip = dict(attributes(dict(attributes(original)).get(_TUPLE_IP, b"")))
        if ip.get(source) == address.packed and _ID in fields:
            found.append((family, original, fields[_ID]))
    return found
