"""What follows from quotas: their state looked at, told to the collector, and acted on.

The kernel tells at once when a quota is used up; otherwise everything is looked at once a second
while owners or groups share any, else at every sampling interval. A look runs in the kernel thread
(`lark_agent.agent.quotas`), the rest here in the loop:

* **Claims** wait for the reporter, the latest of each lease; its stream carries them, and grants
  come back by `answered`. A job that starts on an empty lease waits a moment for the first one, so
  that its first packets are not dropped for want of an answer.
* **Trips** are recorded in the job's record, once a period, and logged; a throttle lowers the job's
  rate as an admin would; the site's hook is run. What cuts has been cut by the kernel already.
* **Outdated** jobs, of a period that is over, get their plan anew; a throttled one its rates back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import structlog

from lark_agent.accounting.quotas import period_start
from lark_agent.config import QuotaAction
from lark_agent.datapath import QuotaExceeded
from lark_agent.errors import LarkError
from lark_agent.model import Change, Direction, Rates
from lark_agent.quantities import rates, rates_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lark_agent.accounting.allotments import Allotments
    from lark_agent.accounting.leases import Claim, Grant
    from lark_agent.agent.attachment import Attachment
    from lark_agent.agent.attachments import Attachments
    from lark_agent.agent.hook import Hook
    from lark_agent.agent.quotas import Look, Quotas, Trip
    from lark_agent.agent.tasks import OwnThread, Tasks
    from lark_agent.datapath import Datapath
    from lark_agent.model import NetworkPlan

_LOOK_SECONDS = 1.0
_FIRST_GRANT_SECONDS = 2.0
log = structlog.get_logger(__name__)


class Metering:
    """Acts on the quotas of one worker. Belongs to the event loop."""

    def __init__(
        self,
        quotas: Quotas,
        allotments: Allotments,
        datapath: Datapath,
        attachments: Attachments,
        kernel_thread: OwnThread,
        tasks: Tasks,
        hook: Hook,
        interval_seconds: float,
        worker: str,
    ) -> None:
        self._quotas = quotas
        self._allotments = allotments
        self._datapath = datapath
        self._attachments = attachments
        self._in_kernel = kernel_thread
        self._tasks = tasks
        self.hook = hook
        self._interval_seconds = interval_seconds
        self._worker = worker
        self._wake = asyncio.Event()
        self._news = asyncio.Condition()
        self._pending: dict[str, Claim] = {}
        self._reported = 0.0
        self.claimed = asyncio.Event()
        """Set while there are claims for the collector."""
        self.reachable: Callable[[], bool] = lambda: True
        """Whether the collector can be asked."""

    async def run(self) -> None:
        """Look for ever; a background task."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._datapath.events.fileno(), self._read_events)
        try:
            while True:
                self._wake.clear()
                busy = await self.look()
                wait = _LOOK_SECONDS if busy else self._interval_seconds
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), wait)
        finally:
            loop.remove_reader(self._datapath.events.fileno())

    def _read_events(self) -> None:
        if any(isinstance(event, QuotaExceeded) for event in self._datapath.events.read()):
            self._wake.set()

    async def look(self) -> bool:
        """Look once, and act; returns whether to look again soon. Raises LarkError."""
        reachable = self.reachable()
        found = await self._in_kernel(lambda: self._quotas.look(reachable=reachable))
        self._claim(found)
        for attachment_id in found.outdated:
            await self._renew(attachment_id)
        for _, trips in groupby(found.trips, lambda trip: trip.key):
            await self._act(list(trips))
        async with self._news:
            self._news.notify_all()
        return found.shared

    def _claim(self, found: Look) -> None:
        now = time.monotonic()
        due = now - self._reported >= self._interval_seconds
        if due:
            self._reported = now
        for claim in found.claims:
            if due or claim.lease in found.urgent:
                self._pending[claim.lease] = claim
        if self._pending:
            self.claimed.set()

    # With the collector

    def take_claims(self, most: int) -> list[Claim]:
        """Return claims to be told now; what is not answered is claimed again at a later look."""
        leases = list(self._pending)[:most]
        claims = [self._pending.pop(lease) for lease in leases]
        if not self._pending:
            self.claimed.clear()
        return claims

    async def answered(self, claims: Sequence[Claim], grants: Sequence[Grant]) -> None:
        """Put the grants for some claims in force."""
        ended = [claim.lease for claim in claims if claim.closed]
        await self._in_kernel(lambda: self._quotas.grant(grants, ended))
        async with self._news:
            self._news.notify_all()
        self._wake.set()

    async def ready(self, attachment: Attachment) -> None:
        """Wait for the first grant of a job's leases, for as long as that is worth a start."""
        key = attachment.record.attachment_id
        if not attachment.plan.quotas or not await self._waits(key):
            return
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_GRANT_SECONDS), self._news:
                while self.reachable() and await self._waits(key):
                    await self._news.wait()

    async def _waits(self, attachment_id: str) -> bool:
        return await self._in_kernel(lambda: self._quotas.waits(attachment_id))

    # Acting

    async def _act(self, trips: list[Trip]) -> None:
        """Record that a quota is used up for some jobs, and do what it says."""
        concerned = []
        for trip in trips:
            attachment = self._attachments.living.get(trip.attachment_id)
            if attachment is not None and not _is_recorded(attachment, trip):
                log.warning(
                    "quota used up", **trip.key._asdict(), used=trip.used, limit=trip.limit,
                    action=trip.quota.action.value, cut_off=trip.cut_off,
                    job=attachment.record.job.job_id,
                )  # fmt: skip
                await self._record(attachment, trip)
                concerned.append(attachment)
        if concerned and trips[0].quota.hook and self.hook.settings.command:
            told = self._told(trips[0], concerned)
            self._tasks.once("quota hook", self.hook.run(told))

    async def _record(self, attachment: Attachment, trip: Trip) -> None:
        quota, plan = trip.quota, attachment.plan
        change = Change(time.time_ns(), _by(trip), quota.action.value, _why(trip))
        if quota.action is QuotaAction.THROTTLE:
            await self._in_kernel(
                lambda: self._allotments.throttle(
                    trip.attachment_id, trip.key.quota, (plan.rate, plan.guarantee)
                )
            )
            lowered = _lowered(plan, rates(quota.throttle))
            change = change._replace(value=f"{change.value}, rate {rates_text(lowered.rate)}")
            plan = lowered
        await self._change(attachment, plan, [change])

    async def _renew(self, attachment_id: str) -> None:
        """Charge a job to the present period, at the rates it had before the last one's end."""
        attachment = self._attachments.living.get(attachment_id)
        if attachment is None:
            return
        plan, changes = attachment.plan, []
        for name in plan.quotas:
            before = await self._in_kernel(
                lambda name=name: self._allotments.unthrottle(attachment_id, name)  # type: ignore[misc]  # bound as a default
            )
            throttle = rates(getattr(self._quotas.site.get(name), "throttle", "") or 0)
            # unless an admin has set another rate meanwhile
            if before and plan.rate == _lowered(replace(plan, rate=before[0]), throttle).rate:
                plan = replace(plan, rate=before[0], guarantee=before[1])
                text = f"{rates_text(plan.rate)}, a new period"
                changes.append(Change(time.time_ns(), f"quota {name}", "rate", text))
        await self._change(attachment, plan, changes)

    async def _change(
        self, attachment: Attachment, plan: NetworkPlan, changes: Sequence[Change]
    ) -> None:
        try:
            await self._attachments.change(attachment, plan, changes)
        except LookupError:
            return  # it has just ended
        except LarkError as error:
            self._tasks.errors["quotas"] += 1
            job = attachment.record.job.job_id
            log.error("a quota's action is not in force", job=job, error=str(error))

    def _told(self, trip: Trip, concerned: list[Attachment]) -> dict[str, Any]:
        return {
            **trip.key._asdict(),
            "action": trip.quota.action.value,
            "used": trip.used,
            "limit": trip.limit,
            "worker": self._worker,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "jobs": [
                {
                    "job_id": each.record.job.job_id,
                    "attachment_id": each.record.attachment_id,
                    "owner": each.record.job.owner,
                }
                for each in concerned
            ],
        }


