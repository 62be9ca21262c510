"""One conversation on the run socket: waiting for what the caller says, or for its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from lark_agent import trouble
from lark_agent.errors import InvalidRequest, KernelError, Unavailable
from lark_agent.hooks import request as wire
from lark_agent.linux import process

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable

_REQUEST_SECONDS = 5.0
_EXHAUSTION_ATTEMPTS = 60
_PAUSE_SECONDS = 0.5
Result = TypeVar("Result")


async def readable(connection: socket.socket, timeout: float | None) -> bool:  # noqa: ASYNC109  None: no bound
    """Wait until a datagram or the end is there."""
    loop = asyncio.get_running_loop()
    there: asyncio.Future[None] = loop.create_future()

    def arrived() -> None:
        if not there.done():
            there.set_result(None)

    loop.add_reader(connection, arrived)
    try:
        done, _ = await asyncio.wait([there], timeout=timeout)
        return bool(done)
    finally:
        loop.remove_reader(connection)


async def unless_hung_up(connection: socket.socket, work: Awaitable[Result]) -> Result | None:
    """Await `work`, or cancel it and return None once the caller closes the connection."""
    task = asyncio.ensure_future(work)
    hangup = asyncio.ensure_future(readable(connection, None))
    try:
        await asyncio.wait([task, hangup], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        for pending in (task, hangup):
            pending.cancel()
        await asyncio.gather(task, hangup, return_exceptions=True)


async def open_peer(connection: socket.socket, peer: process.Peer) -> int:
    """Return a pidfd of the caller; waits while the agent has no descriptor left."""
    for _ in range(_EXHAUSTION_ATTEMPTS):
        try:
            return process.open_peer(connection, peer)
        except KernelError as error:
            raise InvalidRequest(str(error)) from error
        except OSError:  # no descriptor is free: others will be
            trouble.met("wait for a descriptor")
            await asyncio.sleep(_PAUSE_SECONDS)
    raise Unavailable("the agent is out of descriptors; try again")


async def request(connection: socket.socket) -> wire.RunRequest | None:
    """Read the request, which lark-run has usually sent by the time it is looked for."""
    try:
        return wire.receive(connection)
    except BlockingIOError:
        if not await readable(connection, _REQUEST_SECONDS):
            raise InvalidRequest(f"no request within {_REQUEST_SECONDS:g} s") from None
        return wire.receive(connection)
