"""The sockets that a job has left in its network namespace: seen, aborted, silenced.

After a process ends, the kernel goes on sending what it had written and exchanges the closing
handshake: such connections have no owner any more (inode 0) and are *undelivered*. Connections that
only wait out their TIME_WAIT do not count.

Sockets with an owner belong to processes that outlive the job or are just being killed. They are
aborted with SOCK_DESTROY, by id and cookie: TCP tells its peer with an RST, unaccepted connections
go with their listener, a UDP socket is disconnected. The owner gets ECONNABORTED and may open
others; `silence` puts a blackhole before the routing tables, which ends all sending and leaves
receiving as it is. Source: include/uapi/linux/{inet_diag,sock_diag,fib_rules}.h.

A job without a namespace of its own is told from others by the control group of its sockets, which
the kernel says since Linux 5.9 (INET_DIAG_CGROUP_ID); before that none is found to be its.

A kernel without CONFIG_INET_DIAG_DESTROY, CONFIG_INET_UDP_DIAG or policy routing refuses its part;
the rest is done.
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from lark_agent.errors import KernelError
from lark_agent.linux.netlink import Netlink, attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Collection

_ROUTE, _SOCK_DIAG = 0, 4
_DIAG_BY_FAMILY, _DESTROY, _NEW_RULE = 20, 21, 32
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
# FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING and ESTABLISHED: states in which an orphan
# still expects segments (net/tcp_states.h)
_EXPECTING = sum(1 << state for state in (1, 4, 5, 8, 9, 11))
_OPENING = 1 << 2 | 1 << 10  # SYN_SENT and LISTEN, which only an owner has
_ANY_STATE = 0xFFF
_REQUEST = struct.Struct("=BBBBI48s")  # family, protocol, extensions, pad, states, socket id
# struct inet_diag_msg: family, state, two timers; socket id with cookie; …; inode as last member
_ID, _INODE_OFFSET, _ATTRIBUTES = slice(4, 52), 68, 72
_CGROUP_ID = 21
_RULE = struct.Struct("=BBBBBxxBI")  # struct fib_rule_hdr
_BLACKHOLE, _PRIORITY = 6, 6  # FR_ACT_BLACKHOLE, FRA_PRIORITY


class Remains(NamedTuple):
    """What `abort` found."""

    undelivered: int
    """TCP connections without an owner."""
    owned: int
    """Sockets of processes, before they were aborted."""


def undelivered() -> int:
    """Count the ownerless TCP connections of the calling thread's network namespace."""
    with Netlink(_SOCK_DIAG) as netlink:
        return sum(inode == 0 for _, _, inode in _tcp(netlink, _EXPECTING))


def abort(groups: Collection[int] | None = None) -> Remains:
    """Abort the TCP and UDP sockets that processes have in the calling thread's network namespace.

    With `groups` only those that belong to one of these control groups are looked at. Ownerless
    connections are left to deliver. Privilege: CAP_NET_ADMIN in the namespace. Raises KernelError
    if TCP sockets cannot be listed.
    """
    with Netlink(_SOCK_DIAG) as netlink:
        connections = _tcp(netlink, _EXPECTING | _OPENING, groups)
        owned = [(family, socket.IPPROTO_TCP, name) for family, name, inode in connections if inode]
        count = len(connections) - len(owned)
        with suppress(KernelError):  # no CONFIG_INET_UDP_DIAG
            owned += [
                (family, socket.IPPROTO_UDP, name)
                for family, name, inode in _list(netlink, socket.IPPROTO_UDP, _ANY_STATE, groups)
                if inode
            ]
        for family, protocol, name in owned:
            request = _REQUEST.pack(family, protocol, 0, 0, _ANY_STATE, name)
            with suppress(KernelError):  # closed meanwhile, or no CONFIG_INET_DIAG_DESTROY
                netlink.call(_DESTROY, request, "aborting a socket")
    return Remains(count, len(owned))


def silence() -> None:
    """Let nothing be routed out of the calling thread's network namespace any more.

    Packets for the namespace's own addresses still arrive. Privilege: CAP_NET_ADMIN in it.
    """
    with Netlink(_ROUTE) as netlink:
        for family in _FAMILIES:
            rule = _RULE.pack(family, 0, 0, 0, 0, _BLACKHOLE, 0)
            first = attribute(_PRIORITY, struct.pack("=I", 1))  # only the table `local` is before
            with suppress(KernelError):  # no CONFIG_IP(V6)_MULTIPLE_TABLES, or no IPv6
                netlink.call(_NEW_RULE, rule + first, "adding a blackhole rule")


def _tcp(
    netlink: Netlink, states: int, groups: Collection[int] | None = None
) -> list[tuple[int, bytes, int]]:
    return _list(netlink, socket.IPPROTO_TCP, states, groups)


def _list(
    netlink: Netlink, protocol: int, states: int, groups: Collection[int] | None
) -> list[tuple[int, bytes, int]]:
    """Return family, id and inode of the sockets of a protocol in any of `states`."""
    found: list[tuple[int, bytes, int]] = []
    for family in _FAMILIES:
        request = _REQUEST.pack(family, protocol, 0, 0, states, b"")
        for message in netlink.dump(_DIAG_BY_FAMILY, request, "listing sockets"):
            if groups is not None and _group(message) not in groups:
                continue
            (inode,) = struct.unpack_from("=I", message, _INODE_OFFSET)
            found.append((family, message[_ID], inode))
    return found


def _group(message: bytes) -> int:
    """Return the control group of a socket, 0 if the kernel does not say."""
    for kind, payload in attributes(message[_ATTRIBUTES:]):
        if kind == _CGROUP_ID:
            return int.from_bytes(payload, sys.byteorder)
    return 0
