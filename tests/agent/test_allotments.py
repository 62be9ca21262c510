"""Whose bytes count where: over the ends of periods, reboots, and the ends of jobs.

The kernel's maps are real; what the programs would charge is written into them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent import datapath
from lark_agent.accounting.allotments import Allotments, standings
from lark_agent.accounting.leases import Grant
from lark_agent.agent.quotas import Quotas
from lark_agent.config import Quota, QuotaAction, QuotaPeriod, QuotaScope, Unreachable
from lark_agent.datapath import SlotPlan
from lark_agent.datapath.layout import QUOTA_USED, u32
from lark_agent.errors import Unavailable
from lark_agent.model import Connectivity, Job, NetworkPlan, Scheduler
from lark_agent.sandbox.connectivity import Sandbox
from lark_agent.sandbox.holding import Holding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.accounting.leases import Claim

pytestmark = pytest.mark.root
NEW_YEARS_EVE = 1_798_761_599 * 10**9  # 2026-12-31 23:59:59 UTC
MB = 10**6
PLAN = NetworkPlan("nat", Connectivity.NAT, quotas=("q",))
EMPTY = SlotPlan(None, None, bytes(6))


class Bench:
    """A part that enforces quotas, and a clock and charges to try it with."""

    def __init__(self, file: Path) -> None:
        self.now = NEW_YEARS_EVE
        self.file = file
        self.datapath = datapath.load(Path("/sys/fs/bpf/lark"), 4)
        self.site = {"q": Quota("10 MB", per=QuotaScope.OWNER, action=QuotaAction.CUT_ALL)}
        self.start()

    def start(self, boot_id: str = "boot-1", *, book: bool = True) -> None:
        """Begin as an agent would that finds what an earlier one left."""
        self.allotments = Allotments(self.file)
        self.quotas = Quotas(
            self.datapath, self.allotments, self.site, boot_id, lambda: self.now, book=book
        )

    def restart(self, boot_id: str = "boot-1", *, book: bool = True) -> None:
        self.allotments.close()
        self.start(boot_id, book=book)

    def charge(self, entry: int, used: int) -> None:
        self.datapath._maps["quota_used"].set(u32(entry), QUOTA_USED.pack(used, 0, 0))

    def claims(self, *, reachable: bool = True) -> dict[tuple[str, bool], Claim]:
        found = self.quotas.look(reachable=reachable)
        return {(claim.key.period, claim.closed): claim for claim in found.claims}


@pytest.fixture
def bench(fresh_host: Path) -> Iterator[Bench]:
    bench = Bench(fresh_host / "quotas.sqlite")
    yield bench
    bench.allotments.close()
    bench.datapath.close()


def holding(number: int = 1, owner: str = "alice", group: str = "") -> Holding:
    job = Job(Scheduler.PLAIN, f"{number}.0", owner, 1001, group)
    return Holding(f"attachment-{number}", Sandbox(number, Connectivity.NAT), job, PLAN, 1)


def entry(plan: SlotPlan) -> int:
    (use,) = plan.quotas
    return use.quota


def test_jobs_of_one_subject_are_charged_together(bench: Bench) -> None:
    """Alice's two jobs share an entry; bob's is another; each ends with its last job."""
    first, second = (entry(bench.quotas.begin(holding(n), EMPTY)) for n in (1, 2))
    other = entry(bench.quotas.begin(holding(3, "bob"), EMPTY))
    assert first == second != other
    bench.quotas.end(holding(1))
    assert {claim.closed for claim in bench.claims().values()} == {False}
    bench.quotas.end(holding(2))
    bench.quotas.end(holding(2))
    assert {claim.key.subject for claim in bench.claims().values() if claim.closed} == {"alice"}


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [(QuotaPeriod.DAY, "2026-12-31", "2027-01-01"), (QuotaPeriod.MONTH, "2026-12", "2027-01")],
)
def test_a_period_ends_under_a_running_job(
    bench: Bench, kind: QuotaPeriod, before: str, after: str
) -> None:
    """Its job is charged to a new entry, and what the old one used is told to the last byte."""
    bench.site["q"] = Quota("10 MB", per=QuotaScope.OWNER, period=kind)
    job = holding()
    old = entry(bench.quotas.begin(job, EMPTY))
    lease = bench.claims()[before, False].lease
    bench.quotas.grant([Grant(lease, 5 * MB)])
    bench.charge(old, 3 * MB)
    assert bench.quotas.look(reachable=True).outdated == ()
    bench.now += 10**9
    assert bench.quotas.look(reachable=True).outdated == (job.attachment_id,)
    new = entry(bench.quotas.change(job, job, EMPTY))
    assert new != old
    bench.charge(old, 4 * MB)  # by what was under way
    claims = bench.claims()
    assert (claims[before, True].used, claims[after, False].used) == (4 * MB, 0)
    assert bench.datapath.quotas.state([new])[new].used == 0
    bench.quotas.grant([Grant(lease, 5 * MB)])
    assert (before, True) in bench.claims(), "this was the answer to an earlier claim"
    bench.quotas.grant([Grant(lease, 4 * MB)], [lease])
    assert (before, True) not in bench.claims(), "the collector has heard of it"


@pytest.mark.parametrize("scope", [QuotaScope.OWNER, QuotaScope.JOB])
def test_a_lost_file_of_quotas_frees_no_job(bench: Bench, scope: QuotaScope) -> None:
    """Limit and count are the kernel's; the entry is nobody else's, and ends as others do."""
    bench.site["q"] = Quota("10 MB", per=scope, action=QuotaAction.CUT_ALL)
    plan = bench.quotas.begin(holding(), EMPTY)
    bench.datapath.activate(1, plan)
    limit = 10 * MB
    for claim in bench.claims().values():
        limit = 5 * MB
        bench.quotas.grant([Grant(claim.lease, limit)])
    bench.charge(entry(plan), 2 * MB)
    bench.allotments.close()
    for file in bench.file.parent.glob(f"{bench.file.name}*"):
        file.unlink()
    bench.start()
    bench.quotas.adopt(holding())
    state = bench.datapath.quotas
    bench.charge(entry(plan), 3 * MB)
    found = bench.claims()
    assert (state.limit(entry(plan)), state.state([entry(plan)])[entry(plan)].used) == (
        limit,
        3 * MB,
    )
    assert entry(bench.quotas.begin(holding(2, "bob"), EMPTY)) != entry(plan)
    assert entry(bench.quotas.change(holding(), holding(), EMPTY)) == entry(plan)
    assert [(one.granted, one.used) for one in found.values()] == [(5 * MB, 3 * MB)] * len(found)
    bench.quotas.end(holding())
    if scope is QuotaScope.OWNER:
        closed = [claim for (_, is_closed), claim in bench.claims().items() if is_closed]
        assert [(claim.key.subject, claim.used) for claim in closed] == [("alice", 3 * MB)]


def test_what_the_site_removed_meanwhile_is_nobody_elses(bench: Bench) -> None:
    """A lost entry of a quota that is not configured any more stays its job's until that ends."""
    plan = bench.quotas.begin(holding(), EMPTY)
    bench.datapath.activate(1, plan)
    bench.allotments.close()
    for file in bench.file.parent.glob(f"{bench.file.name}*"):
        file.unlink()
    bench.site = {"r": bench.site["q"]}
    bench.start()
    bench.quotas.adopt(holding())
    bob = replace(holding(2, "bob"), plan=replace(PLAN, quotas=("r",)))
    assert entry(bench.quotas.begin(bob, EMPTY)) != entry(plan)
    bench.datapath.deactivate(1)
    carol = replace(holding(3, "carol"), plan=replace(PLAN, quotas=("r",)))
    assert entry(bench.quotas.begin(carol, EMPTY)) == entry(plan), "free again"


