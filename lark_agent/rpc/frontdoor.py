"""The front door of a service: gRPC over a unix socket with callers that the kernel vouches for.

gRPC for Python does not tell a servicer who is on the other side of a unix socket. So the public
socket is not gRPC's: this module accepts the connection, asks the kernel who connected
(SO_PEERCRED, SO_PEERGROUPS), connects to the gRPC server's own socket in a private directory
*from a socket bound to a name of its own*, and carries the bytes both ways. gRPC shows that name
to the servicer as `context.peer()`, and `caller(context)` looks up who stands behind it::

    client ── /run/…/query.sock (0666) ── front door ══ <path>.d/7 ── <path>.d/grpc ── servicer
                 SO_PEERCRED: uid 1001        7 → uid 1001            context.peer() = unix:…/7

Clients need to do nothing: any gRPC client works, grpcurl too. Tokens, the usual way round this,
would be a secret that can be copied, a second protocol, and an expiry to get wrong. The price is
one copy of each byte, of answers that people wait for.

Credentials are those of the moment of connect(2): a process that drops its rights later keeps the
connection's, as with every unix socket. Names are never used twice while the door stands, and are
unlinked as soon as they are bound: the kernel remembers them for the peer's address. Connections
are limited over all and for each user, so that one user cannot take the others' descriptors; they
count until they are closed indeed. Callers who send descriptors are cut off (linux.descriptors).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import socket
import stat
from array import array
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import structlog

from lark_agent.errors import ConfigurationError, LarkError, PrerequisiteError
from lark_agent.linux import process
from lark_agent.linux.descriptors import GuardedListener

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Protocol

    class Context(Protocol):
        """As much of a servicer's context as the door needs."""

        def peer(self) -> str:
            """Return gRPC's name of the connection."""


SO_PEERGROUPS = 59  # asm-generic/socket.h; the socket module does not name it
LONGEST_PATH = 107  # sockaddr_un.sun_path, without the final zero
CHUNK = 64 * 1024
NGROUPS_MAX = 65536
OPTIONS = (
    # calls of a connection at a time, each about 12 KB here: no user has thousands of them
    ("grpc.max_concurrent_streams", 16),
    # a client that has not spoken HTTP/2 by then, or not said that it heard this, is cut off
    ("grpc.http2.settings_timeout", 10_000),
)
"""For every gRPC server that strangers reach."""

log = structlog.get_logger()


class UnknownCallerError(LarkError):
    """A call did not come through the front door: answer UNAUTHENTICATED."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The process that connected, in the kernel's words."""

    uid: int
    gid: int
    groups: frozenset[int]
    """Supplementary groups; may lack `gid`."""
    pid: int
    """For logs only: the process may be gone and its number taken."""


