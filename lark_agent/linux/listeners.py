"""Where a process listens on the loopback: what the kernel says, never the process.

The kernel lists the listening sockets of the namespace by inode (sock_diag), and /proc says which
inodes a process has open; what is in both and bound to 127.0.0.1 itself is a TCP service of that
process for local clients. A socket that listens on every address is not: it is for the world, and
has other means to be reached. Source: include/uapi/linux/inet_diag.h, proc_pid_fd(5).

A job waits for the answer, so the descriptors are looked at first: a process without sockets costs
no dump, and the kernel leaves out all that is not TCP over IPv4 in state LISTEN.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from lark_agent.linux.netlink import Netlink

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOCK_DIAG, _DIAG_BY_FAMILY, _LISTEN = 4, 20, 1 << 10
_REQUEST = struct.Struct("=BBBBI48s")  # family, protocol, extensions, pad, states, socket id
_PORT, _ADDRESS, _INODE = struct.Struct("!H"), slice(8, 12), struct.Struct("=I")
_PORT_OFFSET, _INODE_OFFSET = 4, 68  # in struct inet_diag_msg
_LOCALHOST = socket.inet_aton("127.0.0.1")
_SOCKET = "socket:["


def on_loopback(pid: int) -> frozenset[int]:
    """Return the ports of 127.0.0.1 on which a process listens, in the caller's network namespace.

    Empty if it is gone. Raises KernelError if the kernel does not list its sockets. Privilege:
    CAP_SYS_PTRACE, for descriptors of others.
    """
    inodes = frozenset(_sockets(pid))
    if not inodes:
        return frozenset()
    request = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0, _LISTEN, b"")
    with Netlink(_SOCK_DIAG) as netlink:
        found = netlink.dump(_DIAG_BY_FAMILY, request, "listing listening sockets")
    return frozenset(
        _PORT.unpack_from(message, _PORT_OFFSET)[0]
        for message in found
        if message[_ADDRESS] == _LOCALHOST
        and _INODE.unpack_from(message, _INODE_OFFSET)[0] in inodes
    )


def _sockets(pid: int) -> Iterator[int]:
    """Yield the inodes of a process's sockets."""
    directory = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(directory)  # noqa: PTH208  a job waits: no objects for each entry
    except OSError:  # it has ended
        return
    for descriptor in descriptors:
        try:
            target = os.readlink(f"{directory}/{descriptor}")  # noqa: PTH115  the same
        except OSError:  # closed just now
            continue
        if target.startswith(_SOCKET):
            yield int(target[len(_SOCKET) : -1])
