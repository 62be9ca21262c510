"""Quotas in force on this worker: which entry of the kernel's map each job is charged to.

The kernel charges every packet and drops what does not fit (`lark_agent.datapath.quotas`); this
part gives jobs their entries and the entries their limits. An entry is one job's own, with the
whole quota, or shared by all jobs here of one owner or group. The shared one's limit is what this
worker was granted of the pool: by the collector, a lease at a time, or, where there is none, all
that the worker's own book has left.

`look` reads what was used and says what follows; `lark_agent.agent.metering` calls it, tells the
collector and people, and brings back grants. A lease runs dry before it is known whether there is
more: until the collector has answered, what cuts already cuts, so that the pool is never passed.
While the collector cannot be asked, `unreachable = "continue"` lets the entry only count.

When a period ends, the jobs of a shared entry move to a new one; the old is closed at the next
look, after every program that knew it has ended. Everything here belongs to the kernel thread.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog

from lark_agent.accounting.allotments import NO_ENTRY, Allotment
from lark_agent.accounting.leases import Claim
from lark_agent.accounting.quotas import key_of, period_of
from lark_agent.config import QuotaAction as Action
from lark_agent.config import QuotaDirection, QuotaScope, Unreachable
from lark_agent.datapath import UNLIMITED, QuotaAction, QuotaUse
from lark_agent.errors import Unavailable
from lark_agent.model import new_attachment_id
from lark_agent.quantities import size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lark_agent.accounting.allotments import Allotments
    from lark_agent.accounting.leases import Grant
    from lark_agent.accounting.quotas import PoolKey
    from lark_agent.config import Quota
    from lark_agent.datapath import Datapath, SlotPlan
    from lark_agent.model import NetworkPlan
    from lark_agent.sandbox.holding import Holding

_IN_KERNEL = {
    Action.NOTIFY: QuotaAction.NOTIFY,
    Action.THROTTLE: QuotaAction.THROTTLE,
    Action.CUT_CLASS: QuotaAction.CUT_CLASS,
    Action.CUT_ALL: QuotaAction.CUT_ALL,
}
log = structlog.get_logger(__name__)
_DIRECTIONS = {QuotaDirection.SENT: 1, QuotaDirection.RECEIVED: 2, QuotaDirection.BOTH: 3}


@dataclass(frozen=True, slots=True)
class Trip:
    """A quota is used up, for one job that it holds for."""

    attachment_id: str
    key: PoolKey
    quota: Quota
    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Look:
    """What was found."""

    trips: tuple[Trip, ...] = ()
    claims: tuple[Claim, ...] = ()
    """For the collector: how everything stands."""
    urgent: frozenset[str] = frozenset()
    """Leases of claims that should not wait for the next report."""
    outdated: tuple[str, ...] = ()
    """Attachments that are still charged to the period before."""


@dataclass(slots=True, eq=False)
class _Entry:
    """An open allotment, and who is charged to it."""

    allotment: Allotment
    quota: Quota
    holders: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    """Holders whose trip was told."""
    step: int = 0
    """How much the last grant added."""
    exhausted: bool = False
    """The collector had no more."""
    loose: bool = False
    """Counts only, until the collector has answered again."""
    in_force: tuple[int, QuotaAction] | None = None


class Quotas:
    """An `Enforcement`; `book` is whether a collector keeps the book of what is shared."""

    def __init__(
        self,
        datapath: Datapath,
        allotments: Allotments,
        site: Mapping[str, Quota],
        boot_id: str,
        now_ns: Callable[[], int],
        *,
        book: bool,
    ) -> None:
        self._datapath = datapath
        self._allotments = allotments
        self.site = site
        """As configured now; what runs is held to what it began with."""
        self._boot_id = boot_id
        self._now_ns = now_ns
        self._book = book
        self._open: dict[PoolKey, _Entry] = {}
        self._closed: dict[str, Allotment] = {}
        for allotment in allotments.all():
            self._take_over(allotment)

    def _take_over(self, allotment: Allotment) -> None:
        """Go on with what an earlier agent held."""
        quota = self.site.get(allotment.key.quota)
        if allotment.entry == NO_ENTRY:
            self._closed[allotment.lease] = allotment
        elif allotment.boot_id != self._boot_id or quota is None:
            self._close(allotment)
        else:
            step = allotment.granted
            self._open[allotment.key] = _Entry(allotment, quota, step=step)

    # Enforcement

    def concerns(self, plan: NetworkPlan) -> bool:
        """Tell whether any quota holds."""
        return bool(plan.quotas)

    def begin(self, holding: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """Charge a job to its entries."""
        joined: list[_Entry] = []
        try:
            for name in holding.plan.quotas:
                if name in self.site:
                    joined.append(self._join(name, holding))  # noqa: PERF401  what was joined is left on failure
        except BaseException:
            for entry in joined:
                self._leave(entry, holding)
            raise
        return replace(slot_plan, quotas=tuple(map(self._use, joined)))

    def change(self, before: Holding, after: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """Charge a job to what its plan names now, in the present period."""
        earlier = self._held_by(before)
        changed = self.begin(after, slot_plan)
        used = {use.quota for use in changed.quotas}
        for entry in earlier:
            if entry.allotment.entry not in used:  # closed at the next look
                entry.holders.discard(before.attachment_id)
        return changed

    def adopt(self, holding: Holding) -> None:
        """Know again whose an entry is."""
        job, now = holding.job, self._now_ns()
        for name in holding.plan.quotas:
            for key, entry in self._open.items():
                wanted = key_of(name, entry.quota, job, holding.attachment_id, now)
                if key.quota == name and key[:3] == wanted[:3]:
                    entry.holders.add(holding.attachment_id)

    def end(self, holding: Holding) -> None:
        """Charge a job to nothing any more; its own entries, and shared ones of nobody, close."""
        for entry in self._held_by(holding):
            self._leave(entry, holding)
        self._allotments.ended(holding.attachment_id)

    def _held_by(self, holding: Holding) -> list[_Entry]:
        return [e for e in self._open.values() if holding.attachment_id in e.holders]

    def _join(self, name: str, holding: Holding) -> _Entry:
        quota, now = self.site[name], self._now_ns()
        key = key_of(name, quota, holding.job, holding.attachment_id, now)
        entry = self._open.get(key)
        if entry is None:
            entry = self._make(key, quota, holding.job.owner)
        entry.holders.add(holding.attachment_id)
        return entry

    def _make(self, key: PoolKey, quota: Quota, owner: str) -> _Entry:
        now, limit = self._now_ns(), size(quota.bytes)
        allotment = Allotment(
            new_attachment_id(now, os.urandom(10)), key, owner, limit, quota.action, self._free(),
            boot_id=self._boot_id, changed_ns=now,
        )  # fmt: skip
        if key.scope == QuotaScope.JOB:
            allotment.granted = limit
        elif not self._book:
            allotment.granted = max(0, limit - self._allotments.spent(key))
        entry = _Entry(allotment, quota)
        self._allotments.put(allotment)
        self._datapath.quotas.reset(allotment.entry)
        self._put_in_force(entry)
        self._open[key] = entry
        return entry

    def _free(self) -> int:
        taken = {entry.allotment.entry for entry in self._open.values()}
        for index in range(self._datapath.quotas.size):
            if index not in taken:
                return index
        raise Unavailable(
            f"all {len(taken)} places for quotas of this worker are taken; wait until jobs of "
            "others have ended"
        )

    def _leave(self, entry: _Entry, holding: Holding) -> None:
        entry.holders.discard(holding.attachment_id)
        if not entry.holders:
            self._read([entry])
            self._drop(entry)

    def _drop(self, entry: _Entry) -> None:
        del self._open[entry.allotment.key]
        self._close(entry.allotment)

    def _close(self, allotment: Allotment) -> None:
        if allotment.key.scope == QuotaScope.JOB:
            self._allotments.forget(allotment.lease)
            return
        self._allotments.settle(allotment)
        if self._book:
            self._closed[allotment.lease] = allotment
        else:
            self._allotments.forget(allotment.lease)

    def _use(self, entry: _Entry) -> QuotaUse:
        quota = entry.quota
        classes = None if quota.classes is None else frozenset(quota.classes)
        mask = self._datapath.classes.mask(classes)
        return QuotaUse(entry.allotment.entry, mask, _DIRECTIONS[quota.direction])

    def _put_in_force(self, entry: _Entry) -> None:
        action = _IN_KERNEL[entry.quota.action]
        wanted = entry.allotment.granted, action
        if entry.loose:
            wanted = UNLIMITED, QuotaAction.NOTIFY
        if wanted != entry.in_force:
            self._datapath.quotas.set(entry.allotment.entry, *wanted)
            entry.in_force = wanted

    def _read(self, entries: Sequence[_Entry]) -> dict[int, bool]:
        """Read what was used, save it, and return which entries (by index) are used up."""
        states = self._datapath.quotas.state(entry.allotment.entry for entry in entries)
        now = self._now_ns()
        for entry in entries:
            allotment = entry.allotment
            # less than known: the kernel's maps were removed under a running job
            used = max(allotment.used, states[allotment.entry].used)
            if used != allotment.used:
                allotment.used, allotment.changed_ns = used, now
                self._allotments.put(allotment)
        return {index: state.exceeded for index, state in states.items()}

    # Looking

    def look(self, *, reachable: bool) -> Look:
        """Read every entry and return what follows; `reachable`: the collector can be asked.

        Raises KernelError or StoreError.
        """
        abandoned = [entry for entry in self._open.values() if not entry.holders]
        if abandoned:
            self._datapath.settle()
        used_up = self._read(list(self._open.values()))
        for entry in abandoned:
            self._drop(entry)
        trips: list[Trip] = []
        claims = [_claim(allotment, closed=True) for allotment in self._closed.values()]
        urgent = set(self._closed)
        outdated: set[str] = set()
        for entry in self._open.values():
            key, asks = entry.allotment.key, self._book and entry.allotment.key.period != ""
            if key.period and key.period != self._present(entry):
                outdated |= entry.holders
            if asks and not reachable and not entry.loose:
                self._cut_off(entry)
            self._put_in_force(entry)
            dry = used_up[entry.allotment.entry]
            if dry and not entry.loose and (not asks or entry.exhausted or not reachable):
                trips += self._trips(entry)
            if asks:
                left = entry.allotment.granted - entry.allotment.used
                wanted = 2 * left <= entry.step
                claims.append(_claim(entry.allotment, wanted=wanted))
                if wanted and not entry.exhausted:
                    urgent.add(entry.allotment.lease)
        if not self._book:
            return Look(tuple(trips), outdated=tuple(outdated))
        return Look(tuple(trips), tuple(claims), frozenset(urgent), tuple(outdated))

    def _cut_off(self, entry: _Entry) -> None:
        """Do without the collector, as the site chose."""
        if entry.quota.unreachable is not Unreachable.CONTINUE:
            return
        entry.loose = True
        key = entry.allotment.key
        log.warning(
            "the collector cannot be asked: a quota counts and lets everything through",
            quota=key.quota, subject=key.subject, used=entry.allotment.used,
        )  # fmt: skip

    def _present(self, entry: _Entry) -> str:
        key = entry.allotment.key
        quota = self.site.get(key.quota, entry.quota)
        return period_of(quota.period, self._now_ns())

    def _trips(self, entry: _Entry) -> list[Trip]:
        untold = sorted(entry.holders - entry.told)
        entry.told |= entry.holders
        allotment = entry.allotment
        return [
            Trip(holder, allotment.key, entry.quota, allotment.used, allotment.limit)
            for holder in untold
        ]

    def grant(self, grants: Sequence[Grant]) -> None:
        """Take over what the collector answered; forgets what it heard the end of."""
        entries = {entry.allotment.lease: entry for entry in self._open.values()}
        for grant in grants:
            if grant.lease in self._closed:
                del self._closed[grant.lease]
                self._allotments.forget(grant.lease)
                continue
            entry = entries.get(grant.lease)
            if entry is None:
                continue  # an answer to what was closed meanwhile
            allotment = entry.allotment
            if grant.granted > allotment.granted:
                entry.step = grant.granted - allotment.granted
                allotment.granted = grant.granted
                self._allotments.put(allotment)
            entry.exhausted = grant.exhausted
            entry.loose = False
            self._put_in_force(entry)

    def waits(self, attachment_id: str) -> bool:
        """Tell whether a job's first packets would be dropped for lack of an answer."""
        return self._book and any(
            attachment_id in entry.holders
            and not (entry.allotment.granted or entry.exhausted or entry.loose)
            and entry.quota.action in {Action.CUT_CLASS, Action.CUT_ALL}
            for entry in self._open.values()
        )


def _claim(allotment: Allotment, *, wanted: bool = False, closed: bool = False) -> Claim:
    return Claim(
        allotment.lease, allotment.key, allotment.limit, allotment.action, allotment.granted,
        allotment.used, wanted=wanted, closed=closed,
    )  # fmt: skip
