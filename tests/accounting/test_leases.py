"""The promise of leases: whatever is lost, repeated, late or restarted, no pool is overspent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lark_agent.accounting.leases import LEAST_CHUNK, Claim, Lease, Pool, chunk, settle
from lark_agent.accounting.quotas import PoolKey

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = PoolKey("cloud", "owner", "alice", "2026-11")
LIMIT = 50 * LEAST_CHUNK
WORKERS = st.integers(0, 3)


def claim(lease: str = "a", granted: int = 0, used: int = 0, **flags: bool) -> Claim:
    return Claim(lease, KEY, LIMIT, "cut-all", granted, used, **flags)


@dataclass
class Worker:
    """What one worker's journal and kernel hold: `used` never passes `granted`."""

    number: int = 0
    granted: int = 0
    used: int = 0
    spent_before: int = 0
    open: bool = False

    @property
    def spent(self) -> int:
        return self.spent_before + self.used


@dataclass
class Book:
    pool: Pool = field(default_factory=Pool)
    leases: dict[str, Lease] = field(default_factory=dict)

    def take(self, told: Claim) -> int:
        sharing = sum(not lease.closed for key, lease in self.leases.items() if key != told.lease)
        self.pool, lease = settle(self.pool, self.leases.get(told.lease), told, LIMIT, sharing + 1)
        self.leases[told.lease] = lease
        return lease.granted


class Leasing(RuleBasedStateMachine):
    """Four workers, one book, and a network that delays, repeats and loses."""

    def __init__(self) -> None:
        super().__init__()
        self.book = Book()
        self.workers = [Worker() for _ in range(4)]
        self.wire: list[tuple[int, Claim]] = []

    def name(self, index: int) -> str:
        return f"{index}-{self.workers[index].number}"

    @rule(index=WORKERS, wanted=st.booleans())
    def tell(self, index: int, wanted: bool) -> None:
        worker = self.workers[index]
        worker.open = True
        told = claim(self.name(index), worker.granted, worker.used, wanted=wanted)
        self.wire.append((index, told))

    @rule(index=WORKERS)
    def close(self, index: int) -> None:
        worker = self.workers[index]
        self.wire.append((index, claim(self.name(index), worker.granted, worker.used, closed=True)))
        # its next job has another lease; what was spent stays spent
        self.workers[index] = Worker(worker.number + 1, spent_before=worker.spent)

    @rule(data=st.data(), heard=st.booleans(), again=st.booleans())
    def deliver(self, data: st.DataObject, heard: bool, again: bool) -> None:
        """Deliver any message under way, in any order; the answer may be lost."""
        if not self.wire:
            return
        place = data.draw(st.integers(0, len(self.wire) - 1))
        index, told = self.wire[place] if again else self.wire.pop(place)
        granted = self.book.take(told)
        if heard and told.lease == self.name(index):
            worker = self.workers[index]
            worker.granted = max(worker.granted, granted)

    @rule(index=WORKERS, wish=st.integers(1, 20 * LEAST_CHUNK))
    def spend(self, index: int, wish: int) -> None:
        worker = self.workers[index]
        worker.used = min(worker.granted, worker.used + wish)

    @rule(index=WORKERS)
    def lose_journal(self, index: int) -> None:
        """Install a worker anew: it forgets its lease; the book does not."""
        worker = self.workers[index]
        self.workers[index] = Worker(worker.number + 1, spent_before=worker.spent)

    @invariant()
    def never_overspent(self) -> None:
        assert sum(worker.spent for worker in self.workers) <= LIMIT
        assert self.book.pool.granted <= LIMIT

    @invariant()
    def sums_fit(self) -> None:
        leases = self.book.leases.values()
        assert self.book.pool.granted == sum(lease.granted for lease in leases)
        assert self.book.pool.used == sum(lease.used for lease in leases)


TestLeasing = Leasing.TestCase
TestLeasing.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def take_all(book: Book, lease: str) -> Iterator[int]:
    """Ask for more and use all of it, until there is no more."""
    granted = 0
    while (more := book.take(claim(lease, granted, granted, wanted=True))) > granted:
        yield more - granted
        granted = more


def test_one_worker_can_have_all_of_it() -> None:
    """Asked often enough, the whole pool is granted, in ever smaller parts, and not a byte more."""
    parts = list(take_all(Book(), "a"))
    assert sum(parts) == LIMIT
    assert parts[:-1] == sorted(parts[:-1], reverse=True)
    assert len(parts) < 50


def test_what_a_closed_lease_did_not_use_goes_to_others() -> None:
    """A worker that used a tenth of its lease gives nine tenths back."""
    book = Book()
    first = book.take(claim("a", wanted=True))
    book.take(claim("a", first, first // 10, closed=True))
    assert sum(take_all(book, "b")) == LIMIT - first // 10


def test_a_book_that_forgot_believes_the_workers() -> None:
    """After a backup was restored, known use is never shortened, and it may pass the limit."""
    book = Book(Pool(LIMIT, LIMIT), {"b": Lease(LIMIT, LIMIT)})
    assert book.take(claim("a", 7 * LEAST_CHUNK, 5 * LEAST_CHUNK)) == 7 * LEAST_CHUNK
    assert book.pool == Pool(LIMIT + 7 * LEAST_CHUNK, LIMIT + 5 * LEAST_CHUNK)
    assert book.take(claim("a", 7 * LEAST_CHUNK, 0, wanted=True)) == 7 * LEAST_CHUNK


def test_use_beyond_a_lease_is_booked() -> None:
    """What a worker let through while the book was out of reach is taken from the pool."""
    book = Book()
    granted = book.take(claim("a", wanted=True))
    assert book.take(claim("a", granted, granted + 9)) == granted + 9
    assert book.pool.granted == granted + 9


def test_parts_shrink_with_the_number_of_workers() -> None:
    """Nobody gets more than half of what is left, divided by those who share in it."""
    assert chunk(LIMIT, LIMIT, 1) == LIMIT // 2
    assert chunk(LIMIT, LIMIT, 5) == LIMIT // 10
    assert chunk(10**12, 10**12, 10**6) == 10**9
    assert chunk(LIMIT, 5, 1) == 5
    assert chunk(LIMIT, -5, 1) == 0


def test_a_repeated_claim_is_answered_alike() -> None:
    """Who did not hear of a grant is told of it, and given no more on top."""
    book = Book()
    ask = claim("a", wanted=True)
    assert book.take(ask) == book.take(ask) == book.take(replace(ask, wanted=False))
