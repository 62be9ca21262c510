"""One run: start, strike for some time, let everything end, compare."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tests.agent.crashing import leaked, state
from tests.lab.capture import Capture
from tests.lab.filesystem import STATE as LAB_STATE
from tests.lab.filesystem import WRAPPERS
from tests.lab.topology import CAMPUS, INTERNET
from tests.lab.world import Lab
from tests.soak.books import await_finals, in_the_books, on_the_wire
from tests.soak.faults import STATE, Faults
from tests.soak.jobs import Runners

if TYPE_CHECKING:
    from pathlib import Path

    from lark_agent.model import Count

PREFIXES = ("198.18.7.0/24", "2001:db8:7::/112")
SLOTS, THREADS = 16, 6
DISK = "8m"
CONFIG = f"""
[collector]
address = "127.0.0.1:9620"
insecure = true
[accounting]
interval_seconds = 1
[pool]
slots = {SLOTS}
ready = 4
wait_seconds = 10
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
NOTE_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    seed: int
    minutes: float
    jobs: int
    refused: int
    kills: int
    faults: dict[str, int]
    sent: Count
    received: Count
    difference: Count
    """Of packets and bytes, both ways, without signs."""
    leaks: dict[str, Any]
    wrong: list[str] = field(default_factory=list)

    def good(self) -> bool:
        """Tell whether nothing is lost, left or wrong."""
        return not (self.difference.packets or self.difference.bytes or self.leaks or self.wrong)

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return asdict(self)

    def __str__(self) -> str:
        moved = self.sent + self.received
        lines = [
            f"soak: seed {self.seed}, {self.minutes:.1f} minutes",
            f"  jobs run        {self.jobs:,}; {self.refused:,} more were refused",
            f"  kills survived  {self.kills} of {sum(self.faults.values())} faults: "
            + ", ".join(f"{name} {number}" for name, number in sorted(self.faults.items())),
            f"  bytes compared  {moved.bytes:,} in {moved.packets:,} packets",
            f"  difference      {self.difference.bytes:,} bytes, {self.difference.packets} packets",
            f"  leaks           {self.leaks or 0}",
        ]
        return "\n".join([*lines, *(f"  wrong: {text}" for text in self.wrong)])


def soak(folder: Path, seconds: float, seed: int | None = None, *, say: bool = True) -> Outcome:
    """Run for some seconds, and a little for the end."""
    chosen = int(time.time()) if seed is None else seed

    def note(text: str) -> None:
        if say:
            print(f"* {text}", file=sys.stderr, flush=True)

    note(f"seed {chosen}")
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(delegated=PREFIXES))
        _prepare(lab)
        before = state(lab)
        faults = Faults(lab, CONFIG, "", chosen)
        captures = [folder / f"{far.name}.pcap" for far in (CAMPUS, INTERNET)]
        with ExitStack() as listening:
            for far, file in zip((CAMPUS, INTERNET), captures, strict=True):
                listening.enter_context(Capture(far.interface, file, lab.netns(far.name)))
            runners = Runners(lab, _wrappers(lab), chosen, THREADS)
            faults.lose_packets()
            runners.start()
            try:
                _strike(faults, runners, seconds, note)
            finally:
                runners.stop()
            faults.keep_packets()
            note("no more faults; waiting for the last records")
            wrong = await_finals(lab, runners.ran)
        booked, wired = in_the_books(lab), on_the_wire(captures, PREFIXES)
        leaks = leaked(lab, faults.agent, before)
        log = faults.log()
        if "Traceback" in log:
            at = log.index("Traceback")
            wrong.append(
                f"a daemon met an error that it did not expect: {log[at - 300 : at + 3000]}"
            )
        pairs = list(zip(booked, wired, strict=True))
        jobs = len(runners.ran) + len(runners.killed)
        return Outcome(
            chosen, seconds / 60, jobs, runners.refused, faults.kills(), dict(faults.met),
            wired[0], wired[1],
            type(wired[0])(
                sum(abs(ours.packets - seen.packets) for ours, seen in pairs),
                sum(abs(ours.bytes - seen.bytes) for ours, seen in pairs),
            ),
            leaks, [*wrong, *runners.broken],
        )  # fmt: skip


def _prepare(lab: Lab) -> None:
    lab.run(["mkdir", "-p", STATE])
    lab.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "journal", STATE])


def _wrappers(lab: Lab) -> tuple[str, ...]:
    inside = LAB_STATE / "bin" / "unprivileged"
    lab.path(inside).write_text(NO_NEW_PRIVS)
    lab.path(inside).chmod(0o755)
    return f"{WRAPPERS}/lark-run", f"{WRAPPERS}/lark-run", str(inside)


def _strike(faults: Faults, runners: Runners, seconds: float, note: Any) -> None:
    begun = time.monotonic()
    told = begun
    while (now := time.monotonic()) < begun + seconds and not runners.broken:
        faults.strike()
        if now > told + NOTE_SECONDS:
            told = now
            note(
                f"{(now - begun) / 60:.1f} minutes: {len(runners.ran)} jobs, {runners.refused} "
                f"refused, {faults.kills()} kills"
            )
