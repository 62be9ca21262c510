"""`lark top`: exact rates from consecutive samples, and a terminal left as it was."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest
from rich.console import Console

from lark_agent.accounting.questions import JobRun, Sample
from lark_agent.cli import lark, top
from lark_agent.model import ClassUsage, Count, Record, Usage
from tests.cli.fake import INTERRUPTIBLE, SECOND, START, child_environment, make_record, samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.cli.fake import Service


def at(number: int, seconds: int, sent: int, received: int) -> Record:
    """Make a running job whose counters were read `seconds` after the start of time."""
    usage = Usage((ClassUsage("other", Count(1, sent), Count(1, received)),))
    record = make_record(number, ended_ns=0, final=False, exit_reason=None, usage=usage)
    return replace(record, started_ns=START, sampled_ns=START + seconds * SECOND)


def never(_: str) -> Sequence[Sample]:
    return ()


def rates(moving: list[tuple[Record, top.Speed]]) -> dict[int, tuple[int, int, int]]:
    return {r.slot: (s.sent.bytes, s.received.bytes, s.span_ns // SECOND) for r, s in moving}


def test_a_rate_is_the_difference_of_two_samples() -> None:
    """Bytes between two samples over the time between them; unknown before the second."""
    speeds = top.Speeds(never)
    assert rates(speeds.update([at(1, 10, 0, 100)])) == {1: (0, 0, 0)}
    assert rates(speeds.update([at(1, 20, 50, 1100)])) == {1: (50, 1000, 10)}


def test_an_unchanged_sample_keeps_its_rate() -> None:
    """Asking more often than the worker samples does not show a stop that was none."""
    speeds = top.Speeds(never)
    speeds.update([at(1, 10, 0, 100)])
    speeds.update([at(1, 20, 0, 1100)])
    assert rates(speeds.update([at(1, 20, 0, 1100)])) == {1: (0, 1000, 10)}
    assert rates(speeds.update([at(1, 30, 0, 1100)])) == {1: (0, 0, 10)}


def test_the_first_picture_has_rates_from_the_history() -> None:
    """The last two different samples of the history make the first rate."""
    speeds = top.Speeds(lambda _: samples(0, 100, 300))
    assert rates(speeds.update([at(1, 20, 30, 300)])) == {1: (20, 200, 10)}


def test_histories_of_a_crowd_are_not_asked() -> None:
    """A pool with thousands of jobs gets a bounded number of questions for one picture."""
    asked: list[str] = []

    def history(job: str) -> Sequence[Sample]:
        asked.append(job)
        return ()

    top.Speeds(history).update([at(n, 10, 0, 0) for n in range(1, 1000)])
    assert len(asked) == top.MOST_HISTORIES


def test_the_fastest_job_is_first() -> None:
    """Sorted by what moves now in both directions, not by totals."""
    speeds = top.Speeds(never)
    speeds.update([at(1, 10, 0, 10**9), at(2, 10, 0, 0), at(3, 10, 0, 0)])
    moving = speeds.update([at(1, 20, 0, 10**9 + 1), at(2, 20, 400, 100), at(3, 20, 300, 300)])
    assert [record.slot for record, _ in moving] == [3, 2, 1]


@pytest.mark.parametrize(
    ("width", "there", "gone"),
    [
        (120, [column.title for column in top.COLUMNS], []),
        (80, ["JOB", "OWNER", "SENDS", "RECEIVES"], ["WORKER", "TIME", "AGE"]),
    ],
)
def test_the_picture_fits(width: int, there: list[str], gone: list[str]) -> None:
    """Rates never leave the screen; the least important columns do."""
    out = io.StringIO()
    speed = top.Speed(Count(1, 125_000), Count(1, 12_500_000), SECOND)
    drawn = top.picture([(at(1, 10, 5, 6), speed)], width, START + 12 * SECOND)
    Console(file=out, width=width).print(drawn)
    head, row, *caption = out.getvalue().splitlines()
    assert set(there) <= set(head.split())
    assert not set(gone) & set(head.split())
    assert "1.00 Mbit/s" in row
    assert "100 Mbit/s" in row
    assert all(len(line) <= width for line in (head, row, *caption))


def test_without_a_terminal_one_picture_is_printed(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe the command ends after one table, and only running jobs were asked for."""
    record = at(1, 20, 30, 300)
    service.script.records = [record]
    service.script.runs = {record.attachment_id: (JobRun(record, samples(0, 100, 300)),)}
    assert lark.status(["top"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "JOB"
    assert "160 bit/s" in row
    assert service.script.requests[0].running is True


def test_a_job_that_ended_between_two_questions_is_no_error(service: Service) -> None:
    """The list named it, the history no longer does: it is shown without a rate."""
    service.script.records = [at(1, 20, 30, 300)]
    assert lark.status(["top", "--once"]) == 0


class Terminal:
    """`lark top` on a pseudo-terminal of 80 by 24."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.screen = b""
        self.process = subprocess.Popen(
            [*INTERRUPTIBLE, sys.executable, "-m", "lark_agent.cli.lark", "top", "--interval", "1"],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**child_environment(), "TERM": "xterm"},
        )  # fmt: skip

    def wait_for(self, text: bytes) -> None:
        until = time.monotonic() + 30
        while text not in self.screen:
            left = until - time.monotonic()
            assert left > 0, self.screen
            if select.select([self.master], [], [], left)[0]:
                self.screen += os.read(self.master, 65536)

    def end(self) -> int:
        """Wait for the end; returns the exit status. The terminal must be as before."""
        until = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < until
            if select.select([self.master], [], [], 0.05)[0]:
                self.screen += os.read(self.master, 65536)
        assert termios.tcgetattr(self.slave) == self.before
        os.close(self.slave)
        os.close(self.master)
        return self.process.returncode


@pytest.fixture
def terminal(service: Service) -> Iterator[Terminal]:
    """Start `lark top` once the service has something to say."""
    service.script.records = [at(1, 10, 0, 0)]
    opened = Terminal()
    yield opened
    opened.process.kill()
    opened.process.wait()


def test_the_live_view_tells_what_waits_for_jobs(service: Service, terminal: Terminal) -> None:
    """Ready sandboxes of each kind, as they change; the agent is asked with each picture."""
    terminal.wait_for(b"1 running")
    service.script.status.ready_by_kind.update({"nat": 8, "bridge lab": 2})
    terminal.wait_for(b"2 bridge lab, 8 nat ready")
    os.write(terminal.master, b"q")
    assert terminal.end() == 0


def test_q_ends_the_live_view(service: Service, terminal: Terminal) -> None:
    """Two pictures with a rate in the second; q gives status 0 and the terminal back."""
    terminal.wait_for(b"1 running")
    service.script.records = [at(1, 20, 0, 12_500_000)]
    terminal.wait_for(b"10.0 Mbit/s")
    os.write(terminal.master, b"q")
    assert terminal.end() == 0
    assert b"\x1b[?1049l" in terminal.screen  # the alternate screen was left


def test_ctrl_c_ends_the_live_view(terminal: Terminal) -> None:
    """Ctrl-C is how people leave: status 0, no traceback, the terminal given back."""
    terminal.wait_for(b"1 running")
    os.kill(terminal.process.pid, signal.SIGINT)
    assert terminal.end() == 0
    assert b"Traceback" not in terminal.screen


def test_a_service_that_stops_answering_is_asked_again(
    service: Service, terminal: Terminal
) -> None:
    """The last picture stays with the error below, and the view goes on."""
    terminal.wait_for(b"1 running")
    service.script.refusal = grpc.StatusCode.INTERNAL, "LOCKED"
    terminal.wait_for(b"LOCKED")
    service.script.refusal = None
    service.script.records = [at(1, 10, 0, 0), at(2, 10, 0, 0)]
    terminal.wait_for(b"2 running")
    os.write(terminal.master, b"q")
    assert terminal.end() == 0