def test_an_agent_restarts_in_the_middle(bench: Bench) -> None:
    """The next one goes on with the same entry, lease, grant and count."""
    first = entry(bench.quotas.begin(holding(), EMPTY))
    (claim,) = bench.claims().values()
    bench.quotas.grant([Grant(claim.lease, 5 * MB)])
    bench.charge(first, 2 * MB)
    bench.restart()
    bench.quotas.adopt(holding())
    (again,) = bench.claims().values()
    assert again == replace(claim, granted=5 * MB, used=2 * MB, wanted=False)
    assert entry(bench.quotas.change(holding(), holding(), EMPTY)) == first
    bench.charge(first, 3 * MB)
    assert next(iter(bench.claims().values())).wanted, "half of it is used"


def test_a_quota_that_the_site_removed_holds_for_its_jobs(bench: Bench) -> None:
    """After a restart without it the entry is still the job's, and nobody else gets it."""
    bench.site["other"] = bench.site["q"]
    first = entry(bench.quotas.begin(holding(), EMPTY))
    del bench.site["q"]
    bench.restart()
    bench.quotas.adopt(holding())
    others = replace(holding(2, "bob"), plan=replace(PLAN, quotas=("other",)))
    assert entry(bench.quotas.begin(others, EMPTY)) != first
    assert entry(bench.quotas.change(holding(), holding(), EMPTY)) == first


