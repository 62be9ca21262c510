"""Writing to the store: batches of records in, all in one transaction, each judged on its own.

Records are cumulative, so a store only ever moves forward: of one attachment the highest sequence
wins, a final record never changes, and whatever is repeated or late changes nothing. What a
record adds to the one before is booked to its hour at the same moment (`hour_shares`); so at every
commit the hours of an attachment sum to exactly its record.

Three things cannot be and are refused, batch by batch: another worker's attachment, cumulative
counters that fall, and a class that vanishes. They are judged in memory before the first row is
written, so that one worker's bad batch costs the others in the same transaction nothing.

Each batch that is taken moves its worker's mark, in the same transaction
(`lark_agent.accounting.marks`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sql

from lark_agent.accounting.marks import Mark
from lark_agent.accounting.questions import HourShare, hour_shares
from lark_agent.collector.rows import CHANGING, counts_of, record_of, row_of, sample_row_of
from lark_agent.collector.schema import (
    COUNTS,
    HOURS,
    META,
    RECORDS,
    SAMPLES,
    WORKERS,
    store_errors,
    transaction,
    upsert,
)
from lark_agent.model import Count
from lark_agent.rpc.convert import InvalidRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.model import Record

LOOK_UP = 500
"""Attachment ids in one SELECT (SQLite takes 32,766 variables, other databases fewer)."""

Batch = tuple["Record", ...]


class Store:
    """The writer's side of one database; use it from one thread at a time."""

    def __init__(self, engine: sql.Engine) -> None:
        self._engine = engine

    def mark(self, worker: str) -> Mark:
        """Return how much of a worker is here; from any thread. Raises StoreError."""
        with (
            store_errors("read a worker's mark"),
            transaction(self._engine, write=False) as connection,
        ):
            identity = connection.scalar(sql.select(META.c.value).where(META.c.name == "identity"))
            number = connection.scalar(sql.select(WORKERS.c.mark).where(WORKERS.c.worker == worker))
        return Mark(identity or 0, number or 0)

    def apply(self, batches: Sequence[Batch]) -> list[InvalidRecord | int]:
        """Make all batches durable in one transaction.

        Returns for each its worker's mark with it (0 of an empty batch), or why it was refused.

        Raises StoreError, and then nothing of them is stored.
        """
        records = sum(map(len, batches))
        with (
            store_errors(f"store {records} records"),
            transaction(self._engine, write=True) as connection,
        ):
            known = _known(connection, {r.attachment_id for batch in batches for r in batch})
            changes = _Changes(known)
            refusals = [changes.take(batch) for batch in batches]
            changes.write(connection)
            return [
                refusal or (_move_mark(connection, batch[0].worker) if batch else 0)
                for refusal, batch in zip(refusals, batches, strict=True)
            ]

    def probe(self, now_ns: int) -> None:
        """Write one row, to learn whether the store takes any; raises StoreError."""
        with (
            store_errors("write to the store"),
            transaction(self._engine, write=True) as connection,
        ):
            connection.execute(
                sql.update(META).where(META.c.name == "probed_ns").values(value=now_ns)
            )


class _Changes:
    """What a transaction will write."""

    def __init__(self, known: dict[str, Record]) -> None:
        self._latest = known
        self._changed: dict[str, Record] = {}
        self._samples: list[Record] = []
        self._booked: dict[tuple[int, str, str], tuple[Count, Count, int]] = {}

    def take(self, batch: Batch) -> InvalidRecord | None:
        """Add a batch if all of it is possible, else nothing of it."""
        staged: dict[str, Record] = {}
        samples: list[Record] = []
        shares: list[tuple[str, HourShare]] = []
        for record in batch:
            key = record.attachment_id
            before = staged.get(key) or self._latest.get(key)
            if before is not None:
                impossible = _contradiction(before, record)
                if impossible:
                    return InvalidRecord(f"attachment {key}: {impossible}")
                if before.final or record.sequence <= before.sequence:
                    continue
            staged[key] = record
            samples.append(record)
            shares += ((key, share) for share in hour_shares(before, record))
        self._latest |= staged
        self._changed |= staged
        self._samples += samples
        for key, share in shares:
            place = (share.hour_ns, key, share.traffic_class)
            sent, received, cost = self._booked.get(place, (Count(), Count(), 0))
            self._booked[place] = (
                sent + share.sent, received + share.received, cost + share.cost,
            )  # fmt: skip
        return None

    def write(self, connection: sql.Connection) -> None:
        if self._changed:
            rows = [row_of(record) for record in self._changed.values()]
            connection.execute(upsert(RECORDS, new=CHANGING), rows)
            samples = [sample_row_of(record) for record in self._samples]
            connection.execute(sql.insert(SAMPLES), samples)
        if self._booked:
            shares = [
                {
                    "hour_ns": hour,
                    "attachment_id": key,
                    "traffic_class": name,
                    **counts_of(sent, received),
                    "cost": cost,
                }
                for (hour, key, name), (sent, received, cost) in self._booked.items()
            ]
            connection.execute(upsert(HOURS, added=(*COUNTS, "cost")), shares)


def _move_mark(connection: sql.Connection, worker: str) -> int:
    row = {"worker": worker, "mark": 1}
    connection.execute(upsert(WORKERS, added=("mark",)), row)
    return int(
        connection.execute(
            sql.select(WORKERS.c.mark).where(WORKERS.c.worker == worker)
        ).scalar_one()
    )


def _known(connection: sql.Connection, ids: set[str]) -> dict[str, Record]:
    known = {}
    ordered = sorted(ids)
    for start in range(0, len(ordered), LOOK_UP):
        wanted = RECORDS.c.attachment_id.in_(ordered[start : start + LOOK_UP])
        for row in connection.execute(sql.select(RECORDS).where(wanted)).mappings():
            known[row["attachment_id"]] = record_of(row)
    return known


def _contradiction(before: Record, record: Record) -> str:
    """Return why `record` cannot be of the same attachment as `before`; empty if it can."""
    if record.worker != before.worker:
        return f"reported by {record.worker}, but it belongs to {before.worker}"
    if before.final or record.sequence <= before.sequence:
        return ""  # changes nothing
    now = {entry.traffic_class: entry for entry in record.usage.classes}
    for old in before.usage.classes:
        entry = now.get(old.traffic_class)
        if entry is None:
            return f"class '{old.traffic_class}' vanished from its cumulative counters"
        grown = (entry.sent - old.sent, entry.received - old.received)
        if any(count.packets < 0 or count.bytes < 0 for count in grown):
            return f"the cumulative counters of class '{old.traffic_class}' fell"
        if entry.cost < old.cost:
            return f"the cumulative cost of class '{old.traffic_class}' fell"
    return ""
