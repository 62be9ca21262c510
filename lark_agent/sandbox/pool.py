"""Sandboxes kept ready, so that a job's start builds nothing.

Slots go round: free → building → ready → taken → condemned → resting → free. `take` pops a ready
sandbox; everything that costs time is done by two background tasks with a thread each: `build`,
and `dismantle`, which mostly waits for the kernel's grace periods. Dismantling is done in batches
because a grace period costs the same for one link as for a hundred.

A freed slot goes to the end of the queue and rests, so that late packets of an old connection do
not meet a new job on the same port (RFC 6888, REQ-8). When only resting slots are left, the one
that rested longest is used for a job that waits, and to keep half of the ready sandboxes: better
than to refuse a job or let it wait, since connection tracking has forgotten the old connections and
records tell the two jobs apart by time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog

from lark_agent.errors import LarkError, Unavailable
from lark_agent.sandbox.connectivity import Sandbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from lark_agent.model import Connectivity
    from lark_agent.sandbox.connectivity import Driver

    T = TypeVar("T")
    InThread = Callable[[Callable[[], T]], Awaitable[T]]

_RETRY_SECONDS = 1.0
_QUIET_SECONDS = 0.05
_GATHER_SECONDS = 1.0
log = structlog.get_logger(__name__)


class Pool:
    """All sandboxes of this worker that hold no job, and the slots they can use."""

    def __init__(
        self,
        drivers: Mapping[Connectivity, Driver],
        ready: Mapping[Connectivity, int],
        slots: int,
        free: Iterable[int],
        rest_seconds: float,
        in_building_thread: InThread[object],
        in_dismantling_thread: InThread[object],
        clock: Callable[[], float],
    ) -> None:
        self._drivers = drivers
        self._target = ready
        self._rest = rest_seconds
        self._in_building_thread = in_building_thread
        self._in_dismantling_thread = in_dismantling_thread
        self._clock = clock
        self._slots = slots
        self._free: deque[tuple[int, float]] = deque((slot, float("-inf")) for slot in free)
        self._ready: dict[Connectivity, deque[Sandbox]] = {kind: deque() for kind in drivers}
        self._waiting: dict[Connectivity, deque[asyncio.Future[Sandbox]]] = {
            kind: deque() for kind in drivers
        }
        self._condemned: list[Sandbox] = []
        self._unfinished: Sandbox | None = None
        self._condemnation = asyncio.Event()
        self._slots_wanted = asyncio.Event()
        self._last_take = float("-inf")
        self._work = asyncio.Event()
        self._work.set()
        self.build_errors = 0
        self.last_error = ""

    @property
    def ready(self) -> int:
        """Sandboxes that wait for a job."""
        return sum(map(len, self._ready.values()))

    @property
    def condemned(self) -> int:
        """Sandboxes that wait to be dismantled."""
        return len(self._condemned)

    def take_ready(self, kind: Connectivity) -> Sandbox | None:
        """Return a sandbox if one is ready and nobody waits for it.

        Raises Unavailable if this worker has none of that kind, ever: a reload of the policy may
        ask for what the agent was not started with.
        """
        if kind not in self._drivers:
            raise Unavailable(
                f"this worker has no {kind} networks; the admin has to give [addresses] {kind}6 or "
                f"{kind}4 and restart lark-agent"
            )
        self._work.set()
        self._last_take = self._clock()
        if self._ready[kind] and not self._waiting[kind]:
            return self._ready[kind].popleft()
        return None

    async def take(self, kind: Connectivity, timeout: float) -> Sandbox:  # noqa: ASYNC109  the message names it
        """Return a sandbox, waiting up to `timeout` seconds in the order of the callers.

        Raises Unavailable if none becomes free, or can be made.
        """
        ready = self.take_ready(kind)
        if ready is not None:
            return ready
        wanted: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
        self._waiting[kind].append(wanted)
        try:
            await asyncio.wait([wanted], timeout=timeout)
        except asyncio.CancelledError:
            if wanted.done():
                self.put_back(wanted.result())
            raise
        finally:
            if not wanted.done():
                wanted.cancel()
                self._waiting[kind].remove(wanted)
        if wanted.cancelled():
            why = (
                f"; the last attempt to build one failed: {self.last_error}"
                if self.last_error
                else ""
            )
            raise Unavailable(
                f"no network sandbox became free within {timeout:g} s{why}; "
                "try again later or on another worker (the admin can raise [pool] slots)"
            )
        return wanted.result()

    def put_back(self, sandbox: Sandbox) -> None:
        """Return a sandbox that no job has used."""
        self._deliver(sandbox)

    def condemn(self, sandbox: Sandbox) -> None:
        """Hand over a sandbox for dismantling; its slot becomes free again after that."""
        self._condemned.append(sandbox)
        self._condemnation.set()

    async def build(self) -> None:
        """Keep sandboxes ready, for ever; a background task."""
        while True:
            kind = self._next_kind()
            if kind is None or not (self._urgent() or self._quiet()):
                await self._wait()
            elif not await self._build(kind):
                await asyncio.sleep(_RETRY_SECONDS)

    async def dismantle(self) -> None:
        """Take condemned sandboxes apart, for ever; a background task."""
        while True:
            await self._condemnation.wait()
            self._condemnation.clear()
            with contextlib.suppress(TimeoutError):  # gather others, unless slots are wanted
                await asyncio.wait_for(self._slots_wanted.wait(), _GATHER_SECONDS)
            await self._dismantle()

    async def _wait(self) -> None:
        """Wait for something to build; for ever if all that is wanted is there."""
        self._work.clear()
        pending = any(map(self._below_target, self._target))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._work.wait(), _GATHER_SECONDS if pending else None)
        if not self._urgent():
            await asyncio.sleep(_QUIET_SECONDS)

    def _quiet(self) -> bool:
        """Tell whether no job started just now: building would keep it from the processor."""
        return self._clock() - self._last_take >= _QUIET_SECONDS

    def _urgent(self) -> bool:
        """Tell whether somebody waits, or ready sandboxes are running out."""
        return any(self._waiting.values()) or any(map(self._running_out, self._target))

    async def empty(self) -> None:
        """Dismantle everything that holds no job; for the agent's end, when no task runs.

        What was being built or dismantled when the tasks were stopped is dismantled (again) too.
        """
        await self._in_building_thread(lambda: None)  # it has finished what it had begun
        if self._unfinished is not None:
            self._condemned.append(self._unfinished)
        for sandboxes in self._ready.values():
            self._condemned.extend(sandboxes)
            sandboxes.clear()
        await self._dismantle()

    def _next_kind(self) -> Connectivity | None:
        """Choose what to build next: for those who wait first, then up to the targets."""
        waiting = [kind for kind, queue in self._waiting.items() if queue]
        if not self._free:
            if waiting:
                self._reclaim(waiting[0])
                self._slots_wanted.set()
            return None
        self._slots_wanted.clear()
        if waiting:
            return waiting[0]
        rested = self._clock() - self._free[0][1] >= self._rest
        short = self._below_target if rested else self._running_out
        return next(filter(short, self._target), None)

    def _below_target(self, kind: Connectivity) -> bool:
        return len(self._ready[kind]) < self._target[kind]

    def _running_out(self, kind: Connectivity) -> bool:
        return 2 * len(self._ready[kind]) < self._target[kind]

    def _reclaim(self, kind: Connectivity) -> None:
        """Condemn an idle sandbox of another kind for a job that waits for `kind`."""
        for other, sandboxes in self._ready.items():
            if other != kind and sandboxes:
                self.condemn(sandboxes.pop())
                return

    async def _build(self, kind: Connectivity) -> bool:
        slot, freed = self._free.popleft()
        driver = self._drivers[kind]
        self._unfinished = Sandbox(slot, kind)
        try:
            sandbox = await self._in_building_thread(lambda: driver.set_up(slot))
        except (LarkError, OSError) as error:
            self._unfinished = None
            self._free.append((slot, freed))
            self.build_errors += 1
            self.last_error = str(error)
            log.error("building a sandbox failed", slot=slot, connectivity=kind, error=str(error))
            return False
        assert isinstance(sandbox, Sandbox)
        self._unfinished = None
        self.last_error = ""
        self._deliver(sandbox)
        return True

    def _deliver(self, sandbox: Sandbox) -> None:
        queue = self._waiting[sandbox.connectivity]
        while queue:
            wanted = queue.popleft()
            if not wanted.done():
                wanted.set_result(sandbox)
                return
        self._ready[sandbox.connectivity].append(sandbox)

    async def _dismantle(self) -> None:
        for kind, driver in self._drivers.items():
            mine = [sandbox for sandbox in self._condemned if sandbox.connectivity == kind]
            if not mine:
                continue
            problems = await self._in_dismantling_thread(partial(driver.tear_down, mine))
            assert isinstance(problems, list)
            for problem in problems:
                log.error("dismantling sandboxes", slots=[s.slot for s in mine], error=str(problem))
            now = self._clock()
            self._condemned = [sandbox for sandbox in self._condemned if sandbox not in mine]
            # a leftover of an agent with more slots than this one leaves none behind
            self._free.extend((s.slot, now) for s in mine if s.slot < self._slots)
        self._work.set()