def test_a_quota_removed_after_the_plan_refuses_the_job(bench: Bench) -> None:
    """A reload between plan and start never lets a job run without what it was planned with."""
    bench.site["other"] = bench.site.pop("q")
    both = replace(holding(), plan=replace(PLAN, quotas=("other", "q")))
    with pytest.raises(Unavailable, match=r"removed the quota 'q' .*start the job again"):
        bench.quotas.begin(both, EMPTY)
    assert bench.claims() == {}, "nothing is left of the other quota"


def test_a_reboot_ends_every_lease(bench: Bench) -> None:
    """What was used when last looked at is told, and the rest goes back."""
    first = entry(bench.quotas.begin(holding(), EMPTY))
    bench.charge(first, 2 * MB)
    bench.quotas.look(reachable=True)
    bench.restart("boot-2")
    (claim,) = bench.claims().values()
    assert (claim.closed, claim.used, claim.granted) == (True, 2 * MB, 2 * MB)


def test_without_a_collector_the_worker_keeps_the_book(bench: Bench) -> None:
    """A second job has what the first left over, also after a restart."""
    bench.restart(book=False)
    first = entry(bench.quotas.begin(holding(1), EMPTY))
    bench.charge(first, 4 * MB)
    bench.quotas.end(holding(1))
    assert bench.quotas.look(reachable=True).claims == ()
    bench.restart(book=False)
    bench.quotas.begin(holding(2), EMPTY)
    (stands,) = standings(bench.file, bench.now, lambda *_: True)
    assert (stands.limit, stands.used, stands.granted) == (10 * MB, 4 * MB, 10 * MB)
    (allotment,) = bench.allotments.all()
    assert allotment.granted == 6 * MB


def test_a_cut_off_lease_only_counts_where_the_site_says_so(bench: Bench) -> None:
    """With continue the kernel's limit is off until the collector has answered again."""
    bench.site["q"] = replace_quota(bench.site["q"], Unreachable.CONTINUE)
    index = entry(bench.quotas.begin(holding(), EMPTY))
    assert bench.quotas.waits("attachment-1")
    bench.quotas.look(reachable=False)
    assert not bench.quotas.waits("attachment-1")
    assert limit_of(bench, index) == datapath.UNLIMITED
    (claim,) = bench.claims().values()
    assert limit_of(bench, index) == datapath.UNLIMITED, "until it has answered"
    bench.quotas.grant([Grant(claim.lease, 5 * MB)])
    assert limit_of(bench, index) == 5 * MB


def test_jobs_without_a_group_are_a_subject_together(bench: Bench) -> None:
    """A quota per group holds for them too."""
    bench.site["q"] = Quota("10 MB", per=QuotaScope.GROUP)
    plans = [
        bench.quotas.begin(holding(number, owner, group), EMPTY)
        for number, owner, group in ((1, "alice", "cms"), (2, "bob", "cms"), (3, "carol", ""))
    ]
    first, second, third = map(entry, plans)
    assert first == second != third


def replace_quota(quota: Quota, unreachable: Unreachable) -> Quota:
    return Quota(quota.bytes, per=quota.per, action=quota.action, unreachable=unreachable)


def limit_of(bench: Bench, index: int) -> int:
    value = bench.datapath._maps["quota"].get(u32(index))
    assert value is not None
    return int.from_bytes(value[:8], "little")
