"""`make experiments`: run LARK's four experiments and one more, write data, draw figures, judge.

    python -m tests.experiments [shares] [groups] [priority] [limits] [latency] [--to DIRECTORY]

Of each experiment NAME there are NAME.csv (every point of every curve), NAME.svg and NAME.png, and
results.json has all of it with the machine it ran on. $EXPERIMENTS_BYTES is the size of the upload
of experiment 3 (1,000,000,000). The exit status is 0 only if every promise was kept.

On a virtual machine the hypervisor takes processor time for others, and a stream whose ends do not
run has no share to measure. A run that lost more than `STOLEN_SHARE` of it is set aside, whatever
it measured, and made again, `ATTEMPTS` times in all; the last one counts even so. What was set
aside, and how many promises it kept, stays in results.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.experiments import groups, latency, limits, priority, shares
from tests.experiments.results import Outcome, table
from tests.lab.process import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BYTES = int(os.environ.get("EXPERIMENTS_BYTES", "1000000000"))
STOLEN_SHARE = 0.01
ATTEMPTS = 3
EXPERIMENTS: dict[str, Callable[[], Outcome]] = {
    "shares": shares.run,
    "groups": groups.run,
    "priority": lambda: priority.run(BYTES),
    "limits": limits.run,
    "latency": latency.run,
}


def main() -> int:
    """Run what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description="LARK's experiments, repeated.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--to", type=Path, default=Path("build/experiments"))
    options = parser.parse_args()
    if unknown := set(options.names) - set(EXPERIMENTS):
        parser.error(f"no experiment {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    if os.geteuid() != 0:
        print("experiments: need root: they make network namespaces; use sudo", file=sys.stderr)
        return 1
    options.to.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    try:
        for name in options.names or EXPERIMENTS:
            runs += repeat(name, EXPERIMENTS[name])
            keep(runs[-1].outcome, options.to)
    except LabError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1
    (options.to / "results.json").write_text(json.dumps(told(runs), indent=1) + "\n")
    outcomes = [run.outcome for run in runs if not run.set_aside]
    print(f"\n{table(outcomes)}\n")
    failed = sum(not check.passed for outcome in outcomes for check in outcome.checks)
    promised = sum(check.allowed is not None for outcome in outcomes for check in outcome.checks)
    print(f"experiments: {promised - failed} of {promised} promises kept; data in {options.to}")
    return int(failed > 0)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an experiment, and the share of the machine's processor time others took of it."""

    outcome: Outcome
    stolen_share: float
    set_aside: bool


def repeat(
    name: str, experiment: Callable[[], Outcome], stolen: Callable[[], float] | None = None
) -> list[Run]:
    """Run an experiment until the machine was ours, `ATTEMPTS` times at most; the last one counts.

    `stolen` returns the processor time that others have had, in seconds (`stolen_seconds`).
    """
    stolen = stolen or stolen_seconds
    runs: list[Run] = []
    for attempt in range(1, ATTEMPTS + 1):
        began, before = time.monotonic(), stolen()
        print(f"* {name} ...", flush=True)
        outcome = experiment()
        lasted = time.monotonic() - began
        share = (stolen() - before) / (lasted * (os.cpu_count() or 1))
        again = share > STOLEN_SHARE and attempt < ATTEMPTS
        runs.append(Run(outcome, round(share, 5), again))
        verdict = ": set aside, and once more" if again else ""
        print(f"* {name}: {lasted:.0f} s; other machines took {share:.1%}{verdict}", flush=True)
        if not again:
            break
    return runs


def keep(outcome: Outcome, folder: Path) -> None:
    """Write one experiment's curves and figure."""
    with (folder / f"{outcome.name}.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["panel", "line", "x", "y"])
        for panel in outcome.panels:
            for line in panel.lines:
                rows.writerows(
                    (panel.title, line.label, x, y) for x, y in zip(line.x, line.y, strict=True)
                )
    from tests.experiments import figures  # noqa: PLC0415  only who draws needs matplotlib

    figures.draw(outcome, folder)


def stolen_seconds() -> float:
    """Return how long this machine's processors were others' since it started, if it is virtual."""
    ticks = int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
    return ticks / os.sysconf("SC_CLK_TCK")


def told(runs: Sequence[Run]) -> dict[str, object]:
    """Return everything, and on what machine."""
    return {
        "machine": {"kernel": platform.release(), "cores": os.cpu_count()},
        "bytes": BYTES,
        "outcomes": [
            {
                **asdict(run.outcome),
                "passed": all(check.passed for check in run.outcome.checks),
                "stolen_share": run.stolen_share,
                "set_aside": run.set_aside,
            }
            for run in runs
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
