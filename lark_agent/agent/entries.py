"""The entries of the kernel's quota map: who has which, with what limit, and what was used.

An entry is made with the first job that is charged to it, known by its pool, and closed when nobody
is. It is remembered (`lark_agent.accounting.allotments`) before the kernel knows it, so whatever
agent comes next goes on with the same one. After a reboot the kernel's counts are gone: what was
used when last looked at holds. The other way round, if the disk lost the file, the kernel's plans
and counts say what the jobs that run are charged to. Belongs to the kernel thread.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from lark_agent import crash
from lark_agent.accounting.allotments import NO_ENTRY, Allotment
from lark_agent.config import Quota, QuotaDirection, QuotaPeriod, QuotaScope
from lark_agent.config import QuotaAction as Action
from lark_agent.datapath import UNLIMITED, QuotaAction, QuotaUse
from lark_agent.errors import Unavailable
from lark_agent.model import new_attachment_id
from lark_agent.quantities import size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lark_agent.accounting.allotments import Allotments
    from lark_agent.accounting.quotas import PoolKey
    from lark_agent.datapath import Datapath

_IN_KERNEL = {
    Action.NOTIFY: QuotaAction.NOTIFY,
    Action.THROTTLE: QuotaAction.THROTTLE,
    Action.CUT_CLASS: QuotaAction.CUT_CLASS,
    Action.CUT_ALL: QuotaAction.CUT_ALL,
}
log = structlog.get_logger(__name__)
_DIRECTIONS = {QuotaDirection.SENT: 1, QuotaDirection.RECEIVED: 2, QuotaDirection.BOTH: 3}


@dataclass(slots=True, eq=False)
class Entry:
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

    @property
    def leased(self) -> bool:
        """Whether owners or groups share it, so that it can be a lease."""
        return self.allotment.key.scope != QuotaScope.JOB


class Entries:
    """All of this worker's; `book` is whether a collector keeps the book of what is shared."""

    def __init__(
        self,
        datapath: Datapath,
        allotments: Allotments,
        boot_id: str,
        now_ns: Callable[[], int],
        *,
        book: bool,
    ) -> None:
        self._datapath = datapath
        self._allotments = allotments
        self._boot_id = boot_id
        self._now_ns = now_ns
        self._book = book
        self.open: dict[PoolKey, Entry] = {}
        self.closed: dict[str, Allotment] = {}
        """Leases whose end the collector has not heard of."""
        self._earlier: set[int] = set()
        """What jobs that began under an earlier agent are charged to, as the kernel has it."""

    def take_over(self, site: Mapping[str, Quota]) -> None:
        """Go on with what an earlier agent held."""
        self._earlier = self._charged()
        for allotment in self._allotments.all():
            # one that the site has removed still holds for the jobs that began with it
            quota = site.get(allotment.key.quota) or _remembered(allotment)
            if allotment.entry == NO_ENTRY:
                self.closed[allotment.lease] = allotment
            elif allotment.boot_id != self._boot_id:
                self._close(allotment)
            else:
                self.open[allotment.key] = Entry(allotment, quota, step=allotment.granted)

    def found(self, key: PoolKey, quota: Quota, owner: str, index: int) -> Entry:
        """Go on with what the kernel charges a job to, if the file does not know it any more.

        Limit and count are the kernel's. It is a new lease, as the name of the old one is lost.
        """
        limit, used = self._datapath.quotas.limit(index), self._datapath.quotas.state([index])
        if limit == UNLIMITED:  # it only counted, as the collector could not be asked
            limit = used[index].used
        now = self._now_ns()
        allotment = Allotment(
            new_attachment_id(now, os.urandom(10)), key, owner, size(quota.bytes), quota.action,
            index, limit, used[index].used, self._boot_id, now, used[index].exceeded,
        )  # fmt: skip
        self._allotments.put(allotment)
        self.open[key] = Entry(allotment, quota, step=limit)
        log.warning(
            "a quota that was not known any more goes on with what the kernel counted",
            quota=key.quota, subject=key.subject, used=allotment.used,
        )  # fmt: skip
        return self.open[key]

    def get(self, key: PoolKey, quota: Quota, owner: str) -> Entry:
        """Return the entry of a pool, made if need be; raises Unavailable if there is no room."""
        entry = self.open.get(key)
        if entry is not None:
            return entry
        now, limit = self._now_ns(), size(quota.bytes)
        allotment = Allotment(
            new_attachment_id(now, os.urandom(10)), key, owner, limit, quota.action, self._free(),
            boot_id=self._boot_id, changed_ns=now,
        )  # fmt: skip
        if key.scope == QuotaScope.JOB:
            allotment.granted = limit
        elif not self._book:
            allotment.granted = max(0, limit - self._allotments.spent(key))
        entry = Entry(allotment, quota)
        self._allotments.put(allotment)
        crash.here("lease.remembered")
        self._datapath.quotas.reset(allotment.entry)
        self.put_in_force(entry)
        self.open[key] = entry
        return entry

    def _charged(self) -> set[int]:
        slots = self._datapath.active_slots()
        return {index for slot in slots for index in self._datapath.quotas_of(slot)}

    def _free(self) -> int:
        if self._earlier:
            self._earlier &= self._charged()
        taken = {entry.allotment.entry for entry in self.open.values()} | self._earlier
        for index in range(self._datapath.quotas.size):
            if index not in taken:
                return index
        raise Unavailable(
            f"all {len(taken)} places for quotas of this worker are taken; wait until jobs of "
            "others have ended"
        )

    def use(self, entry: Entry) -> QuotaUse:
        """Return what a job's plan says of an entry."""
        quota = entry.quota
        classes = None if quota.classes is None else frozenset(quota.classes)
        mask = self._datapath.classes.counted(classes)
        return QuotaUse(entry.allotment.entry, mask, _DIRECTIONS[quota.direction])

    def put_in_force(self, entry: Entry) -> None:
        """Tell the kernel the limit; a limit that it knows is not told again."""
        wanted = entry.allotment.granted, _IN_KERNEL[entry.quota.action]
        if entry.loose:
            wanted = UNLIMITED, QuotaAction.NOTIFY
        if wanted != entry.in_force:
            self._datapath.quotas.set(entry.allotment.entry, *wanted)
            entry.in_force = wanted

    def read(self, entries: Sequence[Entry]) -> None:
        """Read what was used and whether it is used up, and remember it."""
        states = self._datapath.quotas.state(entry.allotment.entry for entry in entries)
        now = self._now_ns()
        for entry in entries:
            allotment = entry.allotment
            # less than known: the kernel's maps were removed under a running job
            state = states[allotment.entry]
            used = max(allotment.used, state.used)
            if (used, state.exceeded) != (allotment.used, allotment.dry):
                allotment.used, allotment.dry, allotment.changed_ns = used, state.exceeded, now
                self._allotments.put(allotment)

    def grant(self, entry: Entry, granted: int) -> None:
        """Let more through."""
        allotment = entry.allotment
        entry.step = granted - allotment.granted
        allotment.granted = granted
        self._allotments.put(allotment)

    def drop(self, entry: Entry) -> None:
        """Close an entry that no program charges any more; its count was read."""
        del self.open[entry.allotment.key]
        self._close(entry.allotment)

    def _close(self, allotment: Allotment) -> None:
        if allotment.key.scope == QuotaScope.JOB:
            self._allotments.forget(allotment.lease)
            return
        self._allotments.settle(allotment)
        if self._book:
            self.closed[allotment.lease] = allotment
        else:
            self._allotments.forget(allotment.lease)

    def forget(self, lease: str) -> None:
        """Forget a closed lease that the collector has heard the end of."""
        if self.closed.pop(lease, None):
            self._allotments.forget(lease)


def _remembered(allotment: Allotment) -> Quota:
    """Return what is left of a quota that is not configured any more."""
    scope, action = QuotaScope(allotment.key.scope), Action(allotment.action)
    monthly = len(allotment.key.period) == len("yyyy-mm")
    period = QuotaPeriod.MONTH if monthly else QuotaPeriod.DAY
    return Quota(str(allotment.limit), per=scope, period=period, action=action)
