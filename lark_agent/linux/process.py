"""Processes by descriptor: who is at the other end of a socket, when it ends, and how.

A pid can be reused; a pidfd cannot. Everything read from /proc by number is checked against the
pidfd afterwards, or against the start time where only that was kept (after a restart).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from lark_agent.errors import KernelError

SO_PEERPIDFD = 77  # include/uapi/asm-generic/socket.h, since Linux 6.5
# include/uapi/linux/pidfd.h: struct pidfd_info of 64 bytes, the mask first, exit_code last
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_EXIT_CODE_OFFSET = 60


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that opened the other end of a unix socket, as the kernel says."""

    pid: int
    uid: int
    gid: int


def peer(connection: socket.socket) -> Peer:
    """Return SO_PEERCRED of a connected unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return Peer(*struct.unpack("=iII", raw))


def open_peer(connection: socket.socket, of: Peer) -> int:
    """Return a pidfd of the process that opened the other end.

    Raises KernelError if it is gone, OSError if this process has no descriptor left.

    Before Linux 6.5 the kernel has only the number to offer, and the number of a process that is
    gone may belong to another by now. So the process found must be of the peer's user; ask as soon
    as the connection is there.
    """
    tried = f"opening process {of.pid} at the other end of a socket"
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        return int(struct.unpack("=i", raw)[0])
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise
        if error.errno != errno.ENOPROTOOPT:
            raise KernelError(tried, str(error.strerror)) from error
    descriptor = open_pid(of.pid)
    _, uid = command_and_user(of.pid) or ("", -1)
    if uid != of.uid or not alive(descriptor):
        os.close(descriptor)
        raise KernelError(tried, "the process is gone")
    return descriptor


def open_pid(pid: int) -> int:
    """Return a pidfd; raises KernelError if there is no such process."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise KernelError(f"opening process {pid}", str(error.strerror)) from error


def alive(pidfd: int) -> bool:
    """Tell whether the process has not ended (a pidfd becomes readable at the end)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def parent(pid: int) -> int:
    """Return the parent's pid, 0 if unknown (gone, or outside this pid namespace)."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def command_and_user(pid: int) -> tuple[str, int] | None:
    """Return command name (15 bytes at most) and real uid of a process, None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # a process's name for itself may hold what else ends lines
    fields = dict(line.split(":\t", 1) for line in text.split("\n") if ":\t" in line)
    return fields["Name"], int(fields["Uid"].split()[0])


def arguments(pid: int) -> list[str]:
    """Return the command line of a process, empty if it is gone or a thread of the kernel's."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.removesuffix("\0").split("\0") if text else []


def network_identity(pid: int) -> tuple[int, int] | None:
    """Return device and inode of a process's network namespace, None if it is gone.

    Privilege: CAP_SYS_PTRACE, for processes of others.
    """
    try:
        facts = Path(f"/proc/{pid}/ns/net").stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def open_network(pid: int, pidfd: int) -> int:
    """Return a descriptor of a process's network namespace; raises KernelError if it is gone.

    Privilege: CAP_SYS_PTRACE, for processes of others.
    """
    tried = f"opening the network namespace of process {pid}"
    try:
        descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(tried, str(error.strerror)) from error
    if not alive(pidfd):  # so the number may be another's
        os.close(descriptor)
        raise KernelError(tried, "the process is gone")
    return descriptor


def wait_status(pidfd: int, pid: int) -> int | None:
    """Return the wait status of a process that has ended, None if the kernel does not (yet) say.

    While it is a zombie /proc has it; once its parent has waited for it, Linux 6.15 and newer tell
    it through the pidfd (PIDFD_GET_INFO); older ones have forgotten it.
    """
    fields = _stat(pid)
    if fields and fields[0] == "Z":
        return int(fields[49])
    buffer = bytearray(64)
    struct.pack_into("=Q", buffer, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    (mask,) = struct.unpack_from("=Q", buffer, 0)
    if not mask & _PIDFD_INFO_EXIT:
        return None
    return int(struct.unpack_from("=i", buffer, _EXIT_CODE_OFFSET)[0])


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on (proc(5) numbers them from 3)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
