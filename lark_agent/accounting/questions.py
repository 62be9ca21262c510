"""The questions people ask about usage, and the one seam behind which they are answered.

The agent's journal answers for its worker, the collector's store for the pool; the rpc service
above them is the same (`lark_agent.rpc.queries`). Who may see what is decided there and arrives
here as `visible_owner`: None sees everything, a name sees that owner's jobs only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from lark_agent.model import Count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.accounting.quotas import Standing
    from lark_agent.model import Record

HOUR_NS = 3_600_000_000_000


class GroupBy(StrEnum):
    """What totals can be grouped by."""

    OWNER = "owner"
    ACCOUNTING_GROUP = "group"
    WORKER = "worker"
    CLASS = "class"
    DAY = "day"


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs; empty fields match everything."""

    owner: str = ""
    accounting_group: str = ""
    worker: str = ""
    running: bool | None = None
    since_ns: int = 0
    """Jobs alive at or after."""
    until_ns: int = 0
    """Jobs started before; 0: no bound."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Cumulative usage of one job at one instant."""

    sampled_ns: int
    sent: Count
    received: Count


@dataclass(frozen=True, slots=True)
class JobRun:
    """One attachment and its usage over time, oldest sample first."""

    record: Record
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Total:
    """One row of totals; `key` is in the order asked for."""

    key: tuple[str, ...]
    jobs: int
    sent: Count
    received: Count
    cost: int = 0
    """By the site's prices, in millionths of its currency unit."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals over whole UTC hours, most bytes first."""

    since_ns: int
    until_ns: int
    rows: tuple[Total, ...]


class UsageSource(Protocol):
    """A durable store of records; every method may block and raises StoreError."""

    def list_jobs(
        self, wanted: JobFilter, visible_owner: str | None, limit: int, after: str
    ) -> Sequence[Record]:
        """Return at most `limit` records, newest id first, with ids below `after` ("": all)."""
        ...

    def find_job(self, text: str, visible_owner: str | None) -> Sequence[JobRun]:
        """Return the runs of a job, newest first.

        `text` is an attachment id, a unique prefix of one, or the batch system's job id.
        """
        ...

    def totals(self, by: Sequence[GroupBy], wanted: JobFilter, visible_owner: str | None) -> Totals:
        """Sum what moved in the hours that the filter's times touch; `running` is ignored.

        Grouped by class, jobs that moved nothing are in no row.
        """
        ...

    def quotas(self, owner: str | None, now_ns: int) -> Sequence[Standing]:
        """Return how quotas stand in the periods of `now_ns`, in the order of their names.

        With an owner only what holds for that owner's jobs: the owner's own, of groups that a job
        of theirs ran in, and of jobs.
        """
        ...


@dataclass(frozen=True, slots=True)
class HourShare:
    """What one job moved in one UTC hour with one destination class."""

    hour_ns: int
    traffic_class: str
    sent: Count
    received: Count
    cost: int = 0


def hour_shares(previous: Record | None, current: Record) -> list[HourShare]:
    """Return what `current` adds to `previous`, booked to the hour in which it was sampled.

    Records are cumulative, so a repeated or older one adds nothing: callers pass the latest they
    have stored. A job that moved nothing yet is booked once, with zeros under no class, so that it
    is counted as a job.
    """
    if previous is not None and current.sequence <= previous.sequence:
        return []
    hour = current.sampled_ns // HOUR_NS * HOUR_NS
    before = {c.traffic_class: c for c in previous.usage.classes} if previous else {}
    shares = []
    for now in current.usage.classes:
        old = before.get(now.traffic_class)
        sent = now.sent - old.sent if old else now.sent
        received = now.received - old.received if old else now.received
        if sent or received:
            cost = now.cost - old.cost if old else now.cost
            shares.append(HourShare(hour, now.traffic_class, sent, received, cost))
    if previous is None and not shares:
        shares.append(HourShare(hour, "", Count(), Count()))
    return shares
