"""Experiment 1: three jobs download over one link, planned 100, 300 and 600 Mbit/s.

Side by side: without management, where TCP gives each a third; with guarantees, all at once; and
with guarantees that are also caps, one after the other, where a job that is alone keeps to its own
share although the link is idle.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.experiments.results import SKIPPED_NS, Line, Outcome, Panel, line, share_checks
from tests.experiments.testbed import LINK, UPLINK, WIDE, Testbed

if TYPE_CHECKING:
    from tests.experiments.results import Check
    from tests.experiments.windows import Series

PLANNED = {"small": 100 * 10**6, "middle": 300 * 10**6, "large": 600 * 10**6}
PROFILES = "".join(
    f"""
[profiles.{name}]
guarantee = "{rate} bit/s"
[profiles.{name}-only]
guarantee = "{rate} bit/s"
rate = "{rate} bit/s"
[[rules]]
when = 'TARGET.Kind == "{name}"'
profile = "{name}"
[[rules]]
when = 'TARGET.Kind == "{name}-only"'
profile = "{name}-only"
"""
    for name, rate in PLANNED.items()
)
MANAGED = f'[uplink]\nrate = "{UPLINK}"\n{PROFILES}'
APART_SECONDS = 4.0
"""Between two starts of the sequence."""


def run(seconds: float = 14.0) -> Outcome:
    """Run all three; each lasts about `seconds`."""
    with Testbed("", UPLINK, WIDE) as bed:
        without, few = together(bed, seconds, promised=False)
    with Testbed(MANAGED, LINK, WIDE) as bed:
        guaranteed, kept = together(bed, seconds, promised=True)
        sequence, alone = in_turn(bed, seconds)
    return Outcome(
        "shares",
        "1. Guarantees of 100, 300 and 600 Mbit/s, downloading",
        (
            _panel("without management", without),
            _panel("guarantees, all at once", guaranteed),
            _panel("guarantees that are caps, in turn", sequence),
        ),
        (*few, *kept, *alone),
    )


def together(
    bed: Testbed, seconds: float, *, promised: bool
) -> tuple[tuple[Line, ...], tuple[Check, ...]]:
    """Start all at once; what counts begins when all are there, and ends before the first ends."""
    flows = {name: bed.download(seconds=seconds, ad={"Kind": name}) for name in PLANNED}
    began = bed.wait_connected(*flows.values())
    whole = {name: flow.series() for name, flow in flows.items()}
    last = min(series.times[-1] for series in whole.values()) - SKIPPED_NS
    lines: list[Line] = []
    checks: list[Check] = []
    for name, series in whole.items():
        part = series.between(began + SKIPPED_NS, last)
        expected = PLANNED[name] if promised else sum(PLANNED.values()) / len(PLANNED)
        what = f"{name}, {'guaranteed' if promised else 'without management'}"
        checks += share_checks(what, part, expected, promised=promised)
        lines.append(line(name, series, began, PLANNED[name] if promised else None))
    return tuple(lines), tuple(checks)


def in_turn(bed: Testbed, seconds: float) -> tuple[tuple[Line, ...], tuple[Check, ...]]:
    """Start one after the other, each with its guarantee as cap."""
    flows = {}
    for number, name in enumerate(PLANNED):
        time.sleep(APART_SECONDS if number else 0.0)
        lasts = seconds - number * (APART_SECONDS - 1)
        flows[name] = bed.download(seconds=lasts, ad={"Kind": f"{name}-only"})
        bed.wait_connected(flows[name])
    whole = {name: flow.series() for name, flow in flows.items()}
    began = min(series.times[0] for series in whole.values())
    lines: list[Line] = []
    checks: list[Check] = []
    for name, series in whole.items():
        checks += share_checks(f"{name}, capped, in turn", _within(series), PLANNED[name])
        lines.append(line(name, series, began, PLANNED[name]))
    return tuple(lines), tuple(checks)


def _within(series: Series) -> Series:
    return series.between(series.times[0] + SKIPPED_NS, series.times[-1] - SKIPPED_NS)


def _panel(title: str, lines: tuple[Line, ...]) -> Panel:
    return Panel(title, "seconds", "Mbit/s received", lines)
