"""The arithmetic of what everybody shares."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lark_agent.model import ClassUsage, Count, Drop, Refused, Usage

NAMES = ("campus", "jobs", "other")
counts = st.builds(Count, st.integers(1, 99), st.integers(1, 10**6))
usages = st.builds(
    lambda moved, dropped, sent, received: Usage(
        tuple(
            ClassUsage(name, moved[name][0], moved[name][1], 7) for name in NAMES if name in moved
        ),
        tuple(Drop(name, dropped[name]) for name in sorted(dropped)),
        sent,
        received,
    ),
    st.dictionaries(st.sampled_from(NAMES), st.tuples(counts, counts)),
    st.dictionaries(st.sampled_from(("quota", "martian")), counts),
    counts,
    counts,
)


def plus(one: Usage, other: Usage) -> Usage:
    """Return what the kernel's counters show after both."""
    classes = {each.traffic_class: each for each in one.classes}
    drops = {each.reason: each.count for each in one.drops}
    for each in other.classes:
        before = classes.get(each.traffic_class, ClassUsage(each.traffic_class))
        classes[each.traffic_class] = ClassUsage(
            each.traffic_class, before.sent + each.sent, before.received + each.received,
            before.cost + each.cost,
        )  # fmt: skip
    for drop in other.drops:
        drops[drop.reason] = drops.get(drop.reason, Count()) + drop.count
    return Usage(
        tuple(classes[name] for name in NAMES if name in classes),
        tuple(Drop(name, drops[name]) for name in sorted(drops)),
        one.non_ip_sent + other.non_ip_sent,
        one.non_ip_received + other.non_ip_received,
    )


@given(usages, usages)
def test_what_came_after_is_what_was_added(before: Usage, after: Usage) -> None:
    """A cumulative reading, less an earlier one, is exactly what came between."""
    assert plus(before, after).since(before) == after
    assert before.since(Usage()) == before


def test_refused_classes_are_told_apart_in_time_too() -> None:
    """Of each class what came between, and no class of before."""
    before = Drop("class-denied", Count(5, 500), (Refused("campus", 3), Refused("cloud", 2)))
    after = Drop("class-denied", Count(9, 900), (*before.classes[:1], Refused("cloud", 6)))
    assert after.since(before) == Drop("class-denied", Count(4, 400), (Refused("cloud", 4),))
