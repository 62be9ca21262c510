"""Sandboxes kept ready, so that a job's start builds nothing.

Slots go round: free → building → ready → taken → condemned → resting → free. `take` pops a ready
sandbox; everything that costs time is done by background tasks with a thread each: `build`, and
`dismantle`, which mostly waits for the kernel's grace periods. Dismantling is done in batches
because a grace period costs the same for one link as for a hundred.

What is built on the site's networks waits for others, seconds if no DHCP server answers: each
network has a `build` task of its own, so that none waits for another's. An idle sandbox there may
lose its address, so it is looked at once more when a job takes it.

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
from lark_agent.sandbox.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

    from lark_agent.sandbox.connectivity import Dismantler, Driver, Kind

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
        drivers: Mapping[Kind, Driver],
        remains: Dismantler,
        ready: Mapping[Kind, int],
        slots: int,
        free: Iterable[int],
        rest_seconds: float,
        in_dismantling_thread: InThread[object],
        clock: Callable[[], float],
    ) -> None:
        """`remains` dismantles what is of none of the drivers' kinds."""
        self._drivers = drivers
        self._remains = remains
        self._target = ready
        self._rest = rest_seconds
        self._in_dismantling_thread = in_dismantling_thread
        self._clock = clock
        self._slots = slots
        self._free: deque[tuple[int, float]] = deque((slot, float("-inf")) for slot in free)
        self._ready: dict[Kind, deque[Sandbox]] = {kind: deque() for kind in drivers}
        self._waiting = {kind: Turns() for kind in drivers}
        self._condemned: list[Sandbox] = []
        self._building: dict[Kind, tuple[InThread[object], Sandbox | None]] = {}
        self._condemnation = asyncio.Event()
        self._slots_wanted = asyncio.Event()
        self._last_take = float("-inf")
        self._work: list[asyncio.Event] = []
        self.build_errors = 0
        self._last_errors: dict[Kind, str] = {}

    @property
    def ready(self) -> dict[Kind, int]:
        """Sandboxes that wait for a job, of each kind of which there are to be any."""
        return {
            kind: len(sandboxes)
            for kind, sandboxes in self._ready.items()
            if sandboxes or self._target[kind]
        }

    @property
    def spare(self) -> int:
        """Sandboxes that could still be given out, ready or to be built."""
        return len(self._free) + sum(map(len, self._ready.values()))

    @property
    def condemned(self) -> int:
        """Sandboxes that wait to be dismantled."""
        return len(self._condemned)

    @property
    def busy(self) -> frozenset[int]:
        """Slots that are not free: ready, being built or dismantled, or a job's."""
        free = {slot for slot, _ in self._free}
        condemned = {sandbox.slot for sandbox in self._condemned}
        return frozenset(set(range(self._slots)) - free | condemned)

    def withdraw(self, sandbox: Sandbox) -> bool:
        """Condemn what was found of a slot that is free; False if somebody has taken it."""
        if sandbox.slot in self.busy:
            return False
        self._free = deque(entry for entry in self._free if entry[0] != sandbox.slot)
        self.condemn(sandbox)
        return True

    def take_ready(self, kind: Kind) -> Sandbox | None:
        """Return a sandbox if one is ready and nobody waits for it.

        Raises Unavailable if this worker has none of that kind, ever: a reload of the policy may
        ask for what the agent was not started with.
        """
        if kind not in self._drivers:
            raise Unavailable(
                f"this worker has no {kind} networks; the admin has to give {_setting(kind)} "
                "and restart lark-agent"
            )
        self._wake()
        self._last_take = self._clock()
        while self._ready[kind] and not self._waiting[kind]:
            sandbox = self._ready[kind].popleft()
            if self._drivers[kind].fit(sandbox):
                return sandbox
            self.condemn(sandbox)
        return None

    async def take(self, kind: Kind, timeout: float, user: int = 0) -> Sandbox:  # noqa: ASYNC109  the message names it
        """Return a sandbox, waiting up to `timeout` seconds for the user's turn.

        Raises Unavailable if none becomes free, or can be made.
        """
        ready = self.take_ready(kind)
        if ready is not None:
            return ready
        wanted = self._waiting[kind].join(user)
        try:
            await asyncio.wait([wanted], timeout=timeout)
        except asyncio.CancelledError:
            if wanted.done():
                self.put_back(wanted.result())
            raise
        finally:
            if not wanted.done():
                wanted.cancel()
                self._waiting[kind].leave(user, wanted)
        if wanted.cancelled():
            last = self._last_errors.get(kind, "")
            why = f"; the last attempt to build one failed: {last}" if last else ""
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

    async def build(self, kinds: Collection[Kind], in_thread: InThread[object]) -> None:
        """Keep sandboxes of these kinds ready, for ever; a background task."""
        work = asyncio.Event()
        self._work.append(work)
        for mine in kinds:
            self._building.setdefault(mine, (in_thread, None))
        try:
            while True:
                kind = self._next_kind(kinds)
                if kind is None or not (self._urgent(kinds) or self._quiet()):
                    await self._wait(kinds, work)
                elif not await self._build(kind):
                    await asyncio.sleep(_RETRY_SECONDS)
        finally:
            self._work.remove(work)

    def _wake(self) -> None:
        for work in self._work:
            work.set()

    async def dismantle(self) -> None:
        """Take condemned sandboxes apart, for ever; a background task."""
        while True:
            await self._condemnation.wait()
            self._condemnation.clear()
            with contextlib.suppress(TimeoutError):  # gather others, unless slots are wanted
                await asyncio.wait_for(self._slots_wanted.wait(), _GATHER_SECONDS)
            await self._dismantle()

    async def _wait(self, kinds: Collection[Kind], work: asyncio.Event) -> None:
        """Wait for something to build; for ever if all that is wanted is there."""
        work.clear()
        pending = any(map(self._below_target, kinds))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(work.wait(), _GATHER_SECONDS if pending else None)
        if not self._urgent(kinds):
            await asyncio.sleep(_QUIET_SECONDS)

    def _quiet(self) -> bool:
        """Tell whether no job started just now: building would keep it from the processor."""
        return self._clock() - self._last_take >= _QUIET_SECONDS

    def _urgent(self, kinds: Collection[Kind]) -> bool:
        """Tell whether somebody waits, or ready sandboxes are running out."""
        return any(self._waiting[kind] for kind in kinds) or any(map(self._running_out, kinds))

    async def empty(self) -> None:
        """Dismantle everything that holds no job; for the agent's end, when no task runs.

        What was being built or dismantled when the tasks were stopped is dismantled (again) too.
        """
        for in_thread, unfinished in self._building.values():
            if unfinished is not None:
                await in_thread(lambda: None)  # it has finished what it had begun
                self._condemned.append(unfinished)
        for sandboxes in self._ready.values():
            self._condemned.extend(sandboxes)
            sandboxes.clear()
        await self._dismantle()

    def _next_kind(self, kinds: Collection[Kind]) -> Kind | None:
        """Choose what to build next: for those who wait first, then up to the targets."""
        waiting = [kind for kind in kinds if self._waiting[kind]]
        if not self._free:
            if waiting:
                self._reclaim(waiting[0])
                self._slots_wanted.set()
            return None
        self._slots_wanted.clear()
        if waiting:
            return waiting[0]
        if len(self._free) <= sum(map(len, self._waiting.values())):
            return None  # those who wait for other kinds need these slots
        rested = self._clock() - self._free[0][1] >= self._rest
        short = self._below_target if rested else self._running_out
        return next(filter(short, kinds), None)

    def _below_target(self, kind: Kind) -> bool:
        return len(self._ready[kind]) < self._target[kind]

    def _running_out(self, kind: Kind) -> bool:
        return 2 * len(self._ready[kind]) < self._target[kind]

    def _reclaim(self, kind: Kind) -> None:
        """Condemn an idle sandbox of another kind for a job that waits for `kind`."""
        for other, sandboxes in self._ready.items():
            if other != kind and sandboxes:
                self.condemn(sandboxes.pop())
                return

    async def _build(self, kind: Kind) -> bool:
        slot, freed = self._free.popleft()
        driver, (in_thread, _) = self._drivers[kind], self._building[kind]
        self._building[kind] = in_thread, Sandbox(slot, kind.connectivity, network=kind.network)
        try:
            sandbox = await in_thread(lambda: driver.set_up(slot))
        except (LarkError, OSError) as error:
            self._building[kind] = in_thread, None
            self._free.append((slot, freed))
            self.build_errors += 1
            self._last_errors[kind] = str(error)
            log.error("building a sandbox failed", slot=slot, kind=str(kind), error=str(error))
            return False
        assert isinstance(sandbox, Sandbox)
        self._building[kind] = in_thread, None
        self._last_errors.pop(kind, None)
        self._deliver(sandbox)
        return True

    def _deliver(self, sandbox: Sandbox) -> None:
        while (wanted := self._waiting[sandbox.kind].next()) is not None:
            if not wanted.done():
                wanted.set_result(sandbox)
                return
        self._ready[sandbox.kind].append(sandbox)

    async def _dismantle(self) -> None:
        for kind in {sandbox.kind for sandbox in self._condemned}:
            driver = self._drivers.get(kind, self._remains)
            mine = [sandbox for sandbox in self._condemned if sandbox.kind == kind]
            problems = await self._in_dismantling_thread(partial(driver.tear_down, mine))
            assert isinstance(problems, list)
            for problem in problems:
                log.error("dismantling sandboxes", slots=[s.slot for s in mine], error=str(problem))
            now = self._clock()
            self._condemned = [sandbox for sandbox in self._condemned if sandbox not in mine]
            # a leftover of an agent with more slots than this one leaves none behind
            self._free.extend((s.slot, now) for s in mine if s.slot < self._slots)
        self._wake()


def _setting(kind: Kind) -> str:
    if kind.network:
        return f"[networks.{kind.network}]"
    return f"[addresses] {kind}6 or {kind}4"
