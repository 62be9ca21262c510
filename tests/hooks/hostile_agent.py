"""Agents that mean no good, or are broken: root's, at the real path, and each wrong in its own way.

`Hostile` accepts whoever calls, in one thread, and plays the same `Script` to each; when the script
returns the connection is closed. What a script makes it gives to its `ExitStack`.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.hooks.fake_agent import RUN_SOCKET, granted, refused

Script = Callable[[socket.socket, int, ExitStack], None]
"""(connection, a good namespace, what is closed after the connection)"""
MAKE_OWN = refused(5, "")
MOST_DESCRIPTORS = 253
"""More the kernel takes along with no datagram (SCM_MAX_FD)."""


@dataclass
class Hostile:
    """To be used in a with statement."""

    script: Script
    namespace: int
    callers: int = 0
    faults: list[BaseException] = field(default_factory=list)
    """What went wrong in the script itself."""

    def __enter__(self) -> Self:
        RUN_SOCKET.parent.mkdir(exist_ok=True)
        RUN_SOCKET.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(RUN_SOCKET))
        RUN_SOCKET.chmod(0o666)
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()
        assert self.faults == []

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.callers += 1
            # one that has given up breaks the connection, rightly
            with ExitStack() as made, connection, contextlib.suppress(ConnectionError):
                connection.settimeout(30)
                try:
                    self.script(connection, self.namespace, made)
                except (AssertionError, TimeoutError) as fault:
                    self.faults.append(fault)


def give(connection: socket.socket, reply: bytes, *descriptors: int) -> None:
    """Send one datagram."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    connection.sendmsg([reply], rights if descriptors else [])


def asked(connection: socket.socket) -> None:
    """Wait for the request."""
    _, files, _, _ = socket.recv_fds(connection, 65536, 8)
    for fd in files:
        os.close(fd)


def answers(*replies: bytes, good: int = 1) -> Script:
    """Answer with these datagrams, the good namespace so many times with each."""

    def script(connection: socket.socket, namespace: int, _made: ExitStack) -> None:
        asked(connection)
        for reply in replies:
            give(connection, reply, *[namespace] * good)

    return script


def grants(open_one: Callable[[ExitStack], int], flags: int = 0) -> Script:
    """Grant something of another kind."""

    def script(connection: socket.socket, _namespace: int, made: ExitStack) -> None:
        asked(connection)
        give(connection, granted(flags), open_one(made))

    return script


def lets_make(*replies: bytes, good: int = 0) -> Script:
    """Let the caller make a namespace, wait until it has, and say something else than it should."""

    def script(connection: socket.socket, namespace: int, _made: ExitStack) -> None:
        asked(connection)
        give(connection, MAKE_OWN)
        assert connection.recv(65536) == struct.pack("<4sHH", b"LARK", 1, 0)
        for reply in replies:
            give(connection, reply, *[namespace] * good)

    return script


def path(name: str, flags: int = os.O_RDONLY) -> Callable[[ExitStack], int]:
    """Return what opens a file."""

    def open_one(made: ExitStack) -> int:
        fd = os.open(name, flags | os.O_CLOEXEC)
        made.callback(os.close, fd)
        return fd

    return open_one


def a_socket(made: ExitStack) -> int:
    return made.enter_context(socket.socket()).fileno()


def sealed_memory(made: ExitStack) -> int:
    fd = os.memfd_create("ad", os.MFD_ALLOW_SEALING)
    made.callback(os.close, fd)
    return fd


def a_process(made: ExitStack) -> int:
    fd = os.pidfd_open(os.getpid())
    made.callback(os.close, fd)
    return fd


def closes_at_once(_connection: socket.socket, _namespace: int, _made: ExitStack) -> None:
    """Close before it is asked, or while it is."""


def closes_when_asked(connection: socket.socket, _namespace: int, _made: ExitStack) -> None:
    asked(connection)


def stops_reading(connection: socket.socket, _namespace: int, _made: ExitStack) -> None:
    """Shut the way in, so that the request cannot be sent; wait until the caller has gone."""
    connection.shutdown(socket.SHUT_RD)
    asked(connection)


def stops_writing(connection: socket.socket, _namespace: int, _made: ExitStack) -> None:
    """Shut the way out, and keep the connection until the caller has gone."""
    connection.shutdown(socket.SHUT_WR)
    asked(connection)
    while connection.recv(65536):
        pass


def floods(connection: socket.socket, namespace: int, _made: ExitStack) -> None:
    """Send grants that are none until nobody takes them any more."""
    asked(connection)
    while True:
        give(connection, granted(1 << 15), namespace)


def lets_make_and_closes(connection: socket.socket, _namespace: int, _made: ExitStack) -> None:
    asked(connection)
    give(connection, MAKE_OWN)


SILENT_OR_GARBLED: dict[str, Script] = {
    "closes at once": closes_at_once,
    "closes when asked": closes_when_asked,
    "stops reading": stops_reading,
    "stops writing": stops_writing,
    "nothing in a datagram": answers(b""),
    "half a header": answers(b"LARK\1\0"),
    "half a status": answers(b"LARK\1\0\2", granted()),
    "half an answer, then the other": answers(granted()[:6], granted()[6:]),
    "another protocol": answers(b"HTTP/1.1 200 OK\r\n\r\n"),
    "the request of another": answers(b"LARK\2\0\0\0" + b"\1\0\4\0true"),
    "more than an answer may be": answers(granted() + bytes(60_000)),
}
"""To everybody: these are no answers."""
WRONG_GRANTS: dict[str, Script] = {
    "half a grant": answers(granted()[:9]),
    "half a grant, then the other": answers(granted()[:9], granted()[9:]),
    "descriptors one by one": answers(granted(), granted(), good=0),
    "as many descriptors as can be": answers(granted(), good=MOST_DESCRIPTORS),
    "a descriptor after the grant": answers(granted()[:11], granted()),
    "flags of the future": floods,
    "a file": grants(path("/etc/hostname")),
    "a directory": grants(path("/proc/self/ns")),
    "a device that never ends": grants(path("/dev/zero")),
    "a path to the worker's network": grants(path("/proc/self/ns/net", os.O_PATH)),
    "the worker's network": grants(path("/proc/thread-self/ns/net")),
    "a socket": grants(a_socket),
    "memory": grants(sealed_memory),
    "a process": grants(a_process),
    **{f"another namespace: {kind}": grants(path(f"/proc/self/ns/{kind}"))
       for kind in ("cgroup", "ipc", "mnt", "pid", "time", "user", "uts")
       if Path(f"/proc/self/ns/{kind}").exists()},
    "to stay, elsewhere": answers(granted(2)),
    "a resolver that is not there": answers(granted(1 | 7 << 16)),
    "to make one, and more": answers(MAKE_OWN + b"x" * 100),
}  # fmt: skip
"""To lark-run, which is to enter what is granted."""
WRONG_TO_MAKERS: dict[str, Script] = {
    "closes when it may": lets_make_and_closes,
    "closes when it has": lets_make(),
    "half an answer": lets_make(b"LARK\1\0"),
    "to make another": lets_make(MAKE_OWN),
    "to make one without end": answers(*[MAKE_OWN] * 50, good=0),
    "a refusal": lets_make(refused(2, "no")),
    "nothing": lets_make(granted()),
    "a network of the agent's": lets_make(granted(), good=1),
    "as many descriptors as can be": lets_make(granted(), good=MOST_DESCRIPTORS),
    "to stay": lets_make(granted(2), good=1),
}
"""To lark-run where it makes the namespace itself (docs/unprivileged.md)."""
