"""Descriptors that strangers send over a public socket, and closes that block.

Closing the last descriptor of a file can block for as long as its sender likes: a TCP socket with
SO_LINGER waits for a peer that never reads. The kernel closes in whoever discards the message: in
recv(2) without room for descriptors, and in close(2) of a socket with unread messages. An event
loop that does either stands still. Hence:

* Where the kernel has it (Linux 6.16), SO_PASSRIGHTS=0 makes such a message fail in its sender.
* Elsewhere a guarded connection looks at each message with MSG_PEEK, which takes no descriptors
  but tells whether there are some (MSG_CTRUNC), and then reads what it saw, or else fails. Not to
  receive them also means that a full descriptor table cannot make the kernel discard them, and
  that no fork inherits them. Urgent data would be discarded unseen: SO_OOBINLINE queues it.
* A connection with unread messages is closed by a thread, `close_aside`. Even that does not wait
  for a lingering socket: an exiting task never lingers (net/ipv4/af_inet.c, inet_release), so
  a second thread with a descriptor table of its own drops the last reference by ending.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SO_PASSRIGHTS = 83  # asm-generic/socket.h, since Linux 6.16
_CLONE_FILES = 0x400
_CLOSE_RANGE = 436  # the number of close_range(2), since Linux 5.9; glibc names it since 2.34
_LAST = 0xFFFFFFFF

_LIBC = ctypes.CDLL(None)
_waiting: deque[tuple[tuple[int, ...], Callable[[], object] | None]] = deque()


def close_aside(descriptors: Iterable[int], finished: Callable[[], object] | None = None) -> None:
    """Close in a short-lived thread: the caller never waits, nor does the end of the process.

    `finished` is called in that thread when all are closed.
    """
    _waiting.append((tuple(descriptors), finished))
    # without a thread left to us they wait for the next one
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=_work, name="close", daemon=True).start()


def _work() -> None:
    while True:
        try:
            descriptors, finished = _waiting.popleft()
        except IndexError:
            return
        _close(descriptors)
        if finished is not None:
            finished()


def _close(descriptors: tuple[int, ...]) -> None:
    """Close while another thread has the files open too, so that not this but its end is last."""
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        _keep_only(descriptors)
        held.set()
        released.wait()

    with contextlib.suppress(RuntimeError):  # no thread to be had: then it is this one that waits
        threading.Thread(target=hold, name="last-close", daemon=True).start()
        held.wait()
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # what is left to say of a stranger's file
            os.close(descriptor)
    released.set()


def _keep_only(descriptors: tuple[int, ...]) -> None:
    """Give this thread a table of its own with just these; without, the thread holds nothing."""
    if _LIBC.unshare(_CLONE_FILES):
        return
    first = 0
    for descriptor in sorted(descriptors):
        if first < descriptor:
            _close_range(first, descriptor - 1)
        first = descriptor + 1
    _close_range(first, _LAST)


def _close_range(first: int, last: int) -> None:
    # where the kernel lacks it, the copies live for the moment that this thread does
    _LIBC.syscall(_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), 0)


class GuardedConnection(socket.socket):
    """A connected stream to a stranger; neither recv() nor close() runs into its descriptors.

    Asyncio's streams read with recv() alone (a BufferedProtocol would use recv_into()).
    """

    finished: Callable[[], object] | None = None
    """Called once, in any thread, when the connection's last close has finished."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Return bytes as ever; raises ConnectionAbortedError if there are descriptors."""
        seen, _, how, _ = self.recvmsg(bufsize, 0, flags | socket.MSG_PEEK)
        if how & socket.MSG_CTRUNC:
            raise ConnectionAbortedError("the caller sent descriptors, which nobody asked for")
        return super().recv(len(seen), flags) if seen else seen

    def close(self) -> None:
        """Close now if nothing is unread, else aside; the peer sees the end at once."""
        if self.fileno() < 0:
            return
        unread = self._shut()
        descriptor = self.detach()
        if unread:
            close_aside([descriptor], self.finished)
            return
        os.close(descriptor)
        if self.finished is not None:
            self.finished()

    def _shut(self) -> bool:
        """Let nothing more be sent, then tell whether something is left to read."""
        try:
            with contextlib.suppress(OSError):  # ENOTCONN: the peer is gone, what it sent is not
                self.shutdown(socket.SHUT_RDWR)
            seen, _, how, _ = self.recvmsg(1, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return True
        return bool(seen) or bool(how & socket.MSG_CTRUNC)


class GuardedListener(socket.socket):
    """A unix stream socket for strangers, that accepts guarded connections."""

    def __init__(self) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(OSError):  # ENOPROTOOPT before Linux 6.16
            # connections inherit it, also those that wait to be accepted
            self.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)

    def accept(self) -> tuple[GuardedConnection, Any]:
        """Return a guarded connection, and the same again in the place of the address.

        Unix callers have none, and asyncio hands the address on as "peername": so its owner gets
        at the connection behind a transport.
        """
        plain, _ = super().accept()
        connection = GuardedConnection(plain.family, plain.type, plain.proto, fileno=plain.detach())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        return connection, connection

    def close(self) -> None:
        """Close aside: those not accepted yet may have sent something."""
        if self.fileno() >= 0:
            close_aside([self.detach()])
