"""Between the words of the house (`lark_agent.model`) and the messages on the wire.

Outward, every field is copied. Inward, nothing is believed: protobuf checks types and UTF-8 only,
so `record_from_wire` also checks lengths, counts, ranges and names, and raises InvalidRecord with
the field and its value. Both ends share the limits: an agent that calls `check_record` when a job
is claimed can never journal a record that a collector would refuse for ever.

The limits: strings of 256 characters without control characters (they end up in terminals and
logs), 16 classes, 64 drop reasons, 32 settings, integers that a signed 64-bit SQL column holds. A
class or reason stands at most once, since totals are booked by its name. A final record has an end.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, TypeVar

from lark_agent.accounting.questions import (
    HOUR_NS,
    GroupBy,
    JobFilter,
    JobRun,
    Sample,
    Total,
    Totals,
)
from lark_agent.errors import LarkError
from lark_agent.model import (
    MAX_CHANGES,
    MAX_CLASSES,
    Change,
    ClassUsage,
    Connectivity,
    Count,
    Drop,
    ExitReason,
    Job,
    Peers,
    Record,
    Refused,
    Scheduler,
    Setting,
    Usage,
)
from lark_agent.rpc.lark.v1 import query_pb2, record_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from enum import StrEnum

MAX_TEXT = 256
"""Characters in any string of a record or filter."""
MAX_DROPS = 64
MAX_SETTINGS = 32
MAX_INTEGER = 2**63 - 1
"""What a signed 64-bit SQL column holds."""
LAST_TIME_NS = MAX_INTEGER // HOUR_NS * HOUR_NS
"""In a question: the last whole hour that a database can count to, in 2262."""
MAX_WIRE = 2**64 - 1

ATTACHMENT_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
"""A UUIDv7 (RFC 9562, 5.7) in lower case: pages are cut by it, so it must sort by time."""

Choice = TypeVar("Choice", bound="StrEnum")

GROUPINGS = {
    query_pb2.GROUP_BY_OWNER: GroupBy.OWNER,
    query_pb2.GROUP_BY_ACCOUNTING_GROUP: GroupBy.ACCOUNTING_GROUP,
    query_pb2.GROUP_BY_WORKER: GroupBy.WORKER,
    query_pb2.GROUP_BY_CLASS: GroupBy.CLASS,
    query_pb2.GROUP_BY_DAY: GroupBy.DAY,
}
STATES = {
    query_pb2.STATE_UNSPECIFIED: None,
    query_pb2.STATE_RUNNING: True,
    query_pb2.STATE_ENDED: False,
}


class InvalidRecord(LarkError):  # noqa: N818  named as InvalidRequest is: the record, not the code
    """A record or filter from the wire breaks a rule; the text names the field and the rule."""


def record_to_wire(record: Record) -> record_pb2.Record:
    """Copy a record into a message."""
    job = record.job
    return record_pb2.Record(
        attachment_id=record.attachment_id,
        worker=record.worker,
        slot=record.slot,
        job=record_pb2.Job(
            scheduler=job.scheduler,
            job_id=job.job_id,
            owner=job.owner,
            uid=job.uid,
            accounting_group=job.accounting_group,
            verified=job.verified,
        ),
        profile=record.profile,
        connectivity=record.connectivity,
        started_ns=record.started_ns,
        sequence=record.sequence,
        sampled_ns=record.sampled_ns,
        ended_ns=record.ended_ns,
        final=record.final,
        exit_reason=record.exit_reason or "",
        exit_status=record.exit_status,
        first_port=record.first_port,
        last_port=record.last_port,
        ipv4=record.ipv4,
        ipv6=record.ipv6,
        network=record.network,
        peers=record.peers,
        cost=record.cost,
        plan=[record_pb2.Setting(**setting._asdict()) for setting in record.plan],
        changes=[record_pb2.Change(**change._asdict()) for change in record.changes],
        usage=_usage_to_wire(record.usage),
        transfer=None if record.transfer is None else _usage_to_wire(record.transfer),
    )


def record_from_wire(message: record_pb2.Record) -> Record:
    """Copy a message into a record.

    Raises InvalidRecord if anything in it breaks the limits in this module's docstring.
    """
    # counted before anything is built: a message may hold millions
    for name, counted in (("usage", message.usage), ("transfer", message.transfer)):
        _check_size(f"{name}.classes", counted.classes, MAX_CLASSES)
        _check_size(f"{name}.drops", counted.drops, MAX_DROPS)
        for drop in counted.drops:
            _check_size(f"{name}.drops.classes", drop.classes, MAX_CLASSES)
    _check_size("changes", message.changes, MAX_CHANGES)
    _check_size("plan", message.plan, MAX_SETTINGS)
    reason = message.exit_reason
    record = Record(
        attachment_id=message.attachment_id,
        worker=message.worker,
        slot=message.slot,
        job=Job(
            scheduler=_choice("job.scheduler", Scheduler, message.job.scheduler),
            job_id=message.job.job_id,
            owner=message.job.owner,
            uid=message.job.uid,
            accounting_group=message.job.accounting_group,
            verified=message.job.verified,
        ),
        profile=message.profile,
        connectivity=_choice("connectivity", Connectivity, message.connectivity),
        started_ns=message.started_ns,
        sequence=message.sequence,
        sampled_ns=message.sampled_ns,
        ended_ns=message.ended_ns,
        final=message.final,
        exit_reason=_choice("exit_reason", ExitReason, reason) if reason else None,
        exit_status=message.exit_status,
        first_port=message.first_port,
        last_port=message.last_port,
        ipv4=message.ipv4,
        ipv6=message.ipv6,
        network=message.network,
        peers=_choice("peers", Peers, message.peers or Peers.NONE),
        cost=message.cost,
        plan=tuple(Setting(each.name, each.value) for each in message.plan),
        changes=tuple(
            Change(each.at_ns, each.by, each.setting, each.value) for each in message.changes
        ),
        usage=_usage_from_wire(message.usage),
        transfer=_usage_from_wire(message.transfer) if message.HasField("transfer") else None,
    )
    check_record(record)
    return record


def check_record(record: Record) -> None:
    """Raise InvalidRecord if no collector would take this record, whatever happens to it later."""
    if not ATTACHMENT_ID.fullmatch(record.attachment_id):
        raise InvalidRecord(f"attachment_id: {record.attachment_id[:MAX_TEXT]!r} is not a UUIDv7")
    usages = {"usage": record.usage}
    if record.transfer is not None:
        usages["transfer"] = record.transfer
    texts = {
        "worker": record.worker,
        "job.job_id": record.job.job_id,
        "job.owner": record.job.owner,
        "job.accounting_group": record.job.accounting_group,
        "profile": record.profile,
        "network": record.network,
        **{f"changes[{n}]": " ".join(change[1:]) for n, change in enumerate(record.changes)},
        **{f"plan[{n}]": " ".join(setting) for n, setting in enumerate(record.plan)},
    }
    for name, usage in usages.items():
        texts |= {f"{name}.classes[{n}]": c.traffic_class for n, c in enumerate(usage.classes)}
        texts |= {f"{name}.drops[{n}]": d.reason for n, d in enumerate(usage.drops)}
        texts |= {
            f"{name}.drops[{n}].classes[{m}]": refused.traffic_class
            for n, d in enumerate(usage.drops)
            for m, refused in enumerate(d.classes)
        }
    for field, text in texts.items():
        check_text(f"{record.attachment_id}: {field}", text)
    numbers = [record.started_ns, record.sequence, record.sampled_ns, record.ended_ns, record.cost]
    numbers += [change.at_ns for change in record.changes]
    for usage in usages.values():
        _check_unique(record, "class", [c.traffic_class for c in usage.classes])
        _check_unique(record, "drop reason", [d.reason for d in usage.drops])
        numbers += [entry.cost for entry in usage.classes]
        for count in _counts(usage):
            numbers += count.packets, count.bytes
    if min(numbers) < 0 or max(numbers) > MAX_INTEGER:
        raise InvalidRecord(
            f"{record.attachment_id}: a time, sequence or count is not between 0 and {MAX_INTEGER}"
        )
    if not 0 <= record.first_port <= record.last_port <= 65535:
        raise InvalidRecord(
            f"{record.attachment_id}: ports {record.first_port} to {record.last_port} are no block"
        )
    _check_address(record, "ipv4", IPv4Address)
    _check_address(record, "ipv6", IPv6Address)
    if record.final and not record.ended_ns:
        raise InvalidRecord(f"{record.attachment_id}: final without ended_ns")


def _check_address(record: Record, field: str, kind: type[IPv4Address | IPv6Address]) -> None:
    """Take an address only in the one way of writing it: people search for it as text.

    A zone (RFC 4007: `fe80::1%eth0`) is none of it, and Python takes any text for one.
    """
    text = getattr(record, field)
    try:
        known = not text or ("%" not in text and str(kind(text)) == text)
    except ValueError:
        known = False
    if not known:
        raise InvalidRecord(
            f"{record.attachment_id}: {field}: {text[:MAX_TEXT]!r} is not an address as {field} "
            "ones are written"
        )


def check_text(field: str, text: str) -> None:
    """Raise InvalidRecord if a string is too long or would garble a terminal."""
    if len(text) > MAX_TEXT:
        raise InvalidRecord(f"{field}: {len(text)} characters; at most {MAX_TEXT} are allowed")
    if not text.isprintable():
        raise InvalidRecord(f"{field}: {text!r} has control characters")


def filter_to_wire(wanted: JobFilter) -> query_pb2.Filter:
    """Copy a filter into a message."""
    state = next(wire for wire, running in STATES.items() if running is wanted.running)
    return query_pb2.Filter(
        owner=wanted.owner,
        accounting_group=wanted.accounting_group,
        worker=wanted.worker,
        state=state,
        since_ns=wanted.since_ns,
        until_ns=wanted.until_ns,
    )


def filter_from_wire(message: query_pb2.Filter) -> JobFilter:
    """Copy a message into a filter; raises InvalidRecord."""
    for field in ("owner", "accounting_group", "worker"):
        check_text(f"filter.{field}", getattr(message, field))
    if message.state not in STATES:
        raise InvalidRecord(f"filter.state: {message.state} is not a state")
    if max(message.since_ns, message.until_ns) > LAST_TIME_NS:
        raise InvalidRecord(f"filter: a time is above {LAST_TIME_NS} ns, which is the year 2262")
    if message.until_ns and message.since_ns >= message.until_ns:
        raise InvalidRecord("filter: since_ns is not before until_ns")
    return JobFilter(
        owner=message.owner,
        accounting_group=message.accounting_group,
        worker=message.worker,
        running=STATES[message.state],
        since_ns=message.since_ns,
        until_ns=message.until_ns,
    )


def groupings_to_wire(by: Sequence[GroupBy]) -> list[query_pb2.GroupBy.ValueType]:
    """Name groupings as the protocol does."""
    wire = {grouping: number for number, grouping in GROUPINGS.items()}
    return [wire[grouping] for grouping in by]


def groupings_from_wire(numbers: Sequence[int]) -> list[GroupBy]:
    """Name groupings as the house does; raises InvalidRecord for unknown or repeated ones."""
    if list(numbers) == [query_pb2.GROUP_BY_UNSPECIFIED]:
        return []
    unknown = [number for number in numbers if number not in GROUPINGS]
    if unknown or len(set(numbers)) != len(numbers):
        raise InvalidRecord(f"by: {list(numbers)[:16]} is not a list of different groupings")
    return [GROUPINGS[query_pb2.GroupBy.ValueType(number)] for number in numbers]


def run_to_wire(run: JobRun) -> query_pb2.JobRun:
    """Copy a job's run and its samples into a message."""
    samples = [
        query_pb2.Sample(
            sampled_ns=sample.sampled_ns,
            sent=_count_to_wire(sample.sent),
            received=_count_to_wire(sample.received),
        )
        for sample in run.samples
    ]
    return query_pb2.JobRun(record=record_to_wire(run.record), samples=samples)