class FrontDoor:
    """Accepts on `path` between `open` and the end of the `async with` block.

    On entry the path is claimed: raises ConfigurationError if it cannot be a socket's, and
    PrerequisiteError if another process serves it. Between entry and `open`, let the gRPC server
    listen on `address`.
    """

    def __init__(self, path: Path, *, most: int = 256, most_per_user: int = 32) -> None:
        """Serve at most `most` connections, `most_per_user` of one uid; root is not limited."""
        self._path = path
        self._private = path.with_name(path.name + ".d")
        self._most, self._most_per_user = most, most_per_user
        self._names = itertools.count(1)
        self._callers: dict[str, Caller] = {}
        self._open_by_uid: Counter[int] = Counter()
        self._turned_away: set[int] = set()
        self._carriers: set[asyncio.Task[None]] = set()
        self._stack = contextlib.ExitStack()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """Where the gRPC server listens: only root can reach it."""
        return f"unix:{self._private}/grpc"

    def caller(self, context: Context) -> Caller:
        """Return who makes this call; raises UnknownCallerError."""
        peer = context.peer()
        folder, _, name = peer.rpartition("/")
        # gRPC may escape the folder, the number never; on another listener there is no such peer
        if folder.startswith("unix:") and name in self._callers:
            return self._callers[name]
        raise UnknownCallerError(
            f"the caller at '{peer or 'an unnamed socket'}' is not known; ask through {self._path}"
        )

    async def __aenter__(self) -> Self:
        if len(os.fsencode(self._private / ("9" * 12))) > LONGEST_PATH:
            raise ConfigurationError(
                f"{self._path}: a socket's path is limited to {LONGEST_PATH} bytes and this one"
                " leaves no room for the names beside it; choose a shorter path"
            )
        try:
            self._listener = self._claim()
        except OSError as error:
            self._stack.close()
            raise PrerequisiteError(
                f"cannot listen on {self._path}: {error.strerror}; check that the directory is ours"
            ) from error
        except BaseException:
            self._stack.close()
            raise
        return self

    async def open(self) -> None:
        """Let callers in."""
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_unix_server(
            self._accept, sock=self._listener, limit=CHUNK
        )

    async def __aexit__(self, *_: object) -> None:
        if self._server:
            self._server.close()
        for task in self._carriers:
            task.cancel()
        await asyncio.gather(*self._carriers, return_exceptions=True)
        self._stack.close()

    def _claim(self) -> socket.socket:
        """Own the path: lock it, remove a dead predecessor's socket, bind."""
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._lock_private()
        # with the lock held nobody else can be between this look and the bind
        _remove_stale(self._path)
        self._empty_private()
        self._stack.callback(self._empty_private)
        listener = GuardedListener()
        self._stack.callback(listener.close)
        listener.bind(str(self._path))
        self._stack.callback(self._path.unlink, missing_ok=True)
        # everybody may ask; what they get depends on who they are
        self._path.chmod(0o666)
        return listener

    def _lock_private(self) -> None:
        """Make the private directory, which is also the lock, and stays for the next process."""
        self._private.mkdir(mode=0o700, exist_ok=True)
        directory = os.open(self._private, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        self._stack.callback(os.close, directory)
        if os.fstat(directory).st_uid != os.geteuid():
            raise PrerequisiteError(f"{self._private} belongs to another user; remove it")
        os.fchmod(directory, 0o700)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrerequisiteError(
                f"{self._path} is served by another process; stop that first"
            ) from None

    def _empty_private(self) -> None:
        for name in self._private.iterdir():
            name.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carriers.add(task)
        task.add_done_callback(self._carriers.discard)
        try:
            connection = writer.get_extra_info("peername")  # see GuardedListener.accept
            caller = peer_of(connection)
            if self._has_room(caller):
                self._open_by_uid[caller.uid] += 1
                connection.finished = partial(self._finished, caller.uid)
                await self._carry(caller, reader, writer)
        except OSError as error:
            log.warning("a query connection failed", path=str(self._path), error=str(error))
        finally:
            writer.transport.abort()

    def _has_room(self, caller: Caller) -> bool:
        if caller.uid == 0:
            return True
        mine, everybody = self._open_by_uid[caller.uid], self._open_by_uid.total()
        if mine < self._most_per_user and everybody < self._most:
            return True
        if caller.uid not in self._turned_away:  # once, until one of this user's connections ends
            self._turned_away.add(caller.uid)
            log.warning("too many query connections", uid=caller.uid, of_user=mine, all=everybody)
        return False

    async def _carry(
        self, caller: Caller, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Connect to gRPC under a name of this caller's own; carry bytes until both ends close."""
        name = str(next(self._names))
        self._callers[name] = caller
        try:
            inner_reader, inner_writer = await self._connect_as(name)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_pump(reader, inner_writer))
                    both.create_task(_pump(inner_reader, writer))
            except* ConnectionError:
                pass  # one end is gone: so is the conversation
            finally:
                inner_writer.transport.abort()
        finally:
            del self._callers[name]

    def _finished(self, uid: int) -> None:
        """Count one less, called from whichever thread closed the connection."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the counting with it
            self._loop.call_soon_threadsafe(self._leave, uid)

    def _leave(self, uid: int) -> None:
        self._open_by_uid[uid] -= 1
        if not self._open_by_uid[uid]:
            del self._open_by_uid[uid]
        self._turned_away.discard(uid)

    async def _connect_as(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.setblocking(False)
            bound = self._private / name
            link.bind(str(bound))
            bound.unlink()
            loop = asyncio.get_running_loop()
            await loop.sock_connect(link, f"{self._private}/grpc")
            return await asyncio.open_unix_connection(sock=link, limit=CHUNK)
        except BaseException:
            link.close()
            raise


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Carry bytes one way, no faster than they are taken, then pass the end on."""
    while chunk := await source.read(CHUNK):
        sink.write(chunk)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()


def _remove_stale(path: Path) -> None:
    """Unlink a socket that nobody listens on; anything else at its place stays, with an error."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigurationError(
            f"{path} exists and is no socket; move it away or configure another"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(str(path)) not in {errno.ECONNREFUSED, errno.ENOENT}:
            raise PrerequisiteError(f"{path} is served by another process; stop that first")
    path.unlink(missing_ok=True)


def peer_of(connection: socket.socket) -> Caller:
    """Return who connected (SO_PEERCRED; SO_PEERGROUPS since Linux 4.13)."""
    peer = process.peer(connection)
    return Caller(peer.uid, peer.gid, frozenset(_peer_groups(connection.fileno())), peer.pid)


def _peer_groups(descriptor: int) -> list[int]:
    """Ask through libc: Python's getsockopt stops at 1024 bytes, which is 256 groups."""
    groups = array("I", bytes(4 * NGROUPS_MAX))
    length = ctypes.c_uint32(4 * NGROUPS_MAX)
    buffer = (ctypes.c_char * (4 * NGROUPS_MAX)).from_buffer(groups)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(descriptor, socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise OSError(code, f"SO_PEERGROUPS: {os.strerror(code)}")
    return groups[: length.value // 4].tolist()
