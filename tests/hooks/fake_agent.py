"""An agent that does as told: the real socket at the real path, answers of the test's choosing.

One thread accepts one caller after the other, keeps what each sent, and answers with the reply and
the descriptors it was made with, right or wrong. What arrives after the answer is kept as well.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.conftest import LIBC, check

if TYPE_CHECKING:
    from collections.abc import Sequence

RUN_SOCKET = Path("/run/lark/run.sock")
SYS_SETRESUID = 117


def granted(flags: int = 0) -> bytes:
    """Return the reply that comes with a namespace."""
    return struct.pack("<4sHHI", b"LARK", 1, 0, flags)


def refused(status: int, text: str) -> bytes:
    """Return a refusal."""
    return struct.pack("<4sHH", b"LARK", 1, status) + text.encode()


def parse_fields(datagram: bytes, flags: int = 0) -> list[tuple[int, bytes]]:
    """Take a request apart strictly: (type, payload) of each field."""
    assert struct.unpack_from("<4sHH", datagram) == (b"LARK", 1, flags)
    fields, at = [], 8
    while at < len(datagram):
        kind, length = struct.unpack_from("<HH", datagram, at)
        assert at + 4 + length <= len(datagram), "a field reaches over the end"
        fields.append((kind, datagram[at + 4 : at + 4 + length]))
        at += 4 + length
    return fields


@dataclass
class Request:
    """What one lark-run sent."""

    fields: list[tuple[int, bytes]]
    files: list[int]
    pid: int
    uid: int


@dataclass
class FakeAgent:
    """To be used in a with statement; listens as `listener_uid` at `path`."""

    reply: bytes | None
    """None: close without an answer."""
    descriptors: Sequence[int]
    path: Path = RUN_SOCKET
    listener_uid: int = 0
    listens_first: bool = True
    """Else it answers and closes without reading what was asked."""
    own: bool = False
    """It is asked for, and lets callers make, namespaces of their own; it grants those."""
    requests: list[Request] = field(default_factory=list)
    notices: list[bytes] = field(default_factory=list)
    """What arrived after the answer."""
    asked: threading.Event = field(default_factory=threading.Event)
    answer: threading.Event = field(default_factory=threading.Event)
    """Clear it before a job starts to keep that job waiting."""

    def __enter__(self) -> Self:
        self.path.parent.mkdir(exist_ok=True)
        self.path.unlink(missing_ok=True)
        self.answer.set()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.path))
        self.path.chmod(0o666)
        ready = threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(ready,))
        self.thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()
        for request in self.requests:
            for fd in request.files:
                os.close(fd)

    def _serve(self, ready: threading.Event) -> None:
        # the raw system call changes this thread only; the kernel remembers who called listen()
        check(LIBC.syscall(SYS_SETRESUID, -1, self.listener_uid, -1), "setresuid")
        self.listener.listen()
        ready.set()
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        if not self.listens_first:
            assert self.reply is not None
            connection.send(self.reply)
            return
        data, files, _, _ = socket.recv_fds(connection, 65536, 8)
        if not data:
            return
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("3i", credentials)
        self.requests.append(Request(parse_fields(data, int(self.own)), files, pid, uid))
        self.asked.set()
        self.answer.wait(30)
        if self.reply is None:
            return
        with contextlib.ExitStack() as stack:
            granted = self.descriptors
            if self.own and not granted:
                connection.send(refused(5, ""))
                word = connection.recv(65536)
                if not word:  # it cannot make one, and has told its user
                    return
                assert word == struct.pack("<4sHH", b"LARK", 1, 0)
                made = stack.enter_context(Path(f"/proc/{pid}/ns/net").open("rb"))
                granted = [made.fileno()]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", granted))]
            connection.sendmsg([self.reply], rights if granted else [])
        connection.settimeout(30)
        while notice := connection.recv(65536):
            self.notices.append(notice)