def run_from_wire(message: query_pb2.JobRun) -> JobRun:
    """Copy a message into a job's run; raises InvalidRecord."""
    samples = tuple(
        Sample(sample.sampled_ns, _count_from_wire(sample.sent), _count_from_wire(sample.received))
        for sample in message.samples
    )
    return JobRun(record_from_wire(message.record), samples)


def totals_to_wire(totals: Totals) -> query_pb2.GetTotalsResponse:
    """Copy totals into a message.

    A sum over many workers may pass 2^64 only if a worker reports nonsense: it is shown as the
    largest number there is instead of making everybody's totals unreadable.
    """
    rows = [
        query_pb2.Total(
            key=row.key,
            jobs=row.jobs,
            sent=_count_to_wire(_capped(row.sent)),
            received=_count_to_wire(_capped(row.received)),
            cost=min(row.cost, MAX_WIRE),
        )
        for row in totals.rows
    ]
    return query_pb2.GetTotalsResponse(
        since_ns=totals.since_ns, until_ns=totals.until_ns, totals=rows
    )


def totals_from_wire(message: query_pb2.GetTotalsResponse) -> Totals:
    """Copy a message into totals."""
    rows = tuple(
        Total(
            tuple(row.key), row.jobs, _count_from_wire(row.sent), _count_from_wire(row.received),
            row.cost,
        )
        for row in message.totals
    )  # fmt: skip
    return Totals(message.since_ns, message.until_ns, rows)


