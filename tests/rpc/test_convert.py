"""What crosses the wire arrives unchanged, and nothing else gets in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lark_agent.accounting.questions import GroupBy, JobFilter, JobRun, Sample, Total, Totals
from lark_agent.accounting.quotas import PERIOD
from lark_agent.model import (
    ClassUsage,
    Connectivity,
    Count,
    Drop,
    ExitReason,
    Job,
    Record,
    Refused,
    Scheduler,
    Usage,
    new_attachment_id,
)
from lark_agent.rpc import convert
from lark_agent.rpc.convert import MAX_INTEGER, InvalidRecord
from lark_agent.rpc.lark.v1 import query_pb2, record_pb2

PRINTABLE = st.characters(codec="utf-8").filter(str.isprintable)
TEXTS = st.text(PRINTABLE, max_size=12) | st.just("ß" * 256)
INTEGERS = st.integers(0, MAX_INTEGER)
COUNTS = st.builds(Count, INTEGERS, INTEGERS)
REFUSED = st.lists(st.builds(Refused, TEXTS, st.integers(0, 2**32 - 1)), max_size=3).map(tuple)
USAGES = st.builds(
    Usage,
    st.lists(
        st.builds(ClassUsage, TEXTS, COUNTS, COUNTS),
        max_size=4,
        unique_by=lambda c: c.traffic_class,
    ).map(tuple),
    st.lists(st.builds(Drop, TEXTS, COUNTS, REFUSED), max_size=4, unique_by=lambda d: d.reason).map(
        tuple
    ),
    COUNTS,
    COUNTS,
)
IDS = st.builds(new_attachment_id, st.integers(0, 2**62), st.binary(min_size=10, max_size=10))
JOBS = st.builds(
    Job, st.sampled_from(Scheduler), TEXTS, TEXTS, st.integers(0, 2**32 - 1), TEXTS, st.booleans()
)
PORTS = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(sorted)


@st.composite
def records(draw: st.DrawFn) -> Record:
    first, last = draw(PORTS)
    record = draw(
        st.builds(
            Record,
            attachment_id=IDS,
            worker=TEXTS,
            slot=st.integers(0, 2**32 - 1),
            job=JOBS,
            profile=TEXTS,
            connectivity=st.sampled_from(Connectivity),
            started_ns=INTEGERS,
            sequence=INTEGERS,
            sampled_ns=INTEGERS,
            ended_ns=INTEGERS,
            exit_reason=st.none() | st.sampled_from(ExitReason),
            exit_status=st.integers(0, 2**32 - 1),
            first_port=st.just(first),
            last_port=st.just(last),
            ipv4=st.just("") | st.ip_addresses(v=4).map(str),
            ipv6=st.just("") | st.ip_addresses(v=6).map(str),
            usage=USAGES,
        )
    )
    return replace(record, final=draw(st.booleans()) and record.ended_ns > 0)


def wire() -> record_pb2.Record:
    """Make a message that is accepted; each test below spoils one thing."""
    return convert.record_to_wire(
        Record(
            attachment_id=new_attachment_id(1, bytes(10)),
            worker="w1",
            slot=3,
            job=Job(Scheduler.HTCONDOR, "1.0", "alice", 1001),
            profile="nat",
            connectivity=Connectivity.NAT,
            started_ns=1,
            usage=Usage((ClassUsage("campus", Count(1, 40), Count(2, 80)),)),
        )
    )


@given(records())
def test_a_record_survives_the_wire(record: Record) -> None:
    """Every field of any valid record arrives as it was sent."""
    sent = convert.record_to_wire(record).SerializeToString()
    assert convert.record_from_wire(record_pb2.Record.FromString(sent)) == record


@given(st.binary(max_size=2000))
def test_noise_is_refused_or_valid(noise: bytes) -> None:
    """Whatever parses as a message is either a record within the limits or InvalidRecord."""
    try:
        message = record_pb2.Record.FromString(noise)
    except Exception:  # noqa: BLE001  protobuf's own refusal, whose class depends on its backend
        return
    with pytest.raises(InvalidRecord):  # noise never holds a UUIDv7
        convert.record_from_wire(message)


def test_the_unspoiled_message_is_valid() -> None:
    """So what the next test refuses is refused for what it spoils."""
    assert convert.record_from_wire(wire()).job.owner == "alice"


def test_as_many_classes_and_reasons_as_allowed_are_taken() -> None:
    """Sixteen classes and 64 reasons arrive, each with its name."""
    usage = Usage(
        tuple(ClassUsage(f"c{n}", Count(n, n), Count()) for n in range(16)),
        tuple(Drop(f"r{n}", Count(1, n)) for n in range(64)),
    )
    full = replace(convert.record_from_wire(wire()), usage=usage)
    assert convert.record_from_wire(convert.record_to_wire(full)) == full


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda m: setattr(m, "attachment_id", ""), "UUIDv7"),
        (lambda m: setattr(m, "attachment_id", "0" * 36), "UUIDv7"),
        (lambda m: setattr(m, "attachment_id", m.attachment_id.upper() + "A"), "UUIDv7"),
        (lambda m: setattr(m.job, "owner", "x" * 257), "job.owner"),
        (lambda m: setattr(m.job, "job_id", "1.0\n2.0"), "control"),
        (lambda m: setattr(m, "profile", "\x1b[2J"), "control"),
        (lambda m: setattr(m.job, "accounting_group", "a\0"), "control"),
        (lambda m: setattr(m.job, "scheduler", "cron"), "htcondor"),
        (lambda m: setattr(m, "connectivity", ""), "nat, none"),
        (lambda m: setattr(m, "exit_reason", "bored"), "exited"),
        (lambda m: setattr(m, "sequence", 2**63), "sequence"),
        (lambda m: setattr(m, "started_ns", 2**64 - 1), "time"),
        (lambda m: setattr(m.usage.non_ip_sent, "bytes", 2**63), "count"),
        (lambda m: setattr(m.usage.classes[0].sent, "bytes", 2**63), "count"),
        (lambda m: setattr(m, "last_port", 65536), "ports"),
        (lambda m: setattr(m, "first_port", 9), "ports"),
        (lambda m: setattr(m, "ipv4", "198.18.7.256"), "ipv4: '198.18.7.256' is not"),
        (lambda m: setattr(m, "ipv4", "2001:db8::1"), "ipv4"),
        (lambda m: setattr(m, "ipv6", "198.18.7.2"), "ipv6"),
        (lambda m: setattr(m, "ipv6", "2001:DB8:0::1"), "ipv6"),
        (lambda m: setattr(m, "ipv6", "x" * 10**6), "ipv6: '" + "x" * 256 + "' is"),
        (lambda m: setattr(m, "final", True), "final"),
        (lambda m: m.usage.classes.append(m.usage.classes[0]), "twice"),
        (lambda m: m.usage.classes.extend([m.usage.classes[0]] * 16), "classes: 17"),
        (lambda m: m.usage.drops.extend([record_pb2.Drop()] * 65), "drops: 65"),
        (
            lambda m: m.usage.drops.add().classes.extend([record_pb2.Refused()] * 17),
            "drops.classes: 17",
        ),
    ],
)
def test_a_broken_rule_is_named(spoil: object, says: str) -> None:
    """A record that breaks one rule is refused with a text about that rule."""
    message = wire()
    assert callable(spoil)
    spoil(message)
    with pytest.raises(InvalidRecord, match=says):
        convert.record_from_wire(message)


@given(
    st.builds(
        JobFilter,
        TEXTS,
        TEXTS,
        TEXTS,
        st.none() | st.booleans(),
        st.integers(0, 2**62),
        st.integers(2**62 + 1, convert.LAST_TIME_NS) | st.just(0),
    )
)
def test_a_filter_survives_the_wire(wanted: JobFilter) -> None:
    """Every filter with its times in order arrives as it was sent."""
    assert convert.filter_from_wire(convert.filter_to_wire(wanted)) == wanted


@pytest.mark.parametrize(
    "message",
    [
        query_pb2.Filter(owner="x" * 257),
        query_pb2.Filter(since_ns=2**63),
        query_pb2.Filter(since_ns=2, until_ns=2),
    ],
)
def test_a_filter_that_means_nothing_is_refused(message: query_pb2.Filter) -> None:
    """Long names, times beyond 2262 and empty intervals are the caller's mistakes."""
    with pytest.raises(InvalidRecord):
        convert.filter_from_wire(message)


