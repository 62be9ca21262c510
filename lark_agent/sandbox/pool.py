"""Sandboxes kept ready, so that a job's start builds nothing.

Slots go round: free → building → ready → taken → condemned → resting → free. `take` pops a ready
sandbox; everything that costs time (building, dismantling, resting) is done by `keep`, one
background task, in the kernel thread. Dismantling is done in batches because the kernel's grace
period costs the same for one link as for a hundred.

A freed slot goes to the end of the queue and rests, so that late packets of an old connection do
not meet a new job on the same port (RFC 6888, REQ-8). When only resting slots are left the one that
rested longest is used rather than refusing a job: connection tracking has forgotten the old
connections, and records tell the two jobs apart by time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, TypeVar

import structlog

from lark_agent.errors import LarkError, Unavailable
from lark_agent.sandbox.connectivity import Sandbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from lark_agent.model import Connectivity
    from lark_agent.sandbox.connectivity import Driver

    T = TypeVar("T")
    InKernelThread = Callable[[Callable[[], T]], Awaitable[T]]

_RETRY_SECONDS = 1.0
_QUIET_SECONDS = 0.05
log = structlog.get_logger(__name__)


class Pool:
    """All sandboxes of this worker that hold no job, and the slots they can use."""

    def __init__(
        self,
        drivers: Mapping[Connectivity, Driver],
        ready: Mapping[Connectivity, int],
        slots: Iterable[int],
        rest_seconds: float,
        in_kernel_thread: InKernelThread[object],
        clock: Callable[[], float],
    ) -> None:
        self._drivers = drivers
        self._target = ready
        self._rest = rest_seconds
        self._run = in_kernel_thread
        self._clock = clock
        self._free: deque[tuple[int, float]] = deque((slot, float("-inf")) for slot in slots)
        self._ready: dict[Connectivity, deque[Sandbox]] = {kind: deque() for kind in drivers}
        self._waiting: dict[Connectivity, deque[asyncio.Future[Sandbox]]] = {
            kind: deque() for kind in drivers
        }
        self._condemned: list[Sandbox] = []
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

    async def take(self, kind: Connectivity, timeout: float) -> Sandbox:  # noqa: ASYNC109  the message names it
        """Return a sandbox, waiting up to `timeout` seconds in the order of the callers.

        Raises Unavailable if none becomes free.
        """
        self._work.set()
        if self._ready[kind] and not self._waiting[kind]:
            return self._ready[kind].popleft()
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
        self._work.set()

    async def keep(self) -> None:
        """Dismantle and build for ever; the pool's background task."""
        while True:
            await self._work.wait()
            # A job is starting or has ended just now: let it, and gather what else comes.
            while not self._urgent() and self._work.is_set():
                self._work.clear()
                await asyncio.sleep(_QUIET_SECONDS)
            self._work.clear()
            await self._dismantle()
            while (kind := self._next_kind()) is not None:
                if not await self._build(kind):
                    await asyncio.sleep(_RETRY_SECONDS)
                    self._work.set()
                    break
                await self._dismantle()

    def _urgent(self) -> bool:
        """Tell whether somebody waits, or ready sandboxes are running out."""
        if any(self._waiting.values()):
            return True
        return any(2 * len(self._ready[k]) <= target for k, target in self._target.items())

    async def empty(self) -> None:
        """Dismantle everything that holds no job; for the agent's end, after `keep` was stopped."""
        for sandboxes in self._ready.values():
            self._condemned.extend(sandboxes)
            sandboxes.clear()
        await self._dismantle()

    def idle(self) -> list[Sandbox]:
        """Return the sandboxes that wait for a job."""
        return [sandbox for sandboxes in self._ready.values() for sandbox in sandboxes]

    def _next_kind(self) -> Connectivity | None:
        """Choose what to build next: for those who wait first, then up to the targets."""
        waiting = [kind for kind, queue in self._waiting.items() if queue]
        if not self._free:
            if waiting:
                self._reclaim(waiting[0])
            return None
        if waiting:
            return waiting[0]
        rested = self._clock() - self._free[0][1] >= self._rest
        if not rested:
            return None
        return next((k for k, target in self._target.items() if len(self._ready[k]) < target), None)

    def _reclaim(self, kind: Connectivity) -> None:
        """Condemn an idle sandbox of another kind for a job that waits for `kind`."""
        for other, sandboxes in self._ready.items():
            if other != kind and sandboxes:
                self.condemn(sandboxes.pop())
                return

    async def _build(self, kind: Connectivity) -> bool:
        slot, freed = self._free.popleft()
        driver = self._drivers[kind]
        try:
            sandbox = await self._run(lambda: driver.set_up(slot))
        except (LarkError, OSError) as error:
            self._free.append((slot, freed))
            self.build_errors += 1
            self.last_error = str(error)
            log.error("building a sandbox failed", slot=slot, connectivity=kind, error=str(error))
            return False
        assert isinstance(sandbox, Sandbox)
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
        batch, self._condemned = self._condemned, []
        for kind, driver in self._drivers.items():
            mine = [sandbox for sandbox in batch if sandbox.connectivity == kind]
            if not mine:
                continue
            problems = await self._run(lambda driver=driver, mine=mine: driver.tear_down(mine))  # type: ignore[misc]  # loop variables bound as defaults
            assert isinstance(problems, list)
            for problem in problems:
                log.error("dismantling sandboxes", slots=[s.slot for s in mine], error=str(problem))
            now = self._clock()
            self._free.extend((sandbox.slot, now) for sandbox in mine)
