"""`lark top`: the running jobs and how fast they move bytes, at the pace of the counters.

A rate is the difference of two consecutive samples over the time between them, as the worker's
sampler read them: exact, never extrapolated, and as old as the worker's sampling interval (the
column AGE says how old). The first picture takes each job's last two samples from its history;
later pictures compare successive answers, and a job whose sample has not changed keeps its rate.

Asking more than once a second shows nothing new (no worker samples faster), so the interval has
that floor. A service that stops answering leaves the last picture on the screen with the error
below it, and is asked again. Input is read without waiting for a line (cbreak), which is undone
whatever ends the view.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lark_agent.accounting.questions import JobFilter, Sample
from lark_agent.cli import units
from lark_agent.cli.asking import NoSuchJob
from lark_agent.cli.tables import Column, Grid, draw
from lark_agent.errors import RemoteError
from lark_agent.model import Count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from lark_agent.cli.asking import Asker
    from lark_agent.model import Record

FASTEST = 1.0
"""Seconds between two questions, at least."""
MOST_HISTORIES = 100
"""Jobs whose history is asked for the first picture; the others show a rate from the second on."""

COLUMNS = (
    Column("JOB"),
    Column("OWNER", 1),
    Column("WORKER", 6),
    Column("TIME", 5, "right"),
    Column("SENDS", 0, "right"),
    Column("RECEIVES", 0, "right"),
    Column("SENT", 3, "right"),
    Column("RECEIVED", 3, "right"),
    Column("AGE", 4, "right"),
)


@dataclass(frozen=True, slots=True)
class Speed:
    """What moved between two samples; a span of 0 says that there was only one."""

    sent: Count
    received: Count
    span_ns: int

    @property
    def bytes_per_ns(self) -> float:
        """Both directions; the order of the view."""
        return (self.sent + self.received).bytes / self.span_ns if self.span_ns else 0.0


UNKNOWN = Speed(Count(), Count(), 0)


class Speeds:
    """The latest sample of each job and its speed."""

    def __init__(self, history: Callable[[str], Sequence[Sample]]) -> None:
        self._history = history
        self._known: dict[str, tuple[Sample, Speed]] = {}

    def update(self, records: Sequence[Record]) -> list[tuple[Record, Speed]]:
        """Take in an answer; returns its jobs with their speeds, fastest first."""
        asked = 0
        following: dict[str, tuple[Sample, Speed]] = {}
        for record in records:
            now = Sample(record.sampled_ns, record.usage.sent, record.usage.received)
            old = self._known.get(record.attachment_id)
            if old is None:
                asked += 1
                past = self._history(record.attachment_id) if asked <= MOST_HISTORIES else ()
                speed = next(
                    (s for s in (_between(p, now) for p in reversed(past)) if s.span_ns), UNKNOWN
                )
            else:
                sample, speed = old
                speed = _between(sample, now) if now.sampled_ns > sample.sampled_ns else speed
            following[record.attachment_id] = now, speed
        self._known = following
        moving = [(record, following[record.attachment_id][1]) for record in records]
        return sorted(moving, key=lambda pair: pair[1].bytes_per_ns, reverse=True)


def _between(old: Sample, new: Sample) -> Speed:
    if new.sampled_ns <= old.sampled_ns:
        return UNKNOWN
    return Speed(new.sent - old.sent, new.received - old.received, new.sampled_ns - old.sampled_ns)


def picture(moving: Sequence[tuple[Record, Speed]], width: int, now_ns: int) -> Grid:
    """Draw the jobs in the order given."""
    rows = [
        (
            record.job.job_id,
            record.job.owner,
            record.worker,
            units.duration(now_ns - record.started_ns),
            units.rate(speed.sent.bytes, speed.span_ns),
            units.rate(speed.received.bytes, speed.span_ns),
            units.size(record.usage.sent.bytes),
            units.size(record.usage.received.bytes),
            units.duration(now_ns - record.sampled_ns) if record.sampled_ns else "-",
        )
        for record, speed in moving
    ]
    return Grid(COLUMNS, rows, width)


def speeds(asker: Asker) -> Speeds:
    """Start without knowledge; histories come from `asker`."""

    def history(attachment_id: str) -> Sequence[Sample]:
        try:
            return asker.find(attachment_id)[0].samples
        except (NoSuchJob, IndexError):  # ended and forgotten since it was listed
            return ()

    return Speeds(history)


def once(asker: Asker, wanted: JobFilter, console: Console) -> None:
    """Print one picture."""
    records, _ = asker.jobs(wanted, 0)
    draw([picture(speeds(asker).update(records), console.width, time.time_ns())])


def live(asker: Asker, wanted: JobFilter, console: Console, interval: float) -> None:
    """Show pictures until q or Ctrl-C; raises RemoteError only if the first question fails."""
    from rich.console import Group  # noqa: PLC0415  50 ms that --help must not pay
    from rich.live import Live  # noqa: PLC0415  as above
    from rich.text import Text  # noqa: PLC0415  as above

    known = speeds(asker)
    moving = known.update(asker.jobs(wanted, 0)[0])
    problem = ""
    with (
        # whenever it comes: leaving this view by Ctrl-C is an answer, not a failure
        suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False) as screen,
        single_keys() as pressed,
    ):
        ready = idle(asker)
        while True:
            now_ns = time.time_ns()
            fitting = moving[: max(console.height - 4, 1)]
            head = f"{units.local(now_ns, seconds=True)}   {len(moving)} running{ready}   q: quit"
            parts: list[Text | Grid] = [
                Text(head),
                Text(""),
                picture(fitting, console.width, now_ns),
            ]
            if problem:
                parts.append(Text(units.visible(problem), style="red"))
            screen.update(Group(*parts), refresh=True)
            if pressed(max(interval, FASTEST)):
                return
            try:
                moving, problem = known.update(asker.jobs(wanted, 0)[0]), ""
                ready = idle(asker)
            except RemoteError as error:
                problem = str(error)


def idle(asker: Asker) -> str:
    """Tell which sandboxes wait for jobs; nothing of a collector, which has none."""
    try:
        kinds = asker.status().ready_by_kind
    except RemoteError:
        return ""
    listed = ", ".join(f"{number} {units.visible(kind)}" for kind, number in sorted(kinds.items()))
    return f"   {listed} ready" if listed else ""


@contextmanager
def single_keys() -> Iterator[Callable[[float], bool]]:
    """Read keys as they are pressed; gives a function that waits and says whether to end."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([descriptor], [], [], left)[0]:
                key = os.read(descriptor, 1)
                if key in {b"q", b"Q", b""}:
                    return True
        return False

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