def _by(trip: Trip) -> str:
    return f"quota {trip.key.quota}"


def _why(trip: Trip) -> str:
    if trip.cut_off:
        return f"the collector cannot be asked for more of {trip.quota.bytes}"
    return f"{trip.quota.bytes} used up"


def _is_recorded(attachment: Attachment, trip: Trip) -> bool:
    """Tell whether an earlier look, or an earlier agent, has told of this already."""
    since = period_start(trip.key.period) if trip.key.period else 0
    return any(
        change.at_ns >= since
        and (change.by, change.setting) == (_by(trip), trip.quota.action.value)
        and change.value.startswith(_why(trip))
        for change in attachment.record.changes
    )


def _lowered(plan: NetworkPlan, throttle: Rates) -> NetworkPlan:
    """Return a plan with no more than a rate, and no guarantee above that."""
    rate = Rates(*(_lower(plan.rate.of(d), throttle.of(d)) for d in Direction))
    guarantee = Rates(
        *(min(plan.guarantee.of(d), rate.of(d) or plan.guarantee.of(d)) for d in Direction)
    )
    return replace(plan, rate=rate, guarantee=guarantee)


def _lower(first: int, second: int) -> int:
    """Return the lower of two rates; 0 is no limit."""
    return min(first, second) if first and second else first or second
