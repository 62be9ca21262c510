"""What an experiment says: panels to draw, and checks against what was planned.

A `Check` compares one measured value with its plan. `apart` is how far the worst moment was from
the plan, as a share of it, and `allowed` how far it may be; a check that allows nothing (None) is
only stated: what happens without management is nobody's promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.experiments.windows import Series

MEGA = 10**6
SHARE_SECONDS, SHARE_APART = 5.0, 0.03
SPIKE_SECONDS, SPIKE_APART = 0.1, 0.1
SKIPPED_NS = round(SPIKE_SECONDS * 10**9)
"""The first window, in which a stream finds its rate."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve; `planned` is drawn beside it (None: nothing to draw)."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    planned: float | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    logarithmic: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """A measured value beside the planned one; rates in Mbit/s, times in seconds."""

    what: str
    planned: float
    measured: float
    apart: float
    allowed: float | None

    @property
    def passed(self) -> bool:
        """Whether the worst moment is near enough to the plan, or nothing is promised."""
        return self.allowed is None or self.apart <= self.allowed


@dataclass(frozen=True, slots=True)
class Outcome:
    """One experiment."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    checks: tuple[Check, ...]


def share_checks(
    what: str, series: Series, planned: float, *, promised: bool = True
) -> tuple[Check, ...]:
    """Check a stream against its share (bit/s): any 5 s, and no spike in 100 ms."""
    apart = series.apart(planned, SHARE_SECONDS)
    mean = Check(
        f"{what}, any {SHARE_SECONDS:g} s", planned / MEGA, series.mean / MEGA, apart,
        SHARE_APART if promised else None,
    )  # fmt: skip
    if not promised:
        return (mean,)
    return (mean, spike(what, series, planned))


def spike(what: str, series: Series, planned: float) -> Check:
    """Check that no 100 ms had more than a tenth above the plan (bit/s)."""
    peak = series.peak(SPIKE_SECONDS)
    name = f"{what}, highest 100 ms"
    return Check(name, planned / MEGA, peak / MEGA, max(0.0, peak / planned - 1), SPIKE_APART)


def line(label: str, series: Series, began: int, planned: float | None) -> Line:
    """Draw a stream in windows of 100 ms, from `began` (ns); rates in Mbit/s."""
    middles, rates = series.curve(SPIKE_SECONDS)
    times = tuple(round(middle - began / 1e9, 3) for middle in middles)
    values = tuple(round(rate / MEGA, 3) for rate in rates)
    return Line(label, times, values, None if planned is None else planned / MEGA)


def table(outcomes: Sequence[Outcome]) -> str:
    """Write all checks, one a line."""
    rows = [
        f"{'':52} {'planned':>10} {'measured':>10} {'apart':>8} {'allowed':>8}"
    ]  # the first column is as wide as the longest name
    for outcome in outcomes:
        rows.append(outcome.title)
        for check in outcome.checks:
            allowed = "" if check.allowed is None else f"{check.allowed:8.0%}"
            verdict = "" if check.allowed is None else "pass" if check.passed else "FAIL"
            rows.append(
                f"  {check.what:50} {check.planned:10.2f} {check.measured:10.2f}"
                f" {check.apart:8.2%} {allowed:>8} {verdict}".rstrip()
            )
    return "\n".join(rows)
