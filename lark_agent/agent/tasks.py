"""Background work of the daemon: named, guarded, counted.

A background task that ends has failed: its error is logged and counted under the task's name, and
the task is started again after a pause. `OwnThread` is a thread for calls that must not run beside
each other (the kernel socket, the journal) and must not block the loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Result = TypeVar("Result")
_PAUSE_SECONDS = 1.0
_AGAIN_SECONDS = 2.0
"""Whoever has not ended by then after a cancellation is cancelled again."""
log = structlog.get_logger(__name__)


class Tasks:
    """The daemon's background tasks."""

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()
        self._running: set[asyncio.Task[None]] = set()

    def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` for as long as the daemon lives, starting it again whenever it ends."""
        self._start(self._again_and_again(name, work), name)

    def once(self, name: str, work: Awaitable[None]) -> None:
        """Run `work` to its end in the background; an error is logged and counted."""
        self._start(self._guarded(name, work), name)

    async def stop(self) -> None:
        """Cancel everything and wait for it.

        Once is not enough: `asyncio.wait_for` of Python 3.11 loses a cancellation that comes with
        what it waits for, and its task goes on (python/cpython#86296).
        """
        while self._running:
            for task in self._running:
                task.cancel()
            await asyncio.wait(self._running, timeout=_AGAIN_SECONDS)

    def _start(self, work: Awaitable[None], name: str) -> None:
        task = asyncio.ensure_future(work)
        task.set_name(name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _again_and_again(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._guarded(name, work())
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _guarded(self, name: str, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:
            self.errors[name] += 1
            log.exception("background task failed", task=name, error=str(error))


class OwnThread:
    """One thread that runs one call after the other."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"lark-{name}")
        self._pending = 0

    async def __call__(self, work: Callable[[], Result]) -> Result:
        """Run `work` in the thread and return its result or raise its error."""
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            self._pending -= 1

    async def at_once(self, work: Callable[[], Result]) -> Result:
        """Run short `work` here and now if the thread is idle, else in the thread as usual.

        Waking a thread can take longer than the work itself. All calls are made by the loop, so
        none can begin while this one runs in it.
        """
        return work() if self._pending == 0 else await self(work)

    def close(self) -> None:
        """Wait for the calls that were made and end the thread."""
        self._executor.shutdown(wait=True)
