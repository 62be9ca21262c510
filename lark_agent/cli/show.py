"""What people see of jobs and totals: values of `model` in, lines and grids out.

Nothing here asks or prints, so each view is tested at any width with made-up records. What a
number is stands in its column's title; units come from `lark_agent.cli.units`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from lark_agent.cli import reasons, units
from lark_agent.cli.as_json import state
from lark_agent.cli.tables import Column, Grid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lark_agent.accounting.questions import GroupBy, JobRun, Sample, Totals
    from lark_agent.model import Count, Record, Usage

HISTORY_ROWS = 10

JOBS = (
    Column("JOB"),
    Column("OWNER", 1),
    Column("GROUP", 8),
    Column("WORKER", 6),
    Column("PROFILE", 9),
    Column("STATE", 2),
    Column("STARTED", 5),
    Column("TIME", 7, "right"),
    Column("SENT", 0, "right"),
    Column("RECEIVED", 0, "right"),
    Column("DROPS", 3, "right"),
)


@dataclass(frozen=True, slots=True)
class Frame:
    """How to draw: cells of width, whether bytes keep every digit, and what time it is."""

    width: int
    exact: bool = False
    now_ns: int = 0

    def size(self, value: Count) -> str:
        """Write the bytes of a count."""
        return units.size(value.bytes, exact=self.exact)


def jobs(records: Sequence[Record], frame: Frame) -> Grid:
    """`lark jobs`: one line a job."""
    rows = [
        (
            r.job.job_id,
            r.job.owner,
            r.job.accounting_group or "-",
            r.worker,
            r.profile,
            state(r),
            units.local(r.started_ns),
            units.duration((r.ended_ns or frame.now_ns) - r.started_ns),
            frame.size(r.usage.sent),
            frame.size(r.usage.received),
            f"{r.usage.dropped.packets:,}" if r.usage.dropped else "-",
        )
        for r in records
    ]
    return Grid(JOBS, rows, frame.width)


def job(run: JobRun, frame: Frame) -> Iterator[str | Grid]:
    """`lark job`: everything about one run of a job, in paragraphs."""
    record = run.record
    yield Grid((Column(""), Column("")), list(_facts(record, frame)), frame.width)
    yield ""
    yield Grid(*_classes(record.usage, frame), frame.width, _total(record.usage, frame))
    if record.transfer is not None:
        yield ""
        yield "File transfer and the rest of the batch system's work for the job"
        yield Grid(*_classes(record.transfer, frame), frame.width, _total(record.transfer, frame))
    if record.usage.drops:
        yield ""
        yield from _drops(record)
    if len(run.samples) > 1:
        yield ""
        yield from _history(run.samples, frame)


def _facts(record: Record, frame: Frame) -> Iterator[tuple[str, str]]:
    yield "job", f"{record.job.job_id} ({record.job.scheduler})"
    yield "attachment", record.attachment_id
    trust = "named by the batch system" if record.job.verified else "unverified: the user's words"
    yield "owner", f"{record.job.owner} (uid {record.job.uid}, {trust})"
    yield "accounting group", record.job.accounting_group or "-"
    yield "worker", f"{record.worker}, slot {record.slot}"
    network = f", network {record.network}" if record.network else ""
    yield "profile", f"{record.profile} (connectivity {record.connectivity}{network})"
    if addresses := [address for address in (record.ipv4, record.ipv6) if address]:
        yield "addresses", ", ".join(addresses)
    if record.first_port:
        yield "NAT ports", f"{record.first_port} to {record.last_port}"
    for setting in record.plan:
        changed = any(change.setting == setting.name for change in record.changes)
        since = " (changed, see below)" if changed else ""
        yield setting.name, units.visible(setting.value) + since
    yield "state", state(record)
    yield "started", units.local(record.started_ns, seconds=True)
    if record.ended_ns:
        yield "ended", units.local(record.ended_ns, seconds=True)
    yield "duration", units.duration((record.ended_ns or frame.now_ns) - record.started_ns)
    if record.ended_ns:
        yield "exit", reasons.ending(record)
    age = units.duration(frame.now_ns - record.sampled_ns)
    if record.cost:
        yield "cost", units.money(record.cost)
    for change in record.changes:
        when = units.local(change.at_ns, seconds=True)
        what = f"{change.setting} = {change.value}, {when}, by {change.by}"
        yield "changed", units.visible(what)
    yield "counters", "final" if record.final else f"read {age} ago" if record.sampled_ns else "-"


def _classes(
    usage: Usage, frame: Frame
) -> tuple[tuple[Column, ...], list[tuple[str, str, str, str, str]]]:
    columns = (
        Column("CLASS"),
        Column("SENT", 0, "right"),
        Column("PACKETS", 1, "right"),
        Column("RECEIVED", 0, "right"),
        Column("PACKETS", 1, "right"),
    )
    rows = [_moved(c.traffic_class, c.sent, c.received, frame) for c in usage.classes]
    arp = usage.non_ip_sent, usage.non_ip_received
    if any(arp):
        rows.append(_moved("(not IP)", *arp, frame))
    return columns, rows


def _total(usage: Usage, frame: Frame) -> tuple[str, ...]:
    return _moved("all classes", usage.sent, usage.received, frame)


def _moved(name: str, sent: Count, received: Count, frame: Frame) -> tuple[str, str, str, str, str]:
    return (
        name,
        frame.size(sent),
        f"{sent.packets:,}",
        frame.size(received),
        f"{received.packets:,}",
    )


def _drops(record: Record) -> Iterator[str | Grid]:
    yield "Dropped"
    for drop in record.usage.drops:
        meaning, remedy = reasons.drop(units.visible(drop.reason))
        packets, size = drop.count.packets, units.size(drop.count.bytes)
        noun = "packet" if packets == 1 else "packets"
        yield f"  {units.visible(drop.reason)}: {packets:,} {noun}, {size}"
        yield f"    {meaning}"
        if drop.classes:
            of = (f"{each.traffic_class} {each.packets:,}" for each in drop.classes)
            yield f"    by class: {units.visible(', '.join(of))}"
        for line in reasons.deciding(drop.reason, record):
            yield f"    {units.visible(line)}"
        if drop.reason == "quota":
            for change in reasons.quotas(record):
                since = units.local(change.at_ns, seconds=True)
                what = f"{change.by}: {change.setting} since {since}, {change.value}"
                yield f"    {units.visible(what)}"
        yield f"    -> {remedy}"


def _history(samples: Sequence[Sample], frame: Frame) -> Iterator[str | Grid]:
    columns = (
        Column("UNTIL"),
        Column("SENT", 0, "right"),
        Column("RATE", 1, "right"),
        Column("RECEIVED", 0, "right"),
        Column("RATE", 1, "right"),
    )
    yield "Over time"
    fine = thin(samples, max(min(frame.width, 120) - 20, 10))
    for name, line in (
        ("sent", [s.sent.bytes for s in fine]),
        ("received", [s.received.bytes for s in fine]),
    ):
        rates = [
            (line[i + 1] - line[i]) / max(fine[i + 1].sampled_ns - fine[i].sampled_ns, 1)
            for i in range(len(fine) - 1)
        ]
        peak = units.scaled(max(rates) * 8 * units.SECOND_NS, "bit/s")
        yield f"  {name:9}|{units.sparkline(rates)}| at most {peak}"
    coarse = thin(samples, HISTORY_ROWS + 1)
    rows = []
    for old, new in pairwise(coarse):
        span = new.sampled_ns - old.sampled_ns
        sent, received = new.sent - old.sent, new.received - old.received
        rows.append(
            (
                units.local(new.sampled_ns, seconds=True),
                frame.size(sent),
                units.rate(sent.bytes, span),
                frame.size(received),
                units.rate(received.bytes, span),
            )
        )
    yield Grid(columns, rows, frame.width)


def thin(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Choose at most `most` samples, evenly, the first and the last among them."""
    if len(samples) <= most:
        return list(samples)
    last = len(samples) - 1
    return [samples[round(i * last / (most - 1))] for i in range(most)]


