"""Tables: what fits is shown, what does not fit is said."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from lark_agent.accounting.questions import GroupBy, JobRun
from lark_agent.cli import as_json, reasons, show, units
from lark_agent.cli.tables import Column, Grid
from lark_agent.model import Change, Count, Drop, DropReason, ExitReason, Refused, Setting, Usage
from tests.cli.fake import SECOND, START, make_record, samples, sums

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

NOW = START + 100 * SECOND


def lines(parts: Iterable[RenderableType], width: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, emoji=False, highlight=False)
    for part in parts:
        console.print(part)
    text = out.getvalue().splitlines()
    assert all(len(line) <= width for line in text)
    return [line.rstrip() for line in text]


def jobs(width: int) -> list[str]:
    records = [make_record(2, ended_ns=0, final=False, exit_reason=None), make_record(1)]
    return lines([show.jobs(records, show.Frame(width, now_ns=NOW))], width)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


def test_jobs_at_any_width_show_everything() -> None:
    """With room for all columns the table is complete, one line a job."""
    head, running, ended = jobs(200)
    assert head.split() == [c.title for c in show.JOBS]
    assert running.split()[:6] == [
        "schedd.example.org#2.0#1700000000", "alice", "physics.higgs", "worker1.example.org",
        "nat", "running",
    ]  # fmt: skip
    assert ended.split()[-6:] == ["1m00s", "52.1", "kB", "29.5", "MB", "3"]


@pytest.mark.parametrize(
    ("width", "gone"),
    [
        (120, "left out at this width: GROUP, PROFILE, TIME"),
        (80, "left out at this width: GROUP, WORKER, PROFILE, STARTED, TIME"),
    ],
)
def test_a_narrow_table_leaves_out_whole_columns_and_says_so(width: int, gone: str) -> None:
    """Job ids and bytes stay whole at widths of 120 and 80; the least important columns go."""
    head, running, ended, caption = jobs(width)
    assert caption == gone
    assert "schedd.example.org#1.0#1700000000" in ended
    assert "29.5 MB" in ended
    assert "alice" in ended
    assert "running" in running
    assert not any(title in head.split() for title in gone.rpartition(": ")[2].split(", "))


def test_a_hopelessly_narrow_table_folds_instead_of_cutting() -> None:
    """Every character of the job id is on the screen at 40 columns."""
    text = "".join(line.split("  ")[0] for line in jobs(40)[1:])
    assert "schedd.example.org#2.0#1700000000" in text


@pytest.mark.parametrize("width", [80, 120])
def test_hostile_names_are_harmless(width: int) -> None:
    """Escape sequences and markup in a job's id are shown, not obeyed."""
    record = make_record(1)
    evil = replace(record.job, job_id="\x1b[2J[red]x[/red]\r\n:smile:", owner="[bold]a")
    text = "\n".join(lines([show.jobs([replace(record, job=evil)], show.Frame(width))], width))
    assert "\x1b" not in text
    assert "\\x1b[2J[red]x[/red]\\r\\n:smile:" in text
    assert "[bold]a" in text


def test_a_change_that_makes_packets_drop_is_named() -> None:
    """The plan in force, who changed it, and which of it decides about each drop."""
    plan = (Setting("reach", "campus"), Setting("inbound", "none"), Setting("cut", "yes"))
    changes = (Change(NOW, "carol", "reach", "campus"), Change(NOW, "dave", "cut", "yes"))
    record = replace(make_record(1, changes=changes), plan=plan)
    text = "\n".join(lines(show.job(JobRun(record, ()), show.Frame(80, now_ns=NOW)), 80))
    rows = [line.split() for line in text.splitlines()]
    assert ["reach", "campus", "(changed,", "see", "below)"] in rows
    assert ["inbound", "none"] in rows
    assert ["cut", "yes", "(changed,", "see", "below)"] in rows
    assert "    here: reach = campus, changed by carol" in text
    assert "    here: cut = yes, changed by dave" in text
    assert "here: inbound" not in text


def test_a_job_shows_everything_about_it() -> None:
    """Facts, classes with their sum, drops with meaning and remedy, and usage over time."""
    run = JobRun(make_record(1), samples(0, 0, 1_000_000, 1_500_000))
    text = "\n".join(lines(show.job(run, show.Frame(80, now_ns=NOW)), 80))
    for fact in (
        "schedd.example.org#1.0#1700000000 (htcondor)",
        "018bcfe5-0001-7000-8000-000000000001",
        "alice (uid 1001, named by the batch system)",
        "worker1.example.org, slot 1",
        "10592 to 10943",
        "2023-11-14 22:13:21",
        "the job exited with status 0",
        "final",
        "class-denied: 3 packets, 180 B",
        reasons.DROPS[DropReason.CLASS_DENIED][0],
        "here: reach = other",
    ):
        assert fact in text
    table = [line.split() for line in text.splitlines()]
    assert ["campus", "52.0", "kB", "1,000", "29.5", "MB", "20,000"] in table
    assert ["(not", "IP)", "28", "B", "1", "28", "B", "1"] in table
    assert ["all", "classes", "52.1", "kB", "1,001", "29.5", "MB", "20,001"] in table
    assert "received |" in text
    assert "| █▅| at most 800 kbit/s" in text


