"""What this network namespace takes for itself: every address that is delivered here.

That is what the kernel's table `local` says: addresses of all interfaces, broadcasts, IPv6 subnet
anycast where the machine forwards, and prefixes that somebody routed to it on purpose. A list of
interface addresses would miss the last three.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING

from lark_agent.linux.netlink import Netlink, attributes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

Network = IPv4Network | IPv6Network
_NETLINK_ROUTE = 0
_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 24, 25, 26
_GROUPS = 1 << (7 - 1) | 1 << (11 - 1)  # RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_HEADER = struct.Struct("=IHHII")
_DESTINATION, _TABLE_LOCAL = 1, 255
_HERE = {2, 3, 4}
"""RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST."""


def networks() -> frozenset[Network]:
    """Return all of it, but what means something on one link or host only; raises KernelError."""
    with Netlink(_NETLINK_ROUTE) as netlink:
        found = [
            network
            for family in (socket.AF_INET, socket.AF_INET6)
            for message in netlink.dump(
                _GET_ROUTE, _ROUTE.pack(family, *[0] * 8), "listing local addresses"
            )
            if (network := _network(message)) is not None
        ]
    return frozenset(found)


def watch() -> socket.socket:
    """Return a non-blocking socket that becomes readable when a route changes."""
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
    events.bind((0, _GROUPS))
    events.setblocking(False)
    return events


def has_changed(events: socket.socket, known: Collection[Network]) -> bool:
    """Read what `watch` has; tells whether anything but `known` networks came or went."""
    changed = False
    while True:
        try:
            data = events.recv(1 << 16)
        except BlockingIOError:
            return changed
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            changed = True  # events were lost
            continue
        changed |= any(network not in known for network in _in_events(data))


def _in_events(data: bytes) -> Iterator[Network]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if kind in {_NEW_ROUTE, _DELETE_ROUTE}:
            network = _network(data[offset + _HEADER.size : offset + length])
            if network is not None:
                yield network
        offset += max(_HEADER.size, (length + 3) & ~3)


def _network(message: bytes) -> Network | None:
    """Return what a route delivers here, None for other routes and what is none."""
    if len(message) < _ROUTE.size:
        return None
    _, bits, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(message)
    if table != _TABLE_LOCAL or kind not in _HERE:
        return None
    packed = dict(attributes(message[_ROUTE.size :])).get(_DESTINATION, b"")
    if len(packed) not in {4, 16} or bits > 8 * len(packed):
        return None
    network = ip_network((packed, bits), strict=False)
    only_link = network.version == 6 and network.is_link_local
    return None if network.is_loopback or network.is_multicast or only_link else network
