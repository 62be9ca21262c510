from __future__ import annotations

from dataclasses import replace

import pytest

from tests.experiments.results import Check, Outcome, share_checks, table
from tests.experiments.test_windows import steady

RATE = 100 * 10**6


def test_a_stream_at_its_share_passes() -> None:
    """A steady stream at the planned rate keeps both promises."""
    assert [check.passed for check in share_checks("small", steady(RATE), RATE)] == [True, True]


@pytest.mark.parametrize(("factor", "verdicts"), [(0.96, [False, True]), (1.12, [False, False])])
def test_a_stream_beside_its_share_fails(factor: float, verdicts: list[bool]) -> None:
    """4 % too little fails the share, 12 % too much also the spikes."""
    found = share_checks("small", steady(round(RATE * factor)), RATE)
    assert [check.passed for check in found] == verdicts


def test_what_is_only_stated_cannot_fail() -> None:
    """Without management nothing is promised: a third of what was planned is no failure."""
    (check,) = share_checks("small", steady(RATE), 3 * RATE, promised=False)
    assert check.passed
    assert check.apart == pytest.approx(2 / 3, rel=0.01)


def test_the_table_names_what_failed() -> None:
    """A failed promise stands in the table as FAIL, with plan and measurement beside it."""
    kept = Check("large", 600.0, 597.0, 0.005, 0.03)
    broken = replace(kept, what="small", measured=90.0, apart=0.1)
    lines = table([Outcome("shares", "1. Shares", (), (kept, broken))]).splitlines()
    assert lines[2].split() == ["large", "600.00", "597.00", "0.50%", "3%", "pass"]
    assert lines[3].split() == ["small", "600.00", "90.00", "10.00%", "3%", "FAIL"]
