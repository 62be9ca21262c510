"""A throttle lowers what is above it, and gives it back when a new period begins."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lark_agent.accounting.allotments import Allotments
from lark_agent.agent.metering import _lowered
from lark_agent.model import Connectivity, NetworkPlan, Rates

if TYPE_CHECKING:
    from pathlib import Path

PLAN = NetworkPlan("nat", Connectivity.NAT)


@pytest.mark.parametrize(
    ("rate", "throttle", "lowered"),
    [
        (Rates(), Rates(5, 5), Rates(5, 5)),
        (Rates(9, 3), Rates(5, 5), Rates(5, 3)),
        (Rates(9, 9), Rates(5, 0), Rates(5, 9)),
        (Rates(0, 9), Rates(0, 5), Rates(0, 5)),
    ],
)
def test_a_throttle_only_lowers(rate: Rates, throttle: Rates, lowered: Rates) -> None:
    """Each direction gets the lower of the two; 0 is no limit."""
    assert _lowered(replace(PLAN, rate=rate), throttle).rate == lowered


def test_a_guarantee_is_not_above_the_rate() -> None:
    """A throttled job is guaranteed no more than it may have."""
    plan = _lowered(replace(PLAN, guarantee=Rates(9, 3)), Rates(5, 0))
    assert plan.guarantee == Rates(5, 3)


def test_the_rates_of_before_are_remembered_once(tmp_path: Path) -> None:
    """A second throttle of the same quota does not take the first one's rate for the job's own."""
    allotments = Allotments(tmp_path / "quotas.sqlite")
    allotments.throttle("job", "q", (Rates(9, 9), Rates(1, 0)))
    allotments.throttle("job", "q", (Rates(5, 5), Rates()))
    assert allotments.unthrottle("job", "q") == (Rates(9, 9), Rates(1, 0))
    assert allotments.unthrottle("job", "q") is None
    allotments.throttle("job", "q", (Rates(9, 9), Rates()))
    allotments.ended("job")
    assert allotments.unthrottle("job", "q") is None
    allotments.close()
