"""Which TCP connections of a network namespace still have something to deliver.

After a process ends, the kernel goes on sending what it had written and exchanges the closing
handshake: such sockets have no owner any more (inode 0). Sockets that belong to living processes,
listeners, and connections that only wait out their TIME_WAIT do not count. Source: inet_diag,
include/uapi/linux/inet_diag.h.
"""

from __future__ import annotations

import socket
import struct

from lark_agent.linux.netlink import Netlink

_SOCK_DIAG, _DIAG_BY_FAMILY = 4, 20
# FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING and ESTABLISHED: states in which an orphan
# still expects segments (net/tcp_states.h)
_STATES = sum(1 << state for state in (1, 4, 5, 8, 9, 11))
_REQUEST = struct.Struct("=BBBBI48s")  # family, protocol, extensions, pad, states, socket id
_INODE_OFFSET = 68  # struct inet_diag_msg: idiag_inode is its last member


def undelivered() -> int:
    """Count the ownerless TCP connections of the calling thread's network namespace."""
    count = 0
    with Netlink(_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _STATES, b"")
            for message in netlink.dump(_DIAG_BY_FAMILY, request, "listing TCP sockets"):
                (inode,) = struct.unpack_from("=I", message, _INODE_OFFSET)
                count += inode == 0
    return count
