"""One thread that writes: every stream's batches, in as few transactions as possible.

A durable commit costs a flush of the disk whether it holds one record or ten thousand, and SQLite
has one writer anyway. So the streams queue their batches, and the thread takes whatever waits at
that moment into one transaction (group commit): alone, a batch is durable at once; under load the
flush is shared. A batch is acknowledged by its future, after the commit and never before.

Claims on quotas go the same way, into a transaction of the group's own: a grant is told after its
commit, as an acknowledgement is.

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
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from lark_agent import trouble
from lark_agent.collector.ledger import WorkerClaims
from lark_agent.errors import LarkError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from lark_agent.accounting.leases import Grant
    from lark_agent.accounting.marks import Mark
    from lark_agent.collector.ledger import Ledger
    from lark_agent.collector.store import Batch, Store

    Outcome: TypeAlias = LarkError | Sequence[Grant] | int | None

GROUP_RECORDS = 20_000
"""A transaction takes no further batch from here on, so that no stream waits long."""

Waiting = tuple["Batch | WorkerClaims", "Future[Any]"]
Work = TypeVar("Work")
log = structlog.get_logger()


class Writer:
    """Writes to `store` and `ledger` from a thread of its own until `close`."""

    def __init__(
        self, store: Store, ledger: Ledger, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._now_ns = now_ns
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._closed = False
        self.failure: StoreError | None = None
        """Why the last write failed; None if it did not."""
        self._thread = threading.Thread(target=self._run, name="store writer", daemon=True)
        self._thread.start()

    async def write(self, batch: Batch) -> int:
        """Return the worker's mark when the batch is durable; raises InvalidRecord or StoreError.

        An empty batch writes a probe row instead: the way to learn whether the store is well.
        """
        mark: int = await self._queued(batch)
        return mark

    async def mark(self, worker: str) -> Mark:
        """Return how much of a worker the store has; raises StoreError."""
        return await asyncio.to_thread(self._store.mark, worker)

    async def settle(self, claims: WorkerClaims) -> Sequence[Grant]:
        """Return the grants for a worker's claims when they are durable; raises as `write`."""
        grants: Sequence[Grant] = await self._queued(claims)
        return grants

    async def _queued(self, work: Batch | WorkerClaims) -> Any:
        if self._closed:
            raise StoreError("the collector is stopping; report again when it is back")
        future: Future[Any] = Future()
        self._queue.put((work, future))
        return await asyncio.wrap_future(future)

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
                if sum(_size(work) for work, _ in group) >= GROUP_RECORDS:
                    break
                try:
                    waiting = self._queue.get_nowait()
                except queue.Empty:
                    break
            open_ = waiting is not None
            self._commit(group)

    def _commit(self, group: list[Waiting]) -> None:
        """Store a group and answer its futures; whatever happens, every future gets an answer."""
        batches: list[tuple[Batch, Future[Any]]] = []
        claims: list[tuple[WorkerClaims, Future[Any]]] = []
        for work, future in group:
            if isinstance(work, WorkerClaims):
                claims.append((work, future))
            else:
                batches.append((work, future))
        if batches:
            self._answer(batches, self._store_batches)
        if claims:
            self._answer(claims, lambda all_of: self._ledger.settle(all_of, self._now_ns()))

    def _store_batches(self, batches: list[Batch]) -> Sequence[Outcome]:
        if not all(batches):
            self._store.probe(self._now_ns())
        return self._store.apply(batches)

    def _answer(
        self,
        group: list[tuple[Work, Future[Any]]],
        store: Callable[[list[Work]], Sequence[Outcome]],
    ) -> None:
        outcomes: Sequence[Outcome]
        try:
            outcomes = store([work for work, _ in group])
            self._note(None)
        except StoreError as error:
            trouble.met("store")
            self._note(error)
            outcomes = [error] * len(group)
        except Exception as error:
            trouble.met("store, unexpectedly")
            log.exception("storing failed unexpectedly")
            self._note(StoreError(f"storing failed unexpectedly: {error!r}; see the log"))
            outcomes = [self.failure] * len(group)
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, LarkError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _note(self, failure: StoreError | None) -> None:
        """Log the change between well and unwell, not every failure: each worker tries again."""
        if failure is not None and self.failure is None:
            log.error("the store takes no records", error=str(failure))
        elif failure is None and self.failure is not None:
            log.info("the store takes records again")
        self.failure = failure


def _size(work: Batch | WorkerClaims) -> int:
    return len(work.claims) if isinstance(work, WorkerClaims) else len(work)
