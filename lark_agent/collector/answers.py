"""Answering from the store: the collector's `UsageSource`.

Each answer is one read transaction, so its parts fit together while reports keep arriving. Totals
are sums over `hours` joined with the records that say whose they are. Sums are taken in two
halves of 32 bits, because SQLite's SUM stops at 2^63 with an error, and one worker that reports
nonsense must not make everybody's totals unreadable.

A long job has more samples than anyone can look at: of more than MAX_SAMPLES, evenly spaced ones
are answered, the last always among them.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql

from lark_agent.accounting.questions import HOUR_NS, GroupBy, JobRun, Sample, Total, Totals
from lark_agent.accounting.quotas import periods_of
from lark_agent.collector.rows import record_of, sample_of, standing_of
from lark_agent.collector.schema import (
    COUNTS,
    HOURS,
    LEASES,
    POOL_KEY,
    POOLS,
    RECORDS,
    SAMPLES,
    store_errors,
    transaction,
)
from lark_agent.config import QuotaScope
from lark_agent.model import Count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lark_agent.accounting.questions import JobFilter
    from lark_agent.accounting.quotas import Standing
    from lark_agent.model import Record

DAY_NS = 24 * HOUR_NS
MAX_RUNS = 20
"""Runs answered for one job id."""
MAX_SAMPLES = 1000
"""Samples answered for one run."""
SUMS = (*COUNTS, "cost")
PREFIX = re.compile(r"[0-9a-f-]{8,36}")
"""What can be the start of an attachment id."""

KEYS: dict[GroupBy, sql.ColumnElement[Any]] = {
    GroupBy.OWNER: RECORDS.c.owner,
    GroupBy.ACCOUNTING_GROUP: RECORDS.c.accounting_group,
    GroupBy.WORKER: RECORDS.c.worker,
    GroupBy.CLASS: HOURS.c.traffic_class,
    GroupBy.DAY: HOURS.c.hour_ns // DAY_NS,
}


class Answers:
    """Implements `UsageSource`; may be used from several threads."""

    def __init__(self, engine: sql.Engine, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._engine = engine
        self._now_ns = now_ns

    def list_jobs(
        self, wanted: JobFilter, visible_owner: str | None, limit: int, after: str
    ) -> Sequence[Record]:
        """Return at most `limit` records, newest first, with ids below `after` ("": all)."""
        query = sql.select(RECORDS).where(*_whose(wanted, visible_owner))
        if wanted.running is not None:
            running = RECORDS.c.ended_ns == 0
            query = query.where(running if wanted.running else ~running)
        if wanted.since_ns:
            query = query.where((RECORDS.c.ended_ns == 0) | (RECORDS.c.ended_ns >= wanted.since_ns))
        if wanted.until_ns:
            query = query.where(RECORDS.c.started_ns < wanted.until_ns)
        if after:
            query = query.where(RECORDS.c.attachment_id < after)
        query = query.order_by(RECORDS.c.attachment_id.desc()).limit(limit)
        with store_errors("list jobs"), transaction(self._engine, write=False) as connection:
            return [record_of(row) for row in connection.execute(query).mappings()]

    def find_job(self, text: str, visible_owner: str | None) -> Sequence[JobRun]:
        """Return the runs of a job named by job id, attachment id or a unique prefix of one."""
        visible = sql.select(RECORDS).where(*_seen_by(visible_owner))
        newest = visible.order_by(RECORDS.c.attachment_id.desc())
        with store_errors("find a job"), transaction(self._engine, write=False) as connection:
            rows = list(
                connection.execute(
                    newest.where(RECORDS.c.job_id == text).limit(MAX_RUNS)
                ).mappings()
            )
            if not rows and PREFIX.fullmatch(text):
                # "g" follows "f", so this is the range of ids that start with the text
                key = RECORDS.c.attachment_id
                starting = newest.where(key >= text, key < text + "g").limit(2)
                rows = list(connection.execute(starting).mappings())
                rows = rows if len(rows) == 1 else []
            records = [record_of(row) for row in rows]
            return [JobRun(r, _samples(connection, r.attachment_id)) for r in records]

    def totals(self, by: Sequence[GroupBy], wanted: JobFilter, visible_owner: str | None) -> Totals:
        """Sum what moved in the hours that the filter's times touch, most bytes first."""
        since = wanted.since_ns // HOUR_NS * HOUR_NS
        until = -(-wanted.until_ns // HOUR_NS) * HOUR_NS
        keys = [KEYS[grouping] for grouping in by]
        halves = [part for name in SUMS for part in _sum_in_halves(HOURS.c[name])]
        query = (
            sql.select(
                sql.func.min(HOURS.c.hour_ns),
                sql.func.max(HOURS.c.hour_ns),
                sql.func.count(HOURS.c.attachment_id.distinct()),
                *halves,
                *keys,
            )
            .join_from(HOURS, RECORDS, HOURS.c.attachment_id == RECORDS.c.attachment_id)
            .where(HOURS.c.hour_ns >= since, *_whose(wanted, visible_owner))
            .group_by(*keys)
        )
        if until:
            query = query.where(HOURS.c.hour_ns < until)
        if GroupBy.CLASS in by:  # jobs that moved nothing are booked under no class
            query = query.where(HOURS.c.traffic_class != "")
        with store_errors("sum up usage"), transaction(self._engine, write=False) as connection:
            # without keys SQL gives one row also for no hours at all; its minimum is NULL
            found = [row for row in connection.execute(query) if row[0] is not None]
        rows = [_total(by, row[2], row[3:]) for row in found]
        rows.sort(key=lambda row: (-(row.sent.bytes + row.received.bytes), row.key))
        if not until:
            ends = [self._now_ns(), *(row[1] for row in found)]
            until = (max(ends) // HOUR_NS + 1) * HOUR_NS
        if not since:
            since = min((row[0] for row in found), default=until)
        return Totals(since, until, tuple(rows))

    def quotas(self, owner: str | None, now_ns: int) -> Sequence[Standing]:
        """Return how the shared quotas of the present periods stand."""
        pool = [POOLS.c[name] == LEASES.c[name] for name in POOL_KEY]
        holders = (
            sql.select(sql.func.count(LEASES.c.worker.distinct()))
            .where(*pool, LEASES.c.closed.is_(False))
            .scalar_subquery()
        )
        query = sql.select(POOLS, holders.label("workers")).order_by(
            *(POOLS.c[k] for k in POOL_KEY)
        )
        query = query.where(POOLS.c.period.in_(periods_of(now_ns)))
        if owner is not None:
            theirs = sql.exists().where(
                RECORDS.c.owner == owner, RECORDS.c.accounting_group == POOLS.c.subject
            )
            query = query.where(
                ((POOLS.c.scope == QuotaScope.OWNER) & (POOLS.c.subject == owner))
                | ((POOLS.c.scope == QuotaScope.GROUP) & theirs)
            )
        with store_errors("look up quotas"), transaction(self._engine, write=False) as connection:
            return [standing_of(row) for row in connection.execute(query).mappings()]


def _seen_by(visible_owner: str | None) -> list[sql.ColumnElement[bool]]:
    return [] if visible_owner is None else [RECORDS.c.owner == visible_owner]


def _whose(wanted: JobFilter, visible_owner: str | None) -> list[sql.ColumnElement[bool]]:
    """Conditions on who and where, and on who may see it."""
    conditions = _seen_by(visible_owner)
    for column, value in (
        (RECORDS.c.owner, wanted.owner),
        (RECORDS.c.accounting_group, wanted.accounting_group),
        (RECORDS.c.worker, wanted.worker),
    ):
        if value:
            conditions.append(column == value)
    return conditions


def _samples(connection: sql.Connection, attachment_id: str) -> tuple[Sample, ...]:
    place = sql.func.row_number().over(order_by=SAMPLES.c.sequence.desc()).label("place")
    count = sql.func.count().over().label("count")
    numbered = (
        sql.select(SAMPLES, place, count).where(SAMPLES.c.attachment_id == attachment_id).subquery()
    )
    step = (numbered.c.count + MAX_SAMPLES - 1) // MAX_SAMPLES
    query = (
        sql.select(numbered).where((numbered.c.place - 1) % step == 0).order_by(numbered.c.sequence)
    )
    return tuple(sample_of(row) for row in connection.execute(query).mappings())


def _sum_in_halves(column: sql.ColumnElement[int]) -> tuple[sql.ColumnElement[int], ...]:
    return (
        sql.func.sum(column.bitwise_rshift(32)),
        sql.func.sum(column.bitwise_and(0xFFFF_FFFF)),
    )


def _total(by: Sequence[GroupBy], jobs: int, values: Sequence[Any]) -> Total:
    """Put the halves of the sums together and write out the key."""
    width = 2 * len(SUMS)
    halves = zip(values[:width:2], values[1:width:2], strict=True)
    counts = [(int(high) << 32) + int(low) for high, low in halves]
    key = tuple(
        datetime.fromtimestamp(value * DAY_NS / 1e9, UTC).strftime("%Y-%m-%d")
        if grouping is GroupBy.DAY
        else value
        for grouping, value in zip(by, values[width:], strict=True)
    )
    return Total(key, jobs, Count(*counts[:2]), Count(*counts[2:4]), counts[4])
