"""Which job lives at which address of the pool, told to the workers that follow.

Jobs whose addresses others see (not nat or none) are found in the records that workers report: the
living one with the latest attachment id has the address. Each follower has the set of addresses
that it has not been told of yet, so a slow one costs a set and no queue, and hears the latest word
only. Belongs to the event loop. A collector that starts knows nobody; every living job is reported
again with its next sample.

What is told can be a report late; an agent gives a freed address a rest that is far longer
(`lark_agent.sandbox.pool`), so no follower takes a job for the address's next one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lark_agent.model import Connectivity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from lark_agent.model import Record

HIDDEN = frozenset({Connectivity.NAT, Connectivity.NONE, Connectivity.HOST})
"""Connectivities whose addresses are the worker's own affair."""
MOST_AT_ONCE = 5000
"""Addresses in one message."""


class News(NamedTuple):
    """What a follower has not been told yet."""

    here: list[tuple[str, Record]]
    """Address and the job that has it now."""
    gone: list[str]
    """Addresses that nobody has any more."""


@dataclass(eq=False, slots=True)
class _Follower:
    pending: set[str]
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Directory:
    """The living jobs by address."""

    def __init__(self) -> None:
        self._at: dict[str, Record] = {}
        self._followers: set[_Follower] = set()

    def take(self, records: Iterable[Record]) -> None:
        """Take over what records say of who lives where."""
        for record in records:
            if record.connectivity in HIDDEN:
                continue
            for address in filter(None, (record.ipv4, record.ipv6)):
                self._put(address, record)

    def _put(self, address: str, record: Record) -> None:
        known = self._at.get(address)
        if known is not None and _age(record) <= _age(known):
            return
        before = known and _told(known)
        now = None if record.ended_ns else _told(record)
        if now:
            self._at[address] = record
        else:
            self._at.pop(address, None)
        if now == before:
            return
        for follower in self._followers:
            follower.pending.add(address)
            follower.news.set()

    async def follow(self, worker: str) -> AsyncIterator[News]:
        """Yield everything there is, then every change, for ever.

        Jobs of `worker` itself are left out: it knows them, and sooner.
        """
        follower = _Follower(set(self._at))
        self._followers.add(follower)
        follower.news.set()
        try:
            while True:
                await follower.news.wait()
                most = min(len(follower.pending), MOST_AT_ONCE)
                some = [follower.pending.pop() for _ in range(most)]
                if not follower.pending:
                    follower.news.clear()
                here = [(address, self._at[address]) for address in some if address in self._at]
                yield News(
                    [(address, record) for address, record in here if record.worker != worker],
                    [address for address in some if address not in self._at],
                )
        finally:
            self._followers.discard(follower)


def _age(record: Record) -> tuple[str, int]:
    return record.attachment_id, record.sequence


def _told(record: Record) -> tuple[str, ...]:
    """Return what followers are told of a job."""
    job = record.job
    return record.worker, job.owner, job.accounting_group, record.peers
