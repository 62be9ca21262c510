"""Experiment 3: how long one upload takes beside N others, one TCP stream each.

With management the upload has priority 0 and the others 7: it borrows first what nobody is
guaranteed, which here is all of the link. Without, it gets a share of 1/(N+1) and takes N+1 times
as long. The others are in full flow before it begins and go on until it has ended.
"""

from __future__ import annotations

import time

from tests.experiments.results import Check, Line, Outcome, Panel
from tests.experiments.testbed import LINK, UPLINK, WIDE, Testbed

MANAGED = f"""
[uplink]
rate = "{UPLINK}"
[profiles.first]
priority = 0
[profiles.bulk]
priority = 7
[[rules]]
when = 'TARGET.Kind == "first"'
profile = "first"
[[rules]]
when = 'TARGET.Kind == "bulk"'
profile = "bulk"
"""
OTHERS = tuple(range(16))
OTHERS_WITHOUT = (0, 1, 3, 7, 15)
"""Fewer: without management the sixteen of them would take 136 times as long as one upload."""
MOST_APART = 0.10
SETTLING_SECONDS = 1.0


def run(octets: int = 10**9) -> Outcome:
    """Run both; the upload has `octets` bytes."""
    managed = times(MANAGED, octets, OTHERS)
    without = times("", octets, OTHERS_WITHOUT)
    checks = [
        _check(f"beside {number}, {title}", found[0], found[number], allowed)
        for title, found, allowed in (
            ("without management", without, None), ("prioritised", managed, MOST_APART),
        )
        for number in found
        if number
    ]  # fmt: skip
    drawn = tuple(
        Line(label, tuple(found), tuple(round(value, 3) for value in found.values()))
        for label, found in (("without management", without), ("prioritised", managed))
    )
    panel = Panel(f"upload of {octets / 1e6:g} MB", "other uploads", "seconds", drawn)
    return Outcome(
        "priority", "3. Completion time of one upload beside N others", (panel,), tuple(checks)
    )


def times(policy: str, octets: int, others: tuple[int, ...]) -> dict[int, float]:
    """Return the seconds that the upload took beside each number of others."""
    found = {}
    for number in others:
        with Testbed(policy, LINK if policy else UPLINK, WIDE) as bed:
            bulk = [bed.upload(seconds=3600, ad={"Kind": "bulk"}) for _ in range(number)]
            bed.wait_connected(*bulk)
            time.sleep(SETTLING_SECONDS if bulk else 0)
            first = bed.upload(seconds=3600, octets=octets, ad={"Kind": "first"})
            bed.wait_connected(first)
            found[number] = first.took()
    return found


def _check(what: str, alone: float, took: float, allowed: float | None) -> Check:
    return Check(what, alone, took, max(0.0, took / alone - 1), allowed)
