"""The time between a job's end and its last reading: everything under way is let through.

What the job had written before it ended may still be on its way, and connections still close. That
is waited for, and *undelivered* are the TCP connections that have no owner.

Sockets that have an owner belong to processes that outlive the job's main process, or are being
killed with it and have not got round to closing. If the plan were cut over them, their RST and
whatever their peers have under way would be on the wire but not in the record. So they are aborted
while the plan still holds, again at every look, for a process may open another until it is gone.

Then, if the end was anything but orderly (a process was left, the job failed or was killed, packets
arrived without a connection, or wait for the job's rate), the peers have not said that they are
finished: the sandbox is silenced, so that survivors cannot go on, what waits is let out at its rate
(it was counted when the job sent it), and the counters are watched until nothing has moved for
`QUIET_SECONDS`. A job that closes what it opened and succeeds pays for none of this.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from lark_agent import trouble
from lark_agent.errors import LarkError
from lark_agent.linux import namespaces, sockets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lark_agent.linux.sockets import Remains
    from lark_agent.model import Count

QUIET_SECONDS = 0.1
_QUIET_POLL_SECONDS = 0.02
_LOOK_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2)
log = structlog.get_logger(__name__)


class Moved(NamedTuple):
    """What a job has sent and received so far."""

    sent: Count
    received: Count
    waiting: int = 0
    """Bytes of what it has sent that still wait for their turn, by its rate."""


class Place(Protocol):
    """Where a job's sockets are; each call may take some milliseconds, in any thread."""

    def abort(self) -> Remains:
        """Abort the sockets that have an owner; raises LarkError or OSError."""
        ...

    def silence(self) -> None:
        """Let survivors send nothing any more; raises LarkError or OSError."""
        ...


@dataclass(frozen=True, slots=True)
class InSandbox:
    """A network namespace, all of it the job's."""

    name: str

    def abort(self) -> Remains:
        """Abort all sockets in it."""
        return namespaces.run_inside(self.name, sockets.abort)

    def silence(self) -> None:
        """Leave it no routes."""
        namespaces.run_inside(self.name, sockets.silence)


async def drain(
    slot: int,
    left: Place,
    moved: Callable[[], Awaitable[Moved]],
    limit_seconds: float,
    *,
    orderly: bool,
) -> None:
    """Wait until nothing of an ended job is under way, for `limit_seconds` at most.

    `left` looks at what the job has left, `moved` reads what the slot has moved so far; `orderly`
    says that the job succeeded. Never fails: what cannot be seen is logged and not waited for.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_seconds
    if limit_seconds <= 0:
        return
    try:
        before = await moved()
        first = remains = await asyncio.to_thread(left.abort)
        pauses, pause, left_over = iter(_LOOK_PAUSES), 0.0, remains.owned
        while remains.undelivered:
            if loop.time() >= deadline:
                log.info("cut undelivered connections", slot=slot)
                return
            pause = next(pauses, pause)
            await asyncio.sleep(min(pause, max(0.0, deadline - loop.time())))
            remains = await asyncio.to_thread(left.abort)
            left_over += remains.owned
        now = await moved()
        if orderly and not left_over and not now.waiting and (first.undelivered or now == before):
            return
        await asyncio.to_thread(left.silence)
        await _quiet(slot, moved, deadline)
    except (LarkError, OSError) as error:
        trouble.met("look at the last packets")
        log.warning("cannot see what is under way", slot=slot, error=str(error))


async def _quiet(slot: int, moved: Callable[[], Awaitable[Moved]], deadline: float) -> None:
    """Wait until nothing waits and `QUIET_SECONDS` passed without a packet, or for the deadline."""
    loop = asyncio.get_running_loop()
    last, since = await moved(), loop.time()
    while last.waiting or loop.time() - since < QUIET_SECONDS:
        if loop.time() >= deadline:
            if last.waiting:
                log.warning("cut what waited for its rate", slot=slot, bytes=last.waiting)
            return
        await asyncio.sleep(_QUIET_POLL_SECONDS)
        if (now := await moved()) != last:
            last, since = now, loop.time()
