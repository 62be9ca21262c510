"""Experiment 4: achieved against configured rate, of one job alone, in both directions.

The links are out of the way here (20 Gbit/s). Up to 2 Gbit/s the achieved rate is held to 2 %;
above that it is stated, beside what the same job achieves without any limit: that is where this
machine ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.experiments.results import MEGA, SKIPPED_NS, Check, Line, Outcome, Panel, spike
from tests.experiments.testbed import Testbed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.experiments.windows import Series

CONFIGURED = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1500, 2000, 3000, 4000, 5000)
"""Mbit/s."""
HELD_TO = 2000
MOST_APART = 0.02
OUT_OF_THE_WAY = "20 Gbit/s"
POLICY = """
[[rules]]
when = "TARGET.Limit > 0"
set = { rate = "TARGET.Limit" }
"""


def run(seconds: float = 6.0, configured: Sequence[int] = CONFIGURED) -> Outcome:
    """Run each rate in each direction for `seconds`."""
    lines: list[Line] = []
    checks: list[Check] = []
    with Testbed(POLICY, OUT_OF_THE_WAY) as bed:
        for way in ("sent", "received"):
            achieved = []
            for rate in configured:
                series = stream(bed, way, seconds, rate)
                achieved.append(round(series.mean / MEGA, 3))
                checks += judged(f"{rate} Mbit/s {way}", series, rate)
            without = stream(bed, way, seconds, 0).mean / MEGA
            checks.append(Check(f"no limit, {way}", 0, without, 0, None))
            lines.append(Line(way, tuple(configured), tuple(achieved)))
        ideal = Line("configured", tuple(configured), tuple(configured))
    panel = Panel(
        "one job, one stream", "Mbit/s configured", "Mbit/s achieved", (ideal, *lines), True
    )
    return Outcome("limits", "4. Achieved against configured rate", (panel,), tuple(checks))


def stream(bed: Testbed, way: str, seconds: float, limit: int) -> Series:
    """Run one job with a limit (Mbit/s; 0: none) and return what counts of its stream."""
    begin = bed.upload if way == "sent" else bed.download
    flow = begin(seconds=seconds, ad={"Limit": limit})
    bed.wait_connected(flow)
    series = flow.series()
    return series.between(series.times[0] + SKIPPED_NS, series.times[0] + round(seconds * 1e9))


def judged(what: str, series: Series, rate: int) -> tuple[Check, ...]:
    """Check an achieved rate against the configured one (Mbit/s)."""
    held = rate <= HELD_TO
    achieved = series.mean / MEGA
    mean = Check(what, rate, achieved, abs(achieved / rate - 1), MOST_APART if held else None)
    return (mean, spike(what, series, rate * MEGA)) if held else (mean,)
