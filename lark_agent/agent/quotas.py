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

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from lark_agent.accounting.leases import Claim
from lark_agent.accounting.quotas import key_of, period_of
from lark_agent.agent.entries import Entries, Entry
from lark_agent.config import QuotaAction, Unreachable
from lark_agent.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lark_agent.accounting.allotments import Allotment, Allotments
    from lark_agent.accounting.leases import Grant
    from lark_agent.accounting.quotas import PoolKey
    from lark_agent.config import Quota
    from lark_agent.datapath import Datapath, SlotPlan
    from lark_agent.sandbox.holding import Holding

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Trip:
    """A quota is used up, for one job that it holds for."""

    attachment_id: str
    key: PoolKey
    quota: Quota
    used: int
    limit: int
    cut_off: bool
    """Not the quota, but this worker's lease is used up, and nobody can be asked for more."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was found."""

    trips: tuple[Trip, ...] = ()
    claims: tuple[Claim, ...] = ()
    """For the collector: how everything stands."""
    urgent: frozenset[str] = frozenset()
    """Leases of claims that should not wait for the next report."""
    shared: bool = False
    """Whether anything is shared, and has to be looked at often."""
    outdated: tuple[str, ...] = ()
    """Attachments that are still charged to the period before."""


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
        self._now_ns = now_ns
        self._book = book
        self._entries = Entries(datapath, allotments, boot_id, now_ns, book=book)
        self._entries.take_over(site)

    # Enforcement

    def concerns(self, holding: Holding) -> bool:
        """Tell whether any quota holds."""
        return bool(holding.plan.quotas)

    def begin(self, holding: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """Charge a job to its entries; raises Unavailable, charging to none, if it cannot be."""
        earlier = self._held_by(holding)
        known = {entry.allotment.key.quota: entry.quota for entry in earlier} | dict(self.site)
        if removed := sorted(set(holding.plan.quotas) - known.keys()):
            raise Unavailable(
                f"the site removed the quota '{removed[0]}' after it was planned for the job; "
                "start the job again, which plans it anew"
            )
        try:
            joined = [self._join(name, known[name], holding) for name in holding.plan.quotas]
        except BaseException:
            for entry in self._held_by(holding):
                if entry not in earlier:
                    self._leave(entry, holding)
            raise
        return replace(slot_plan, quotas=tuple(map(self._entries.use, joined)))

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
        in_kernel = self._datapath.quotas_of(holding.sandbox.slot)
        for number, name in enumerate(holding.plan.quotas):
            if not self._adopt(name, holding) and number < len(in_kernel) and name in self.site:
                quota, job = self.site[name], holding.job
                key = key_of(name, quota, job, holding.attachment_id, self._now_ns())
                found = self._entries.found(key, quota, job.owner, in_kernel[number])
                found.holders.add(holding.attachment_id)

    def _adopt(self, name: str, holding: Holding) -> bool:
        """Make a job a holder of what is open of a quota; returns whether anything is."""
        job, now = holding.job, self._now_ns()
        known = False
        for key, entry in self._entries.open.items():
            wanted = key_of(name, entry.quota, job, holding.attachment_id, now)
            if key.quota == name and key[:3] == wanted[:3]:
                entry.holders.add(holding.attachment_id)
                known = True
        return known

    def end(self, holding: Holding) -> None:
        """Charge a job to nothing any more; its own entries, and shared ones of nobody, close."""
        for entry in self._held_by(holding):
            self._leave(entry, holding)
        self._allotments.ended(holding.attachment_id)

    def _held_by(self, holding: Holding) -> list[Entry]:
        return [e for e in self._entries.open.values() if holding.attachment_id in e.holders]

    def _join(self, name: str, quota: Quota, holding: Holding) -> Entry:
        key = key_of(name, quota, holding.job, holding.attachment_id, self._now_ns())
        entry = self._entries.get(key, quota, holding.job.owner)
        entry.holders.add(holding.attachment_id)
        return entry

    def _leave(self, entry: Entry, holding: Holding) -> None:
        entry.holders.discard(holding.attachment_id)
        if not entry.holders:
            self._entries.read([entry])
            self._entries.drop(entry)

    # Looking

    def look(self, *, reachable: bool) -> Look:
        """Read every entry and return what follows; `reachable`: the collector can be asked.

        Raises KernelError or StoreError.
        """
        abandoned = [entry for entry in self._entries.open.values() if not entry.holders]
        if abandoned:
            self._datapath.settle()
        self._entries.read(list(self._entries.open.values()))
        for entry in abandoned:
            self._entries.drop(entry)
        trips: list[Trip] = []
        claims = [_claim(allotment, closed=True) for allotment in self._entries.closed.values()]
        urgent = set(self._entries.closed)
        outdated: set[str] = set()
        for entry in self._entries.open.values():
            asks = self._book and entry.leased
            if entry.leased and entry.allotment.key.period != self._present(entry):
                outdated |= entry.holders
            if asks and not (reachable or entry.loose or entry.exhausted):
                self._cut_off(entry)
            self._entries.put_in_force(entry)
            dry = entry.allotment.dry and not entry.loose
            if dry and (not asks or entry.exhausted or not reachable):
                trips += self._trips(entry, cut_off=asks and not entry.exhausted)
            if asks:
                left = entry.allotment.granted - entry.allotment.used
                wanted = entry.allotment.dry or 2 * left <= entry.step
                claims.append(_claim(entry.allotment, wanted=wanted))
                if wanted and not entry.exhausted:
                    urgent.add(entry.allotment.lease)
        shared = any(entry.leased for entry in self._entries.open.values())
        if not self._book:
            return Look(tuple(trips), shared=shared, outdated=tuple(outdated))
        return Look(tuple(trips), tuple(claims), frozenset(urgent), shared, tuple(outdated))

    def _cut_off(self, entry: Entry) -> None:
        """Do without the collector, as the site chose."""
        if entry.quota.unreachable is not Unreachable.CONTINUE:
            return
        entry.loose = True
        key = entry.allotment.key
        log.warning(
            "the collector cannot be asked: a quota counts and lets everything through",
            quota=key.quota, subject=key.subject, used=entry.allotment.used,
        )  # fmt: skip

    def _present(self, entry: Entry) -> str:
        key = entry.allotment.key
        quota = self.site.get(key.quota, entry.quota)
        return period_of(quota.period, self._now_ns())

    def _trips(self, entry: Entry, *, cut_off: bool) -> list[Trip]:
        untold = sorted(entry.holders - entry.told)
        entry.told |= entry.holders
        allotment = entry.allotment
        return [
            Trip(
                holder, allotment.key, entry.quota, allotment.used, allotment.limit, cut_off=cut_off
            )
            for holder in untold
        ]

    def grant(self, grants: Sequence[Grant], ended: Iterable[str] = ()) -> None:
        """Take over what the collector answered, and that it heard of the end of some leases."""
        entries = {entry.allotment.lease: entry for entry in self._entries.open.values()}
        for grant in grants:
            entry = entries.get(grant.lease)
            if entry is None:
                continue  # an answer to what was closed meanwhile
            if grant.granted > entry.allotment.granted:
                entry.told.clear()
                self._entries.grant(entry, grant.granted)
            entry.exhausted = grant.exhausted
            entry.loose = False
            self._entries.put_in_force(entry)
        for lease in ended:
            self._entries.forget(lease)

    def waits(self, attachment_id: str) -> bool:
        """Tell whether a job's first packets would be dropped for lack of an answer."""
        return self._book and any(
            attachment_id in entry.holders
            and not (entry.allotment.granted or entry.exhausted or entry.loose)
            and entry.quota.action in {QuotaAction.CUT_CLASS, QuotaAction.CUT_ALL}
            for entry in self._entries.open.values()
        )


def _claim(allotment: Allotment, *, wanted: bool = False, closed: bool = False) -> Claim:
    return Claim(
        allotment.lease, allotment.key, allotment.limit, allotment.action, allotment.granted,
        allotment.used, wanted=wanted, closed=closed, dry=allotment.dry,
    )  # fmt: skip
