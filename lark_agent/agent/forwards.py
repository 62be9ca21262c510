"""A starter's loopback as its job sees it, where no packet finds the way.

HTCondor's starter listens for its job (chirp) on the loopback of its own network. Where that is the
worker's and the worker is on the other end of the job's link, translation brings the job there
(`lark_agent.agent.launchers`). It is different where the starter is in a sandbox of its own, or the
job on a network of the site: none of the two networks has a way to the other, and shall not have
one. So the agent itself listens at the same port of the job's loopback, and carries bytes: it makes
the one socket in the job's network and the other in the starter's, and both stay where they were
made. Nothing of it passes a link, so the job's record does not count it; what a starter in a
sandbox sends on to the submit node is in `transfer`.

A port of the worker's loopback could be somebody else's when the starter has ended, so each
connection is carried only while it lives. The agent restarted listens again; a connection that was
under way is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from lark_agent import trouble
from lark_agent.errors import LarkError
from lark_agent.hooks import launch
from lark_agent.linux import listeners, namespaces, process
from lark_agent.model import LAYER2, Connectivity

if TYPE_CHECKING:
    from collections.abc import Callable

    from lark_agent.agent.attachment import Attachment
    from lark_agent.agent.attachments import Attachments
    from lark_agent.agent.tasks import OwnThread
    from lark_agent.hooks.identity import Launcher

_LOCALHOST = "127.0.0.1"
_WORKERS = "/proc/self/ns/net"
_MOST = 8
"""Connections of one job at a time; others wait to be accepted."""
_CHUNK = 1 << 16
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Open:
    """What is open for one job."""

    network: int
    """Descriptor of the starter's network, so that it cannot become another's."""
    ports: dict[int, asyncio.Task[None]] = field(default_factory=dict)


class Forwards:
    """The forwarded ports of this worker's jobs."""

    def __init__(self, attachments: Attachments, in_kernel: OwnThread) -> None:
        self._attachments = attachments
        self._in_kernel = in_kernel
        self._open: dict[str, _Open] = {}

    async def follow(self, attachment: Attachment) -> None:
        """Let a job have what its starter listens on by now. Never fails: that is logged."""
        starter = launch.launcher(attachment.key)
        path = self._network_of_starter(attachment)
        if starter is None or not path or attachment.ending:
            return
        key = attachment.record.attachment_id
        try:
            if key not in self._open:
                self._open[key] = _Open(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            mine = self._open[key]
            found = await self._in_kernel.at_once(
                lambda: namespaces.run_in(mine.network, lambda: listeners.on_loopback(starter.pid))
            )
            if process.start_time(starter.pid) != starter.start_time:
                return
            for port in found - mine.ports.keys():
                await self._forward(attachment, mine, port, starter)
        except (LarkError, OSError) as error:
            trouble.met("forward to a starter")
            log.warning("a job cannot reach its starter", attachment=key, error=str(error))
        if attachment.ending:  # meanwhile
            self.close(attachment)

    def _network_of_starter(self, attachment: Attachment) -> str:
        """Return the namespace that a job has no way to; empty if it needs none from us."""
        around = self._attachments.transfers.of(attachment.key)
        if around is not None:
            return str(namespaces.path(around.sandbox.name))
        return _WORKERS if attachment.sandbox.connectivity in LAYER2 else ""

    async def _forward(
        self, attachment: Attachment, mine: _Open, port: int, starter: Launcher
    ) -> None:
        def lives() -> bool:
            return process.start_time(starter.pid) == starter.start_time

        listener = await self._in_kernel.at_once(lambda: _listen(attachment, port))
        mine.ports[port] = asyncio.ensure_future(_serve(listener, mine.network, port, lives))

    def close(self, attachment: Attachment) -> None:
        """Let go of a job that ends. Repeatable."""
        mine = self._open.pop(attachment.record.attachment_id, None)
        if mine is not None:
            for task in mine.ports.values():
                task.cancel()
            os.close(mine.network)

    def close_all(self) -> None:
        """Let go of every job, which runs on."""
        for attachment in list(self._attachments.living.values()):
            self.close(attachment)


def _listen(attachment: Attachment, port: int) -> socket.socket:
    """Listen in the job's network."""

    def listen() -> socket.socket:
        return socket.create_server((_LOCALHOST, port), backlog=_MOST)

    if attachment.sandbox.connectivity is Connectivity.HOST:
        listener = listen()
    else:
        listener = namespaces.run_inside(attachment.sandbox.name, listen)
    listener.setblocking(False)
    return listener


async def _serve(
    listener: socket.socket, network: int, port: int, lives: Callable[[], bool]
) -> None:
    """Carry what comes, until cancelled."""
    loop, room = asyncio.get_running_loop(), asyncio.Semaphore(_MOST)
    pairs: set[asyncio.Task[None]] = set()

    def done(task: asyncio.Task[None]) -> None:
        pairs.discard(task)
        room.release()

    try:
        while True:
            await room.acquire()
            near, _ = await loop.sock_accept(listener)
            if not lives():
                near.close()
                break
            try:
                far = namespaces.run_in(network, socket.socket)  # 0.15 ms
            except OSError:
                near.close()
                room.release()
                continue
            far.setblocking(False)
            task = asyncio.ensure_future(_carry(near, far, port))
            pairs.add(task)
            task.add_done_callback(done)
    finally:
        listener.close()
        for task in pairs:
            task.cancel()


async def _carry(near: socket.socket, far: socket.socket, port: int) -> None:
    """Join two sockets until both ends have said all, or one is gone."""
    with near, far, contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_connect(far, (_LOCALHOST, port))
        async with asyncio.TaskGroup() as both:
            both.create_task(_copy(near, far))
            both.create_task(_copy(far, near))


async def _copy(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(source, _CHUNK):
            await loop.sock_sendall(target, data)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # broken: what the other direction waits for will not come
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
