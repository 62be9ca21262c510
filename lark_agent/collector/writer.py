"""One thread that writes: every stream's batches, in as few transactions as possible.

A durable commit costs a flush of the disk whether it holds one record or ten thousand, and SQLite
has one writer anyway. So the streams queue their batches, and the thread takes whatever waits at
that moment into one transaction (group commit): alone, a batch is durable at once; under load the
flush is shared. A batch is acknowledged by its future, after the commit and never before.

Each stream has one batch in the queue at most, so the queue is as short as the workers are many.
When the store fails, every batch of that transaction fails with the same StoreError, the thread
goes on, and `failure` tells why until a later write succeeds.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

import structlog

from lark_agent.errors import LarkError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lark_agent.collector.store import Batch, Store

GROUP_RECORDS = 20_000
"""A transaction takes no further batch from here on, so that no stream waits long."""

Waiting = tuple["Batch", "Future[None]"]
log = structlog.get_logger()


class Writer:
    """Writes to `store` from a thread of its own until `close`."""

    def __init__(self, store: Store, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._now_ns = now_ns
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._closed = False
        self.failure: StoreError | None = None
        """Why the last write failed; None if it did not."""
        self._thread = threading.Thread(target=self._run, name="store writer", daemon=True)
        self._thread.start()

    async def write(self, batch: Batch) -> None:
        """Return when the batch is durable; raises InvalidRecord or StoreError.

        An empty batch writes a probe row instead: the way to learn whether the store is well.
        """
        if self._closed:
            raise StoreError("the collector is stopping; report again when it is back")
        future: Future[None] = Future()
        self._queue.put((batch, future))
        await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Write what is queued, then end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        open_ = True
        while open_:
            group: list[Waiting] = []
            waiting = self._queue.get()
            while waiting is not None:
                if waiting[1].set_running_or_notify_cancel():  # else its stream is gone
                    group.append(waiting)
                if sum(len(batch) for batch, _ in group) >= GROUP_RECORDS:
                    break
                try:
                    waiting = self._queue.get_nowait()
                except queue.Empty:
                    break
            open_ = waiting is not None
            self._commit(group)

    def _commit(self, group: list[Waiting]) -> None:
        """Store a group and answer its futures; whatever happens, every future gets an answer."""
        verdicts: list[LarkError | None]
        try:
            if not all(batch for batch, _ in group):
                self._store.probe(self._now_ns())
            verdicts = list(self._store.apply([batch for batch, _ in group]))
            self._note(None)
        except StoreError as error:
            self._note(error)
            verdicts = [error] * len(group)
        except Exception as error:
            log.exception("storing records failed unexpectedly")
            self._note(StoreError(f"storing records failed unexpectedly: {error!r}; see the log"))
            verdicts = [self.failure] * len(group)
        for (_, future), verdict in zip(group, verdicts, strict=True):
            if verdict is None:
                future.set_result(None)
            else:
                future.set_exception(verdict)

    def _note(self, failure: StoreError | None) -> None:
        """Log the change between well and unwell, not every failure: each worker tries again."""
        if failure is not None and self.failure is None:
            log.error("the store takes no records", error=str(failure))
        elif failure is None and self.failure is not None:
            log.info("the store takes records again")
        self.failure = failure
