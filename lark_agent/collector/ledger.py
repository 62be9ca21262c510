"""The book of shared quotas: what each worker may still let through, durable before it is told.

The arithmetic is `lark_agent.accounting.leases`; this is its memory, two tables. A pool's row holds
the sums over its leases, so that a claim costs the same whatever came before, and closed leases can
be forgotten: a day after they closed, when no stream is left that could repeat a claim of them.

Workers with different configurations may claim different limits for the same pool. The smallest
one that an open lease of the last day claims holds, and the difference is logged.

A book restored from a backup knows less than it granted. What workers then claim is believed, so no
worker is cut short; bytes granted and closed between backup and restoration are granted once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
import structlog

from lark_agent.accounting.leases import Grant, Lease, Pool, is_dry, is_exhausted, settle
from lark_agent.accounting.questions import HOUR_NS
from lark_agent.collector.schema import LEASES, POOLS, store_errors, transaction, upsert
from lark_agent.rpc.convert import InvalidRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.accounting.leases import Claim
    from lark_agent.accounting.quotas import PoolKey

DAY_NS = 24 * HOUR_NS
_KEPT_NS = 400 * DAY_NS
"""How long pools of past periods are kept."""
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WorkerClaims:
    """What one worker says of some of its leases."""

    worker: str
    claims: tuple[Claim, ...]


class Ledger:
    """The book in one database; use it from one thread at a time."""

    def __init__(self, engine: sql.Engine) -> None:
        self._engine = engine
        self._pruned_ns = 0

    def settle(
        self, everybody: Sequence[WorkerClaims], now_ns: int
    ) -> list[list[Grant] | InvalidRecord]:
        """Make the claims of some workers durable and return each one's grants, or why not.

        Raises StoreError, and then nothing of them holds.
        """
        with (
            store_errors("keep the book of quotas"),
            transaction(self._engine, write=True) as connection,
        ):
            if now_ns > self._pruned_ns + HOUR_NS:
                self._pruned_ns = now_ns
                _prune(connection, now_ns)
            return [_settle_all(connection, each, now_ns) for each in everybody]


def _settle_all(
    connection: sql.Connection, told: WorkerClaims, now_ns: int
) -> list[Grant] | InvalidRecord:
    known = {claim.lease: _lease(connection, claim.lease) for claim in told.claims}
    for claim in told.claims:  # all or nothing of one worker's message
        row = known[claim.lease]
        if row is not None and (row["worker"], _key(row)) != (told.worker, tuple(claim.key)):
            return InvalidRecord(
                f"lease {claim.lease} of {told.worker} for {claim.key} is known as one of "
                f"{row['worker']} for {_key(row)}"
            )
    return [_settle_one(connection, told.worker, claim, now_ns) for claim in told.claims]


def _settle_one(connection: sql.Connection, worker: str, claim: Claim, now_ns: int) -> Grant:
    row = _lease(connection, claim.lease)
    lease = Lease(row["granted"], row["used"], row["closed"]) if row is not None else None
    pool, dry = _pool(connection, claim.key)
    limit, open_leases = _limit(connection, claim, now_ns)
    if limit != claim.limit and row is None:
        log.warning(
            "workers are configured with different limits of a quota; the smallest holds",
            quota=claim.key.quota, subject=claim.key.subject, worker=worker, limit=claim.limit,
            smallest=limit,
        )  # fmt: skip
    pool, lease = settle(pool, lease, claim, limit, open_leases)
    key, exhausted = claim.key._asdict(), is_exhausted(pool, limit)
    dry = is_dry(pool, limit, claim, lease, before=dry)
    connection.execute(
        upsert(LEASES, new=("limit_bytes", "granted", "used", "closed", "seen_ns")),
        {
            "lease": claim.lease, **key, "worker": worker, "limit_bytes": claim.limit,
            "granted": lease.granted, "used": lease.used, "closed": lease.closed,
            "seen_ns": now_ns,
        },
    )  # fmt: skip
    connection.execute(
        upsert(POOLS, new=("limit_bytes", "granted", "used", "changed_ns", "action", "dry")),
        {
            **key, "limit_bytes": limit, "granted": pool.granted, "used": pool.used,
            "changed_ns": now_ns, "action": claim.action, "dry": dry,
        },
    )  # fmt: skip
    return Grant(claim.lease, lease.granted, exhausted=exhausted)


def _lease(connection: sql.Connection, lease: str) -> sql.RowMapping | None:
    return connection.execute(sql.select(LEASES).where(LEASES.c.lease == lease)).mappings().first()


def _key(row: sql.RowMapping) -> tuple[str, ...]:
    return row["quota"], row["scope"], row["subject"], row["period"]


def _pool(connection: sql.Connection, key: PoolKey) -> tuple[Pool, bool]:
    """Return a pool, and whether a packet of it did not fit any more."""
    query = sql.select(POOLS.c.granted, POOLS.c.used, POOLS.c.dry).where(*_is(POOLS, key))
    row = connection.execute(query).first()
    return (Pool(row[0], row[1]), row[2]) if row else (Pool(), False)


def _limit(connection: sql.Connection, claim: Claim, now_ns: int) -> tuple[int, int]:
    """Return the smallest limit that holds, and how many leases share in the pool."""
    recent = LEASES.c.closed.is_(False) & (LEASES.c.seen_ns > now_ns - DAY_NS)
    query = sql.select(sql.func.min(LEASES.c.limit_bytes), sql.func.count()).where(
        *_is(LEASES, claim.key), recent, LEASES.c.lease != claim.lease
    )
    smallest, others = connection.execute(query).one()
    return min(claim.limit, smallest if others else claim.limit), others + 1


def _is(table: sql.Table, key: PoolKey) -> list[sql.ColumnElement[bool]]:
    values: dict[str, Any] = key._asdict()
    return [table.c[name] == value for name, value in values.items()]


def _prune(connection: sql.Connection, now_ns: int) -> None:
    old = LEASES.c.closed.is_(True) & (LEASES.c.seen_ns < now_ns - DAY_NS)
    past = LEASES.c.seen_ns < now_ns - _KEPT_NS
    connection.execute(sql.delete(LEASES).where(old | past))
    connection.execute(sql.delete(POOLS).where(POOLS.c.changed_ns < now_ns - _KEPT_NS))
