"""The pool's promises, with drivers that build nothing and a clock that tests turn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from lark_agent.errors import KernelError, LarkError, Unavailable
from lark_agent.model import Connectivity
from lark_agent.sandbox.connectivity import Kind, Sandbox
from lark_agent.sandbox.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

NAT, NONE, LAB = Kind(Connectivity.NAT), Kind(Connectivity.NONE), Kind(Connectivity.BRIDGE, "lab")


class Paper:
    """A driver whose sandboxes exist on paper only."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.worn: set[int] = set()
        self.standing: set[int] = set()
        self.batches: list[list[int]] = []
        self.failures = 0

    def check(self) -> None:
        pass

    def renew(self, sandbox: Sandbox) -> None:
        pass

    def fit(self, sandbox: Sandbox) -> bool:
        return sandbox.slot not in self.worn

    def set_up(self, slot: int) -> Sandbox:
        if self.failures:
            self.failures -= 1
            raise KernelError("making a veth", "no buffer space")
        self.standing.add(slot)
        return Sandbox(slot, self.kind.connectivity, network=self.kind.network)

    def tear_down(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        self.batches.append([sandbox.slot for sandbox in sandboxes])
        self.standing -= {sandbox.slot for sandbox in sandboxes}
        return []


class World:
    """A pool with its tasks running on a loop whose time the pool's clock follows."""

    def __init__(self, slots: int, ready: int, rest: float = 0.0) -> None:
        self.nat, self.none, self.lab = Paper(NAT), Paper(NONE), Paper(LAB)
        self.remains = Paper(NONE)
        self.answer = asyncio.Event()
        """Whether what the site's network waits for has come."""

        async def here(work: Callable[[], object]) -> object:
            return work()

        self.pool = Pool(
            {NAT: self.nat, NONE: self.none, LAB: self.lab}, self.remains,
            {NAT: ready, NONE: 0, LAB: 0}, slots, range(slots), rest,
            here, lambda: asyncio.get_running_loop().time(),
        )  # fmt: skip

        async def patiently(work: Callable[[], object]) -> object:
            await self.answer.wait()
            return work()

        self.tasks: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            lambda: self.pool.build([NAT, NONE], here),
            lambda: self.pool.build([LAB], patiently),
            self.pool.dismantle,
        )

    async def settled(self) -> None:
        """Let the tasks do what can be done now."""
        await asyncio.sleep(3)


class FastLoop(asyncio.SelectorEventLoop):
    """Runs timers at once: its time jumps to the next one whenever nothing else is to do."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]  # asyncio's own heap
        if not self._ready and scheduled:  # type: ignore[attr-defined]  # as above
            self._now = max(self._now, scheduled[0].when())
        super()._run_once()  # type: ignore[misc]  # as above


def play(world: World, scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scene beside the pool's tasks, timeouts taking no time."""

    async def stage() -> None:
        tasks = [asyncio.ensure_future(work()) for work in world.tasks]
        try:
            await scene()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    loop = FastLoop()
    try:
        loop.run_until_complete(stage())
    finally:
        loop.close()


def test_ready_sandboxes_are_kept_and_refilled() -> None:
    """A job takes one at once, and another is built in its place."""
    world = World(slots=8, ready=3)

    async def scene() -> None:
        await world.settled()
        assert sum(world.pool.ready.values()) == 3
        taken = world.pool.take_ready(NAT)
        assert taken is not None
        assert sum(world.pool.ready.values()) == 2
        await world.settled()
        assert sum(world.pool.ready.values()) == 3

    play(world, scene)


def test_a_full_worker_refuses_after_the_wait() -> None:
    """The refusal names the time and the remedy, and comes no earlier."""
    world = World(slots=2, ready=2)

    async def scene() -> None:
        for _ in range(2):
            await world.pool.take(NAT, 5)
        before = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable, match=r"within 30 s.*\[pool\] slots"):
            await world.pool.take(NAT, 30)
        assert asyncio.get_running_loop().time() - before == pytest.approx(30)

    play(world, scene)


def test_those_who_wait_are_served_in_order() -> None:
    """A freed slot goes to the one who waited longest."""
    world = World(slots=1, ready=1)

    async def scene() -> None:
        held = await world.pool.take(NAT, 5)
        order: list[str] = []

        async def want(name: str) -> None:
            sandbox = await world.pool.take(NAT, 600)
            order.append(name)
            world.pool.condemn(sandbox)

        waiting: list[Awaitable[None]] = []
        for name in ("first", "second", "third"):
            waiting.append(asyncio.ensure_future(want(name)))
            await asyncio.sleep(0.1)
        world.pool.condemn(held)
        await asyncio.gather(*waiting)
        assert order == ["first", "second", "third"]

    play(world, scene)


def test_users_who_wait_take_turns() -> None:
    """One who came with a hundred jobs delays another's by one each, and is served as well."""
    world = World(slots=1, ready=1)

    async def scene() -> None:
        held = await world.pool.take(NAT, 5)
        order: list[int] = []

        async def want(user: int) -> None:
            sandbox = await world.pool.take(NAT, 10_000, user)
            order.append(user)
            world.pool.condemn(sandbox)

        waiting: list[Awaitable[None]] = []
        for user in (*[1001] * 100, *[1002] * 3, 1003):
            waiting.append(asyncio.ensure_future(want(user)))
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        world.pool.condemn(held)
        await asyncio.gather(*waiting)
        assert order[:8] == [1001, 1002, 1003, 1001, 1002, 1001, 1002, 1001]
        assert order.count(1001) == 100

    play(world, scene)


