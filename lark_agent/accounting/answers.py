"""What people on this worker ask, answered from the journal through a connection of its own.

SQLite's write-ahead log lets readers work beside the journal's writer without waiting for it, so a
long question never delays a job's start. Methods may run in any thread.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lark_agent.accounting.allotments import FILE_NAME, standings
from lark_agent.accounting.journal import CACHE_KIB, WITHHELD, decode
from lark_agent.accounting.questions import (
    HOUR_NS,
    GroupBy,
    JobFilter,
    JobRun,
    Sample,
    Total,
    Totals,
)
from lark_agent.config import QuotaScope
from lark_agent.errors import StoreError
from lark_agent.model import Count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lark_agent.accounting.quotas import PoolKey, Standing
    from lark_agent.model import Record

_MOST_RUNS = 1000
_GROUP_COLUMNS = {
    GroupBy.OWNER: "a.owner",
    GroupBy.ACCOUNTING_GROUP: "a.accounting_group",
    GroupBy.WORKER: "a.worker",
    GroupBy.CLASS: "h.traffic_class",
    GroupBy.DAY: "strftime('%Y-%m-%d', h.hour_ns / 1000000000, 'unixepoch')",
}


class Answers:
    """A `UsageSource` over an existing journal."""

    def __init__(self, journal: Path) -> None:
        self._path = journal
        with self._reading():
            self._db = sqlite3.connect(f"file:{journal}?mode=ro", uri=True, check_same_thread=False)
            self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def list_jobs(
        self, wanted: JobFilter, visible_owner: str | None, limit: int, after: str
    ) -> Sequence[Record]:
        """See UsageSource."""
        condition, values = _condition(wanted, visible_owner)
        if wanted.running is not None:
            condition += " AND a.ended_ns = 0" if wanted.running else " AND a.ended_ns != 0"
        if wanted.since_ns:
            condition += " AND (a.ended_ns = 0 OR a.ended_ns >= ?)"
            values.append(wanted.since_ns)
        if wanted.until_ns:
            condition += " AND a.started_ns < ?"
            values.append(wanted.until_ns)
        if after:
            condition += " AND a.attachment_id < ?"
            values.append(after)
        return self._records(condition, values, limit)

    def find_job(self, text: str, visible_owner: str | None) -> Sequence[JobRun]:
        """See UsageSource."""
        condition, values = _condition(JobFilter(), visible_owner)
        named = condition + " AND (a.job_id = ? OR a.attachment_id = ?)"
        exact = self._records(named, [*values, text, text], _MOST_RUNS)
        if not exact and len(text) >= 8:
            prefix = text.lower()
            # "g" sorts after every character of an id
            exact = self._records(
                condition + " AND a.attachment_id >= ? AND a.attachment_id < ?",
                [*values, prefix, prefix + "g"],
                2,
            )
            exact = exact if len(exact) == 1 else []
        return [JobRun(record, self._samples(record.attachment_id)) for record in exact]

    def totals(self, by: Sequence[GroupBy], wanted: JobFilter, visible_owner: str | None) -> Totals:
        """See UsageSource."""
        condition, values = _condition(wanted, visible_owner)
        since = wanted.since_ns // HOUR_NS * HOUR_NS
        until = -(-wanted.until_ns // HOUR_NS) * HOUR_NS
        condition += " AND h.hour_ns >= ?" + (" AND h.hour_ns < ?" if until else "")
        values += [since, until] if until else [since]
        if GroupBy.CLASS in by:
            condition += " AND h.traffic_class != ''"
        keys = [_GROUP_COLUMNS[group] for group in by]
        sums = (
            "sum(h.sent_packets), sum(h.sent_bytes), "
            "sum(h.received_packets), sum(h.received_bytes), sum(h.cost)"
        )
        select = ", ".join([*keys, "count(DISTINCT h.attachment_id)", sums])
        grouping = f"GROUP BY {', '.join(keys)}" if keys else ""
        with self._reading():
            rows = self._db.execute(
                f"SELECT {select} FROM hours h JOIN attachments a USING (attachment_id) "  # noqa: S608  constant columns
                f"WHERE {condition} {grouping} "
                "ORDER BY sum(h.sent_bytes) + sum(h.received_bytes) DESC",
                values,
            ).fetchall()
            bounds = self._db.execute("SELECT min(hour_ns), max(hour_ns) FROM hours").fetchone()
        width = len(keys)
        totals = tuple(
            Total(
                tuple(row[:width]),
                row[width],
                Count(*row[width + 1 : width + 3]),
                Count(*row[width + 3 : width + 5]),
                row[width + 5],
            )
            for row in rows
            if row[width]
        )
        first, last = bounds if bounds[0] is not None else (since, since - HOUR_NS)
        return Totals(since or first, until or last + HOUR_NS, totals)

    def quotas(self, owner: str | None, now_ns: int) -> Sequence[Standing]:
        """See UsageSource."""
        with self._reading():
            groups = self._db.execute(
                "SELECT DISTINCT accounting_group FROM attachments WHERE owner = ?", (owner,)
            ).fetchall()

            def sees(key: PoolKey, job_owner: str) -> bool:
                if owner is None:
                    return True
                if key.scope == QuotaScope.GROUP:
                    return (key.subject,) in groups
                return owner == (job_owner if key.scope == QuotaScope.JOB else key.subject)

            return standings(self._path.with_name(FILE_NAME), now_ns, sees)

    def _records(self, condition: str, values: list[object], limit: int) -> list[Record]:
        with self._reading():
            rows = self._db.execute(
                f"SELECT a.body FROM attachments a WHERE {condition} "  # noqa: S608  constant text, bound values
                "ORDER BY a.attachment_id DESC LIMIT ?",
                [*values, limit],
            ).fetchall()
        return [decode(body) for (body,) in rows]

    def _samples(self, attachment_id: str) -> tuple[Sample, ...]:
        with self._reading():
            rows = self._db.execute(
                "SELECT sampled_ns, sent_packets, sent_bytes, received_packets, received_bytes "
                "FROM samples WHERE attachment_id = ? ORDER BY sampled_ns",
                (attachment_id,),
            ).fetchall()
        return tuple(Sample(at, Count(sp, sb), Count(rp, rb)) for at, sp, sb, rp, rb in rows)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot read the journal {self._path}: {error}; check the file and its directory"
            ) from error


def _condition(wanted: JobFilter, visible_owner: str | None) -> tuple[str, list[object]]:
    condition, values = (
        f"a.job_id != '' AND NOT (a.final AND a.acknowledged = {WITHHELD})",
        list[object](),
    )
    pairs = [
        ("a.owner", wanted.owner), ("a.accounting_group", wanted.accounting_group),
        ("a.worker", wanted.worker), ("a.owner", visible_owner),
    ]  # fmt: skip
    for column, value in pairs:
        if value or (value is not None and value is visible_owner):
            condition += f" AND {column} = ?"
            values.append(value)
    return condition, values