def test_a_running_job_says_how_old_its_counters_are() -> None:
    """Numbers of a running job are as old as the last sample."""
    record = make_record(1, ended_ns=0, final=False, exit_reason=None, sampled_ns=NOW - 4 * SECOND)
    text = "\n".join(lines(show.job(JobRun(record, ()), show.Frame(80, now_ns=NOW)), 80))
    assert "read 4s ago" in text
    assert "Over time" not in text


def test_long_histories_are_thinned_evenly() -> None:
    """Ten rows at most, the first and last sample among them, and no byte lost between."""
    taken = samples(*range(0, 100_000, 100))
    thin = show.thin(taken, 11)
    assert len(thin) == 11
    assert (thin[0], thin[-1]) == (taken[0], taken[-1])
    assert thin == sorted(thin, key=lambda s: s.sampled_ns)
    assert show.thin(taken[:3], 11) == list(taken[:3])


@pytest.mark.parametrize("reason", list(DropReason))
def test_every_drop_reason_is_explained(reason: DropReason) -> None:
    """No reason that the datapath counts is unknown to people."""
    meaning, remedy = reasons.drop(reason.name.lower().replace("_", "-"))
    assert "unknown" not in meaning
    assert remedy


def test_refused_classes_are_named() -> None:
    """Beside what the plan's setting is: which classes, and how many packets of each."""
    refused = (Refused("campus", 2), Refused("other", 1_000))
    drops = (Drop("class-denied", Count(1_002, 60_120), refused),)
    record = make_record(1, usage=Usage(drops=drops))
    text = "\n".join(lines(show.job(JobRun(record, ()), show.Frame(80, now_ns=NOW)), 80))
    assert "by class: campus 2, other 1,000" in text
    assert as_json.job(record)["drops"] == [
        {
            "reason": "class-denied",
            "packets": 1002,
            "bytes": 60120,
            "classes": {"campus": 2, "other": 1000},
        }
    ]


def test_an_unknown_drop_reason_is_named() -> None:
    """A newer agent's reason is shown as it is, in `lark job` too."""
    record = make_record(1, usage=Usage(drops=(Drop("gamma-rays", Count(1, 60)),)))
    text = "\n".join(lines(show.job(JobRun(record, ()), show.Frame(80, now_ns=NOW)), 80))
    assert "gamma-rays: 1 packet, 60 B" in text
    assert "update lark" in text


@pytest.mark.parametrize("reason", [*ExitReason, None])
def test_every_ending_is_told(reason: ExitReason | None) -> None:
    """Each way to end has its sentence."""
    assert reasons.ending(make_record(1, exit_reason=reason, exit_status=9))
    assert reasons.ending(make_record(1, ended_ns=0, final=False)) == ""


@pytest.mark.parametrize("width", [80, 120])
def test_usage_states_its_hours_and_ends_with_the_total(width: int) -> None:
    """The first line names whole UTC hours, the last line the sum."""
    found = sums((("alice", "campus"), 2, 1000, 2_000_000), (("", "other"), 1, 5, 10))
    total = (2, Count(2, 1005), Count(4, 2_000_010))
    by = (GroupBy.OWNER, GroupBy.CLASS)
    text = lines(show.usage(by, found, total, show.Frame(width)), width)
    assert text[0] == "Usage from 2023-11-14 22:00 to 2023-11-14 23:00 UTC (whole hours)"
    assert text[1].split() == ["OWNER", "CLASS", "JOBS", "SENT", "RECEIVED", "BOTH"]
    assert text[2].split() == ["alice", "campus", "2", "1.00", "kB", "2.00", "MB", "2.00", "MB"]
    assert text[3].split()[0] == "-"
    assert text[-1].split() == ["total", "2", "1.00", "kB", "2.00", "MB", "2.00", "MB"]


def test_exact_tables_keep_every_digit() -> None:
    """`--bytes` reaches every cell."""
    frame = show.Frame(120, exact=True, now_ns=NOW)
    text = "\n".join(lines(show.job(JobRun(make_record(1), ()), frame), 120))
    assert "29,536,789" in text
    assert units.size(29_536_789) not in text


def test_columns_that_must_stay_stay() -> None:
    """A column that cannot be spared is never left out, however narrow the table."""
    columns = (Column("ID"), Column("NOTE", 1))
    drawn = lines([Grid(columns, [("abcdefgh", "n" * 30)], 10)], 10)
    assert drawn[:2] == ["ID", "abcdefgh"]


@pytest.mark.parametrize("width", [80, 120, 300])
def test_plain_lines_are_what_a_terminal_shows(width: int) -> None:
    """Both ways of drawing agree to the column, wide characters included."""
    columns = (Column("NAME"), Column("SIZE", 1, "right"), Column("NOTE", 2))
    rows = [
        ("漢字", "1", "x" * 40),
        ("b\x1b", "22", "\N{COMBINING ACUTE ACCENT}e"),
        ("c", "", "y" * 90),
    ]
    grid = Grid(columns, rows, width, ("total", "23", ""))
    assert list(grid.lines()) == lines([grid], width)