@given(st.lists(st.sampled_from(GroupBy), unique=True))
def test_groupings_survive_the_wire(by: list[GroupBy]) -> None:
    """The order asked for is the order that arrives."""
    assert convert.groupings_from_wire(convert.groupings_to_wire(by)) == by


@pytest.mark.parametrize("numbers", [[1, 1], [0, 1], [99], [-1]])
def test_groupings_that_mean_nothing_are_refused(numbers: list[int]) -> None:
    """Repeated, unknown and half unspecified groupings are the caller's mistakes."""
    with pytest.raises(InvalidRecord, match="by"):
        convert.groupings_from_wire(numbers)


@settings(max_examples=30)
@given(records(), st.lists(st.builds(Sample, INTEGERS, COUNTS, COUNTS), max_size=5).map(tuple))
def test_a_run_survives_the_wire(record: Record, samples: tuple[Sample, ...]) -> None:
    """A job's run arrives with all its samples in order."""
    run = JobRun(record, samples)
    assert convert.run_from_wire(convert.run_to_wire(run)) == run


def test_totals_survive_the_wire_and_are_capped() -> None:
    """Totals arrive as sent; a sum that no 64-bit number holds becomes the largest there is."""
    row = Total(("alice", "w1"), 3, Count(1, 2), Count(3, 2**64 - 1))
    totals = Totals(1, 2, (row,))
    assert convert.totals_from_wire(convert.totals_to_wire(totals)) == totals
    absurd = replace(totals, rows=(replace(row, received=Count(3, 2**70)),))
    assert convert.totals_from_wire(convert.totals_to_wire(absurd)) == totals


@pytest.mark.parametrize("zone", ["eth0", "\x1b[2J", "x" * 300])
def test_an_address_has_no_zone(zone: str) -> None:
    """What follows a per cent sign is any text to Python, and would be stored as the address."""
    message = wire()
    message.ipv6 = "fe80::1"
    assert convert.record_from_wire(message).ipv6 == "fe80::1"
    message.ipv6 += f"%{zone}"
    with pytest.raises(InvalidRecord, match="ipv6"):
        convert.record_from_wire(message)


@pytest.mark.parametrize(
    ("period", "known"),
    [
        ("2026-11", True), ("2026-11-22", True), ("2026-99", False), ("2026-11-32", False),
        ("\u0662\u0660\u0662\u0666-01", False),
    ],
)  # fmt: skip
def test_a_period_is_a_month_or_a_day(period: str, *, known: bool) -> None:
    """Digits of another script, or a month that no calendar has, open no pool of their own."""
    assert bool(PERIOD.fullmatch(period)) is known
