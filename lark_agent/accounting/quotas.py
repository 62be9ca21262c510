"""The words of quotas: whose bytes count together, from when to when, and how a quota stands.

A site's quota holds for each **subject** on its own: a job, an owner, or an accounting group (all
jobs without one are a subject together). Those of owners and groups begin anew every UTC day or
month; a period's name is its beginning, "2026-11-22" or "2026-11", so that a changed
configuration never mixes days with months. A job's own has no period and ends with the job.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from lark_agent.config import QuotaPeriod, QuotaScope

if TYPE_CHECKING:
    from lark_agent.config import Quota
    from lark_agent.model import Job

PERIOD = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?")
SECOND_NS = 10**9


class PoolKey(NamedTuple):
    """Which bytes are counted together."""

    quota: str
    scope: str
    """A `QuotaScope`."""
    subject: str
    """Attachment id, owner or accounting group."""
    period: str
    """Its beginning in UTC; empty for a job's own quota."""


def period_of(kind: QuotaPeriod | None, now_ns: int) -> str:
    """Return the name of the period that a UTC time is in; months where the site says nothing."""
    form = "%Y-%m-%d" if kind is QuotaPeriod.DAY else "%Y-%m"
    return datetime.fromtimestamp(now_ns // SECOND_NS, UTC).strftime(form)


def periods_of(now_ns: int) -> tuple[str, ...]:
    """Return the names of all periods that a UTC time is in."""
    return "", *(period_of(kind, now_ns) for kind in QuotaPeriod)


def period_start(period: str) -> int:
    """Return when a period begins, in UTC nanoseconds."""
    parts = [int(part) for part in period.split("-")]
    first = datetime(parts[0], parts[1], parts[2] if len(parts) == 3 else 1, tzinfo=UTC)
    return int(first.timestamp()) * SECOND_NS


def key_of(name: str, quota: Quota, job: Job, attachment_id: str, now_ns: int) -> PoolKey:
    """Return what a job's bytes count toward now."""
    if quota.per is QuotaScope.JOB:
        return PoolKey(name, quota.per, attachment_id, "")
    subject = job.owner if quota.per is QuotaScope.OWNER else job.accounting_group
    return PoolKey(name, quota.per, subject, period_of(quota.period, now_ns))


@dataclass(frozen=True, slots=True)
class Standing:
    """How a quota stands, for people."""

    key: PoolKey
    limit: int
    """In bytes, as are the others."""
    used: int
    """As last reported."""
    granted: int
    """What workers may use of it without asking again, and what is used."""
    workers: int
    """How many hold a lease."""
    action: str
    """A `QuotaAction`."""
    as_of_ns: int
    """When it last changed."""
    used_up: bool = False
    """A packet did not fit any more; less than one (`leases.LARGEST_PACKET`) may be left."""

    @property
    def left(self) -> int:
        """What is not used."""
        return max(0, self.limit - self.used)