def _usage_to_wire(usage: Usage) -> record_pb2.Usage:
    return record_pb2.Usage(
        classes=[
            record_pb2.ClassUsage(
                traffic_class=entry.traffic_class,
                sent=_count_to_wire(entry.sent),
                received=_count_to_wire(entry.received),
                cost=entry.cost,
            )
            for entry in usage.classes
        ],
        drops=[
            record_pb2.Drop(
                reason=drop.reason,
                count=_count_to_wire(drop.count),
                classes=[record_pb2.Refused(**each._asdict()) for each in drop.classes],
            )
            for drop in usage.drops
        ],
        non_ip_sent=_count_to_wire(usage.non_ip_sent),
        non_ip_received=_count_to_wire(usage.non_ip_received),
    )


def _usage_from_wire(message: record_pb2.Usage) -> Usage:
    return Usage(
        classes=tuple(
            ClassUsage(
                c.traffic_class, _count_from_wire(c.sent), _count_from_wire(c.received), c.cost
            )
            for c in message.classes
        ),
        drops=tuple(
            Drop(
                d.reason,
                _count_from_wire(d.count),
                tuple(Refused(each.traffic_class, each.packets) for each in d.classes),
            )
            for d in message.drops
        ),
        non_ip_sent=_count_from_wire(message.non_ip_sent),
        non_ip_received=_count_from_wire(message.non_ip_received),
    )


def _count_to_wire(count: Count) -> record_pb2.Count:
    return record_pb2.Count(packets=count.packets, bytes=count.bytes)


def _count_from_wire(message: record_pb2.Count) -> Count:
    return Count(message.packets, message.bytes)


def _capped(count: Count) -> Count:
    return Count(min(count.packets, MAX_WIRE), min(count.bytes, MAX_WIRE))


def _counts(usage: Usage) -> Iterable[Count]:
    for entry in usage.classes:
        yield from (entry.sent, entry.received)
    yield from (drop.count for drop in usage.drops)
    yield from (usage.non_ip_sent, usage.non_ip_received)


def _choice(field: str, kind: type[Choice], text: str) -> Choice:
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(kind)
        raise InvalidRecord(f"{field}: {text[:MAX_TEXT]!r} is none of {known}") from None


def _check_size(field: str, values: Sequence[object], most: int) -> None:
    if len(values) > most:
        raise InvalidRecord(f"{field}: {len(values)} entries; at most {most} are allowed")


def _check_unique(record: Record, what: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise InvalidRecord(f"{record.attachment_id}: a {what} stands twice in {names}")