def usage(
    by: Sequence[GroupBy], found: Totals, total: tuple[int, Count, Count], frame: Frame
) -> Iterator[str | Grid]:
    """`lark usage`: the interval that was summed, one line a group, and the total.

    Sites without prices see no column of zeros.
    """
    since, until = units.utc_hour(found.since_ns), units.utc_hour(found.until_ns)
    yield f"Usage from {since} to {until} UTC (whole hours)"
    columns = (
        *(Column(group.value.upper()) for group in by),
        Column("JOBS", 1, "right"),
        Column("SENT", 0, "right"),
        Column("RECEIVED", 0, "right"),
        Column("BOTH", 2, "right"),
    )
    rows = [
        (*(part or "-" for part in row.key), *_sums(row.jobs, row.sent, row.received, frame))
        for row in found.rows
    ]
    last = (*("total" if i == 0 else "" for i in range(len(by))), *_sums(*total, frame))
    if cost := sum(row.cost for row in found.rows):
        columns = (*columns, Column("COST", 1, "right"))
        rows = [(*row, units.money(r.cost)) for row, r in zip(rows, found.rows, strict=True)]
        last = (*last, units.money(cost))
    yield Grid(columns, rows, frame.width, last)


def _sums(jobs: int, sent: Count, received: Count, frame: Frame) -> tuple[str, str, str, str]:
    return f"{jobs:,}", frame.size(sent), frame.size(received), frame.size(sent + received)
