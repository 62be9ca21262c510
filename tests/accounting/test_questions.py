"""Hourly shares add up to what was recorded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lark_agent.accounting.questions import HOUR_NS, hour_shares
from lark_agent.model import ClassUsage, Connectivity, Count, Job, Record, Scheduler, Usage

JOB = Job(Scheduler.PLAIN, "1", "alice", 1001)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3 * 3600), st.booleans())))
def test_shares_of_any_history_add_up_to_the_last_record(
    steps: list[tuple[int, int, bool]],
) -> None:
    """However a job's bytes grow, and however often records repeat, shares sum to the total."""
    latest = Record("id", "w", 0, JOB, "nat", Connectivity.NAT, 0)
    stored: Record | None = None
    booked = Count()
    for grown, seconds, repeated in steps:
        moved = latest.usage.sent + Count(1 if grown else 0, grown)
        usage = Usage((ClassUsage("other", moved),)) if moved else Usage()
        latest = latest.sampled(usage, latest.sampled_ns + seconds * 10**9)
        for current in [latest] * (2 if repeated else 1):
            for share in hour_shares(stored, current):
                assert share.hour_ns == current.sampled_ns // HOUR_NS * HOUR_NS
                booked += share.sent
            stored = current
    assert booked == latest.usage.sent


def test_a_job_that_moved_nothing_is_booked_once() -> None:
    """It counts as a job in the hour in which it started, and in no other."""
    first = Record("id", "w", 0, JOB, "none", Connectivity.NONE, 5, sampled_ns=5)
    (share,) = hour_shares(None, first)
    assert (share.hour_ns, share.sent, share.received) == (0, Count(), Count())
    assert hour_shares(first, first.sampled(Usage(), 9)) == []
