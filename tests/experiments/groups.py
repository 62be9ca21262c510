"""Experiment 2: queues of the uplink by group. Two CMS uploads share 250, two others 100 Mbit/s.

Within a queue the jobs are equal; without management all four are, and fill the link.
"""

from __future__ import annotations

from tests.experiments.results import SKIPPED_NS, Check, Line, Outcome, Panel, line, share_checks
from tests.experiments.testbed import LINK, UPLINK, Testbed

QUEUES = {"cms": 250 * 10**6, "other": 100 * 10**6}
JOBS = 2
"""In each group."""
MANAGED = f'[uplink]\nrate = "{UPLINK}"\n' + "".join(
    f"""
[queues.{name}]
rate = "{rate} bit/s"
[profiles.{name}]
queue = "{name}"
[[rules]]
when = 'TARGET.Kind == "{name}"'
profile = "{name}"
"""
    for name, rate in QUEUES.items()
)


def run(seconds: float = 12.0) -> Outcome:
    """Run with and without queues; each lasts about `seconds`."""
    panels: list[Panel] = []
    checks: list[Check] = []
    for title, policy in (("without management", ""), ("queues of 250 and 100 Mbit/s", MANAGED)):
        lines: list[Line] = []
        with Testbed(policy, LINK if policy else UPLINK) as bed:
            flows = {
                f"{queue} {number + 1}": (bed.upload(seconds=seconds, ad={"Kind": queue}), queue)
                for number in range(JOBS)
                for queue in QUEUES
            }
            began = bed.wait_connected(*(flow for flow, _ in flows.values()))
            whole = {name: (flow.series(), queue) for name, (flow, queue) in flows.items()}
        last = min(series.times[-1] for series, _ in whole.values()) - SKIPPED_NS
        promised = bool(policy)
        for name, (series, queue) in sorted(whole.items()):
            planned = QUEUES[queue] / JOBS if promised else 10**9 / len(whole)
            part = series.between(began + SKIPPED_NS, last)
            checks += share_checks(f"{name}, {title}", part, planned, promised=promised)
            lines.append(line(name, series, began, planned if promised else None))
        panels.append(Panel(title, "seconds", "Mbit/s sent", tuple(lines)))
    return Outcome(
        "groups", "2. Two CMS and two other uploads, by queues", tuple(panels), tuple(checks)
    )
