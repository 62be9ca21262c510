"""One run: start, strike for some time, let everything end, compare."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tests.lab.capture import Capture
from tests.lab.filesystem import STATE as LAB_STATE
from tests.lab.filesystem import WRAPPERS
from tests.lab.topology import CAMPUS, INTERNET
from tests.lab.world import Lab
from tests.soak.books import Comparison, await_finals, compare
from tests.soak.faults import STATE, STORE, Faults
from tests.soak.jobs import WAYS, Runners
from tests.soak.leaks import Standing, await_quiet, changed, standing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

FAR_CLASSES = {"campus": CAMPUS, "other": INTERNET}
"""Where the packets of each class are seen."""
PREFIXES = ("198.18.7.0/24", "2001:db8:7::/112")
SLOTS, THREADS = 16, 6
MEGABYTES = {STATE: 32, STORE: 32}
MORE_A_MINUTE = 8
"""Of the collector's, which forgets nothing."""
CONFIG = f"""
[collector]
address = "127.0.0.1:9620"
insecure = true
[accounting]
interval_seconds = 1
journal_size = "4 MB"
[pool]
slots = {SLOTS}
ready = 4
wait_seconds = 30
drain_seconds = 3
hold_seconds = 2
[addresses]
routed4 = "{PREFIXES[0]}"
routed6 = "{PREFIXES[1]}"
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
[profiles.routed]
connectivity = "routed"
[[rules]]
when = 'Want == "routed"'
profile = "routed"
[[rules]]
when = 'Want == "none"'
profile = "none"
"""
NO_NEW_PRIVS = f"""#!/bin/sh
exec setpriv --no-new-privs {WRAPPERS}/lark-run "$@"
"""
FILE = LAB_STATE / "soak.toml"
NOTE_SECONDS = 15
MOST_KEPT = 5
"""Connections that SQLAlchemy's pool keeps."""
CALM_JOBS = 40
"""Run at last by daemons that nothing happens to: what they leak, these show."""
MOST_REFUSED = 0.5
"""Of all jobs that were tried; outages take no more than half of the time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    seed: int
    minutes: float
    jobs: int
    kinds: dict[str, int]
    refused: int
    kills: int
    faults: dict[str, int]
    lost: int
    compared: Comparison
    leaks: dict[str, Any]
    looked_at: list[str]
    """The kinds of objects that could have leaked."""
    wrong: list[str] = field(default_factory=list)

    def good(self) -> bool:
        """Tell whether nothing is lost, left or wrong."""
        return not (self.compared.difference or self.leaks or self.wrong)

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return asdict(self)

    def __str__(self) -> str:
        moved, difference = self.compared.sent + self.compared.received, self.compared.difference
        share = self.refused / max(1, self.refused + self.jobs)
        lines = [
            f"soak: seed {self.seed}, {self.minutes:.1f} minutes",
            f"  jobs run        {self.jobs:,}:",
            f"                  {_listing(self.kinds)}",
            f"  refused         {self.refused:,} more, {share:.0%}",
            f"  kills survived  {self.kills} of {sum(self.faults.values())} faults:",
            f"                  {_listing(self.faults)}; packets lost {self.lost:,}",
            f"  bytes compared  {moved.bytes:,} in {moved.packets:,} packets",
            f"                  of {self.compared.records:,} records, by class and direction",
            f"  difference      {difference.bytes:,} bytes, {difference.packets} packets",
            f"  leaks           {self.leaks or 0}, of {', '.join(self.looked_at)}",
        ]
        return "\n".join([*lines, *(f"  wrong: {text}" for text in self.wrong)])


def soak(folder: Path, seconds: float, seed: int | None = None, *, say: bool = True) -> Outcome:
    """Run for some seconds, and a little for the end."""
    chosen = int(time.time()) if seed is None else seed

    def note(text: str) -> None:
        if say:
            print(f"* {text}", file=sys.stderr, flush=True)

    note(f"seed {chosen}")
    captures = {name: folder / f"{name}.pcap" for name in FAR_CLASSES}
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(delegated=PREFIXES))
        stopped = _prepare(lab, MORE_A_MINUTE * int(seconds / 60))
        faults = Faults(lab, CONFIG, "", chosen)
        idle = _settled(lab, faults)
        runners = Runners(lab, _wrappers(lab), chosen, THREADS)
        with ExitStack() as listening:
            for name, far in FAR_CLASSES.items():
                listening.enter_context(Capture(far.interface, captures[name], lab.netns(far.name)))
            faults.lose_packets()
            runners.start()
            try:
                _strike(faults, runners, seconds, note)
            finally:
                runners.stop()
            note("no more faults; the last jobs, and the last records")
            runners.start(CALM_JOBS)
            runners.join()
            faults.keep_packets()
            records, wrong = await_finals(lab, runners.ran)
        leaks = _leaks(lab, faults, idle, stopped)
        compared = compare(records, captures, PREFIXES)
        wrong += [*compared.wrong, *runners.misjudged(records), *runners.broken]
        wrong += [*_refusals(faults, runners), *_unexpected(faults.log())]
        wrong += [f"did not happen: {name}" for name in (*faults.unmet(), *runners.unmet())]
        kinds = Counter(job.kind.name for job in runners.ran.values())
        return Outcome(
            chosen, seconds / 60, runners.let_in, {**kinds, "killed": runners.killed.total()},
            len(runners.refused), faults.kills(), dict(faults.met), sum(faults.lost.values()),
            compared, leaks, list(idle), wrong,
        )  # fmt: skip


def _prepare(lab: Lab, more: int) -> Standing:
    """Make disks that can be full; returns what a worker is left with that had no job at all."""
    for place, size in MEGABYTES.items():
        options = f"size={size + more * (place == STORE)}m"
        lab.run(["mkdir", "-p", place])
        lab.run(["mount", "-t", "tmpfs", "-o", options, "disk", place])
    lab.path(FILE).write_text(CONFIG)
    collector = lab.collector("")
    for daemon in (lab.agent(CONFIG), collector):
        daemon.terminate()
    return standing(lab, str(FILE), {})


def _wrappers(lab: Lab) -> dict[str, str]:
    inside = LAB_STATE / "bin" / "unprivileged"
    lab.path(inside).write_text(NO_NEW_PRIVS)
    lab.path(inside).chmod(0o755)
    return dict(zip(dict.fromkeys(WAYS), (f"{WRAPPERS}/lark-run", str(inside)), strict=True))


def _settled(lab: Lab, faults: Faults) -> Standing:
    """Wait until daemons without a job have what they want to have, and return that.

    How many connections to its store the collector keeps depends on how many calls met.
    """
    before: Standing = {}
    while (now := standing(lab, str(FILE), faults.daemons())) != before:
        before = now
        time.sleep(1)
    for file in ("usage.sqlite", "usage.sqlite-wal"):
        now["descriptors of the collector"][f"{STORE}/{file}"] = MOST_KEPT
    return now


def _strike(faults: Faults, runners: Runners, seconds: float, note: Callable[[str], None]) -> None:
    begun = time.monotonic()
    told = begun
    while (now := time.monotonic()) < begun + seconds and not runners.broken:
        faults.strike()
        if now > told + NOTE_SECONDS:
            told = now
            note(
                f"{(now - begun) / 60:.1f} minutes: {runners.let_in} jobs, "
                f"{len(runners.refused)} refused, {faults.kills()} kills"
            )


def _leaks(lab: Lab, faults: Faults, idle: Standing, stopped: Standing) -> dict[str, Any]:
    """Look beside daemons that wait, and after they have stopped."""
    left: dict[str, Any] = await_quiet(lab, str(FILE), faults.daemons(), idle)
    for daemon in (faults.agent, faults.collector):
        if status := daemon.terminate():
            left[f"status of {daemon.command[0]}"] = status
    after = changed(standing(lab, str(FILE), {}), stopped)
    return left | {f"{kind}, after the end": names for kind, names in after.items()}


def _refusals(faults: Faults, runners: Runners) -> list[str]:
    """Tell of jobs that were refused too often, or while nothing was amiss."""
    wrong = [
        f"refused without a reason: {each.words}"
        for each in runners.refused
        if not faults.explain(each.begun, each.ended)
    ]
    tried = len(runners.refused) + runners.let_in
    if len(runners.refused) > MOST_REFUSED * tried:
        wrong.append(f"{len(runners.refused)} of {tried} jobs were refused")
    return wrong


def _unexpected(log: str) -> list[str]:
    if "Traceback" not in log:
        return []
    at = log.index("Traceback")
    return [f"a daemon met an error that it did not expect: {log[max(0, at - 300) : at + 3000]}"]


def _listing(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(numbers.items()))