def test_giving_up_leaves_the_place_in_the_queue_and_loses_no_sandbox() -> None:
    """A caller that hangs up while it waits neither blocks the next nor swallows a sandbox."""
    world = World(slots=1, ready=1)

    async def scene() -> None:
        held = await world.pool.take(NAT, 5)
        quitter = asyncio.ensure_future(world.pool.take(NAT, 600))
        await asyncio.sleep(0.1)
        patient = asyncio.ensure_future(world.pool.take(NAT, 600))
        await asyncio.sleep(0.1)
        quitter.cancel()
        world.pool.condemn(held)
        assert (await patient).slot == 0

    play(world, scene)


def test_dismantling_is_done_in_batches() -> None:
    """Jobs that end within a moment are taken apart together."""
    world = World(slots=8, ready=4)

    async def scene() -> None:
        held = [await world.pool.take(NAT, 5) for _ in range(4)]
        for sandbox in held:
            world.pool.condemn(sandbox)
            await asyncio.sleep(0.1)
        await world.settled()
        assert world.nat.batches == [[sandbox.slot for sandbox in held]]

    play(world, scene)


def test_a_freed_slot_rests_while_others_are_free() -> None:
    """The slot used last is used again last."""
    world = World(slots=6, ready=1, rest=120)

    async def scene() -> None:
        seen = []
        for _ in range(6):
            sandbox = await world.pool.take(NAT, 5)
            seen.append(sandbox.slot)
            world.pool.condemn(sandbox)
            await world.settled()
        assert sorted(seen) == list(range(6))

    play(world, scene)


def test_resting_slots_are_used_rather_than_refusing() -> None:
    """With every slot at rest, a job gets the one that rested longest."""
    world = World(slots=2, ready=0, rest=3600)

    async def scene() -> None:
        for turn in range(6):
            sandbox = await world.pool.take(NAT, 5)
            assert sandbox.slot == turn % 2
            world.pool.condemn(sandbox)
            await world.settled()

    play(world, scene)


def test_idle_sandboxes_of_another_kind_give_way() -> None:
    """A job that wants no network gets the slot of an idle NAT sandbox."""
    world = World(slots=2, ready=2)

    async def scene() -> None:
        await world.settled()
        sandbox = await world.pool.take(NONE, 30)
        assert sandbox.kind == NONE

    play(world, scene)


def test_a_failed_build_is_tried_again_and_told_to_those_who_wait() -> None:
    """One refusal of the kernel costs a moment; lasting ones are in the refusal's words."""
    world = World(slots=4, ready=0)

    async def scene() -> None:
        world.nat.failures = 2
        assert (await world.pool.take(NAT, 30)).kind == NAT
        world.nat.failures = 10**6
        with pytest.raises(Unavailable, match="no buffer space"):
            await world.pool.take(NAT, 30)
        assert world.pool.build_errors > 2

    play(world, scene)


def test_a_kind_that_this_worker_has_not_is_refused_at_once() -> None:
    """A policy may ask for what the agent was not started with: the refusal says what to do."""
    world = World(slots=2, ready=1)

    async def scene() -> None:
        await world.settled()
        with pytest.raises(Unavailable, match=r"no routed networks.*routed6.*restart"):
            await world.pool.take(Kind(Connectivity.ROUTED), 30)
        with pytest.raises(Unavailable, match=r"no vlan cms networks.*networks\.cms.*restart"):
            await world.pool.take(Kind(Connectivity.VLAN, "cms"), 30)
        assert sum(world.pool.ready.values()) == 1

    play(world, scene)


def test_nothing_stands_after_the_end() -> None:
    """`empty` takes down what holds no job, and only that."""
    world = World(slots=6, ready=3)

    async def scene() -> None:
        held = await world.pool.take(NAT, 5)
        world.pool.condemn(await world.pool.take(NAT, 5))
        await world.settled()
        await world.pool.empty()
        assert world.nat.standing == {held.slot}

    play(world, scene)


def test_a_network_that_does_not_answer_holds_up_nobody_else() -> None:
    """While a job waits for the site's DHCP server, others get their sandboxes as ever."""
    world = World(slots=8, ready=2)

    async def scene() -> None:
        waiting = asyncio.ensure_future(world.pool.take(LAB, 600))
        await world.settled()
        for _ in range(4):
            assert (await world.pool.take(NAT, 30)).kind == NAT
        assert not waiting.done()
        world.answer.set()
        assert (await waiting).kind == LAB

    play(world, scene)


def test_a_sandbox_that_wore_off_is_given_to_nobody() -> None:
    """An idle one that has lost its address is dismantled, and the job gets the next."""
    world = World(slots=4, ready=2)

    async def scene() -> None:
        await world.settled()
        world.nat.worn = {0}
        assert (await world.pool.take(NAT, 30)).slot == 1
        await world.settled()
        assert world.nat.batches == [[0]]

    play(world, scene)


def test_what_no_driver_knows_is_dismantled_too() -> None:
    """Leftovers on networks that are not configured go, and free their slots."""
    world = World(slots=1, ready=0)

    async def scene() -> None:
        left = Sandbox(0, Connectivity.OVS, network="gone")
        assert (await world.pool.take(NAT, 30)).slot == 0
        world.pool.condemn(left)
        await world.settled()
        assert world.remains.batches == [[0]]
        assert (await world.pool.take(NAT, 30)).slot == 0

    play(world, scene)
