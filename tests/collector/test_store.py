"""The store only moves forward, and its sums are exact."""

from __future__ import annotations

import random
import sqlite3
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sql
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lark_agent.accounting.questions import HOUR_NS, GroupBy, JobFilter, hour_shares
from lark_agent.collector.answers import MAX_SAMPLES, Answers
from lark_agent.collector.schema import HOURS, RECORDS, SAMPLES, StoreFullError, open_engine
from lark_agent.errors import ConfigurationError, StoreError
from lark_agent.model import Change, ClassUsage, Count, Peers, Record, Usage
from tests.collector.world import HOUR, T0, finished, later, open_store, record, usage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lark_agent.collector.store import Store

EVERYTHING = JobFilter()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[sql.Engine, Store, Answers]]:
    engine, store, answers = open_store(tmp_path / "usage.sqlite")
    yield engine, store, answers
    engine.dispose()


@pytest.fixture
def store(opened: tuple[sql.Engine, Store, Answers]) -> Store:
    return opened[1]


@pytest.fixture
def answers(opened: tuple[sql.Engine, Store, Answers]) -> Answers:
    return opened[2]


def put(store: Store, *records: Record) -> None:
    (mark,) = store.apply([records])
    assert isinstance(mark, int)


def kept(answers: Answers) -> list[Record]:
    return list(answers.list_jobs(EVERYTHING, None, 1000, ""))


def contents(engine: sql.Engine) -> list[Any]:
    with engine.connect() as connection:
        return [
            sorted(map(tuple, connection.execute(sql.select(table))))
            for table in (RECORDS, SAMPLES, HOURS)
        ]


def test_a_record_comes_back_as_it_was(store: Store, answers: Answers) -> None:
    """Every field of a record survives the store."""
    first = replace(record(), ipv4="100.98.0.3", ipv6="fd6c:6172:6b00::3")
    last = finished(later(first, {"campus": 500, "other": 7}))
    put(store, first, last)
    assert kept(answers) == [last]


def test_repeated_and_reordered_records_change_nothing(
    opened: tuple[sql.Engine, Store, Answers],
) -> None:
    """A batch sent again, or an older record after a newer one, leaves every table as it was."""
    engine, store, _ = opened
    first = record()
    second = later(first, {"other": 100})
    put(store, first, second)
    before = contents(engine)
    put(store, first, second)
    put(store, second)
    put(store, first)
    assert contents(engine) == before


def test_any_order_of_delivery_ends_with_the_same_record_and_sums(tmp_path: Path) -> None:
    """However batches are split, repeated and shuffled, the record and the total are the latest."""
    history = [record()]
    for step in range(1, 12):
        history.append(
            later(history[-1], {"other": 100 * step, "campus": step}, after_ns=HOUR // 3)
        )
    history.append(finished(history[-1]))
    order = random.Random(5)
    for attempt in range(10):
        engine, store, answers = open_store(tmp_path / f"{attempt}.sqlite")
        deliveries = [*history, *order.choices(history, k=10)]
        order.shuffle(deliveries)
        while deliveries:
            size = order.randint(1, 5)
            store.apply([tuple(deliveries[:size])])
            deliveries = deliveries[size:]
        assert kept(answers) == [history[-1]]
        (row,) = answers.totals([], EVERYTHING, None).rows
        assert (row.jobs, row.sent, row.received) == (
            1,
            history[-1].usage.sent,
            history[-1].usage.received,
        )
        engine.dispose()


def test_a_final_record_never_changes(store: Store, answers: Answers) -> None:
    """After the final record, a higher sequence with more bytes changes neither it nor the sums."""
    last = finished(later(record(), {"other": 100}))
    put(store, last)
    put(store, replace(last, sequence=last.sequence + 5, usage=usage({"other": 10**6})))
    assert kept(answers) == [last]
    assert answers.totals([], EVERYTHING, None).rows[0].sent.bytes == 100


def test_who_a_job_is_never_changes(store: Store, answers: Answers) -> None:
    """A later record with another owner adds its bytes to the owner that the first one named."""
    first = record()
    put(store, first)
    stolen = later(first, {"other": 100})
    put(store, replace(stolen, job=replace(first.job, owner="mallory")))
    assert kept(answers)[0].job.owner == "alice"
    assert answers.totals([GroupBy.OWNER], EVERYTHING, None).rows[0].key == ("alice",)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda r: replace(r, worker="w2"), "belongs to w1"),
        (lambda r: replace(r, usage=usage({"other": 99, "campus": 50})), "'other' fell"),
        (lambda r: replace(r, usage=usage({"other": 200})), "'campus' vanished"),
    ],
)
def test_an_impossible_batch_costs_only_itself(
    opened: tuple[sql.Engine, Store, Answers], spoil: Any, says: str
) -> None:
    """A batch that contradicts the store is refused whole; others in its transaction are kept."""
    engine, store, answers = opened
    first = later(record(1), {"other": 100, "campus": 50})
    put(store, first)
    before = contents(engine)
    bad = (record(2), spoil(later(first, {"other": 200, "campus": 60})))
    verdict, nothing = store.apply([bad, ()])
    assert says in str(verdict)
    assert nothing == 0
    assert contents(engine) == before
    good = (record(3),)
    verdict, mark = store.apply([bad, good])
    assert says in str(verdict)
    assert mark == 2, "a refused batch moved the mark"
    assert store.mark("w1").number == 2
    assert [r.slot for r in kept(answers)] == [3, 1]


def test_contradictions_within_one_batch_are_found(store: Store) -> None:
    """Two records of one batch are held to the same rules as two batches."""
    first = later(record(), {"other": 100})
    (verdict,) = store.apply([(first, later(first, {"other": 50}))])
    assert "fell" in str(verdict)


def test_filters_select_jobs(store: Store, answers: Answers) -> None:
    """Owner, group, worker, state and times each select what they say, and combine."""
    ended = finished(later(record(1, worker="w1"), {"other": 1}))
    running = replace(later(record(2, owner="bob", worker="w2"), {}), started_ns=T0 + HOUR)
    grouped = record(3)
    grouped = replace(grouped, job=replace(grouped.job, accounting_group="chem"))
    put(store, ended)
    put(store, replace(running, worker="w2"))
    put(store, grouped)

    def slots(**wanted: Any) -> list[int]:
        return [r.slot for r in answers.list_jobs(JobFilter(**wanted), None, 10, "")]

    assert slots() == [3, 2, 1]
    assert slots(owner="bob") == [2]
    assert slots(accounting_group="chem") == [3]
    assert slots(worker="w1") == [3, 1]
    assert slots(running=True) == [3, 2]
    assert slots(running=False) == [1]
    assert slots(until_ns=T0 + HOUR) == [3, 1]
    assert slots(until_ns=T0 + HOUR + 1) == [3, 2, 1]
    assert slots(since_ns=ended.ended_ns) == [3, 2, 1]
    assert slots(since_ns=ended.ended_ns + 1) == [3, 2]
    assert slots(owner="alice", running=False) == [1]
    assert slots(owner="bob", running=False) == []
    assert [r.slot for r in answers.list_jobs(EVERYTHING, "bob", 10, "")] == [2]
    assert list(answers.list_jobs(JobFilter(owner="alice"), "bob", 10, "")) == []


def test_pages_meet_without_gap_or_overlap(store: Store, answers: Answers) -> None:
    """Page by page one sees every job once, newest first."""
    put(store, *(record(n) for n in range(25)))
    seen: list[int] = []
    after = ""
    while page := answers.list_jobs(EVERYTHING, None, 7, after):
        seen += [r.slot for r in page]
        after = page[-1].attachment_id
    assert seen == list(range(24, -1, -1))


def test_a_job_is_found_by_each_of_its_names(store: Store, answers: Answers) -> None:
    """Job id (all runs, newest first), attachment id, and a prefix that fits one visible job."""
    one, two = record(1, job="7.0"), record(2, job="7.0")
    other = replace(record(3, owner="bob"), attachment_id="f" * 8 + one.attachment_id[8:])
    put(store, one, two, other)

    def found(text: str, owner: str | None = None) -> list[int]:
        return [run.record.slot for run in answers.find_job(text, owner)]

    assert found("7.0") == [2, 1]
    assert found(one.attachment_id) == [1]
    assert found("ffffffff") == [3]
    assert found("fffffff") == []
    assert found(one.attachment_id[:8]) == [], "two jobs start so"
    assert found("ffffffff", "alice") == []
    assert found("7.0", "bob") == []
    assert found("%") == found("7.%") == found("' OR 1=1 --") == []


def test_usage_over_time_is_thinned_but_keeps_its_end(store: Store, answers: Answers) -> None:
    """Few samples are all answered; of many, evenly spaced ones with the latest."""
    history = [record()]
    for step in range(1, 2 * MAX_SAMPLES + 7):
        history.append(later(history[-1], {"other": step}))
    put(store, *history[:5])
    (run,) = answers.find_job("1.0", None)
    assert [s.sent.bytes for s in run.samples] == [0, 1, 2, 3, 4]
    put(store, *history[5:])
    (run,) = answers.find_job("1.0", None)
    times = [s.sampled_ns for s in run.samples]
    assert MAX_SAMPLES / 2 < len(times) <= MAX_SAMPLES
    assert len({b - a for a, b in pairwise(times)}) == 1
    assert run.samples[-1].sent == history[-1].usage.sent


steps = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from(["campus", "lhcone", "other"]),
        st.integers(0, 10**6),
        st.integers(0, 40),
    ),
    max_size=40,
)


def brute_force(
    history: list[Record], by: list[GroupBy], wanted: JobFilter
) -> dict[tuple[str, ...], tuple[int, Count, Count]]:
    """Sum the shares of every record by the definition, without a database."""
    low = wanted.since_ns // HOUR_NS * HOUR_NS
    high = -(-wanted.until_ns // HOUR_NS) * HOUR_NS or 2**63
    latest: dict[str, Record] = {}
    jobs = defaultdict(set)
    sums: dict[tuple[str, ...], tuple[Count, Count]] = defaultdict(lambda: (Count(), Count()))
    for r in history:
        shares = hour_shares(latest.get(r.attachment_id), r)
        latest[r.attachment_id] = r
        if wanted.owner not in {"", r.job.owner} or wanted.worker not in {"", r.worker}:
            continue
        for share in shares:
            if not low <= share.hour_ns < high:
                continue
            if GroupBy.CLASS in by and not share.traffic_class:
                continue
            day = datetime.fromtimestamp(share.hour_ns / 1e9, UTC).date().isoformat()
            names = {
                GroupBy.OWNER: r.job.owner,
                GroupBy.ACCOUNTING_GROUP: r.job.accounting_group,
                GroupBy.WORKER: r.worker,
                GroupBy.CLASS: share.traffic_class,
                GroupBy.DAY: day,
            }
            key = tuple(names[grouping] for grouping in by)
            jobs[key].add(r.attachment_id)
            sent, received = sums[key]
            sums[key] = (sent + share.sent, received + share.received)
    return {key: (len(jobs[key]), *sums[key]) for key in sums}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=steps,
    by=st.lists(st.sampled_from(GroupBy), unique=True),
    wanted=st.builds(
        JobFilter,
        owner=st.sampled_from(["", "alice"]),
        worker=st.sampled_from(["", "w1"]),
        since_ns=st.just(0) | st.integers(T0, T0 + 60 * HOUR),
        until_ns=st.just(0) | st.integers(T0 + 61 * HOUR, T0 + 99 * HOUR),
    ),
)
def test_totals_equal_a_brute_force_sum(
    tmp_path: Path, steps: list[tuple[int, str, int, int]], by: list[GroupBy], wanted: JobFilter
) -> None:
    """By any combination of groupings and filters, totals and job counts are exact."""
    latest = {n: record(n, owner=["alice", "bob"][n % 2], worker=f"w{n % 3}") for n in range(6)}
    history = list(latest.values())
    for job, name, size, hours in steps:
        sizes = {c.traffic_class: c.sent.bytes for c in latest[job].usage.classes}
        sizes[name] = sizes.get(name, 0) + size
        latest[job] = later(latest[job], sizes, after_ns=hours * HOUR)
        history.append(latest[job])
    path = tmp_path / "totals.sqlite"
    path.unlink(missing_ok=True)
    engine, store, answers = open_store(path)
    for start in range(0, len(history), 5):
        put(store, *history[start : start + 5])
    totals = answers.totals(by, wanted, None)
    engine.dispose()
    assert {row.key: (row.jobs, row.sent, row.received) for row in totals.rows} == brute_force(
        history, by, wanted
    )
    moved = [row.sent.bytes + row.received.bytes for row in totals.rows]
    assert moved == sorted(moved, reverse=True)


def test_totals_name_the_whole_hours_they_cover(store: Store, answers: Answers) -> None:
    """Times are widened to whole hours; open ends are the first hour booked and the end of this."""
    put(store, later(record(), {"other": 100}, after_ns=5 * HOUR))
    open_ended = answers.totals([], EVERYTHING, None)
    assert (open_ended.since_ns, open_ended.until_ns) == (T0 + 5 * HOUR, T0 + 101 * HOUR)
    asked = JobFilter(since_ns=T0 + 5 * HOUR + 1, until_ns=T0 + 5 * HOUR + 2)
    widened = answers.totals([], asked, None)
    assert (widened.since_ns, widened.until_ns) == (T0 + 5 * HOUR, T0 + 6 * HOUR)
    assert widened.rows[0].sent.bytes == 100
    assert answers.totals([], JobFilter(until_ns=T0 + 5 * HOUR), None).rows == ()
    assert answers.totals([], EVERYTHING, "bob").rows == ()


def test_sums_beyond_64_bits_are_exact(store: Store, answers: Answers) -> None:
    """Workers that report the largest numbers there are do not break anybody's totals."""
    huge = Usage((replace(usage({"x": 0}).classes[0], sent=Count(0, 2**63 - 1)),))
    put(store, *(replace(record(n), usage=huge) for n in range(5)))
    assert answers.totals([], EVERYTHING, None).rows[0].sent.bytes == 5 * (2**63 - 1)


def test_a_store_survives_closing(tmp_path: Path) -> None:
    """What was applied is there when the file is opened again."""
    engine, store, _ = open_store(tmp_path / "u.sqlite")
    put(store, later(record(), {"other": 5}))
    engine.dispose()
    engine, _, answers = open_store(tmp_path / "u.sqlite")
    assert kept(answers)[0].usage.sent.bytes == 5
    engine.dispose()


def test_a_new_store_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """Who moved what is nobody else's business: file and log are 0600."""
    engine, store, _ = open_store(tmp_path / "u.sqlite")
    put(store, record())
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    engine.dispose()
    assert set(modes.values()) == {0o600}
    assert "u.sqlite-wal" in modes


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_an_older_schema_is_converted(tmp_path: Path, version: int) -> None:
    """A store of an older version keeps its records and totals, and takes new ones."""
    engine, store, _ = open_store(tmp_path / "u.sqlite")
    old = later(record(1), {"campus": 500})
    change = Change(T0, "quota cloud", "cut-class", "2 TB")
    new = replace(
        record(2),
        ipv4="198.18.7.3",
        ipv6="2001:db8:7::3",
        network="lab",
        changes=(change,),
        peers=Peers.OWNER,
        transfer=Usage((ClassUsage("campus", Count(3, 4000), Count(2, 80)),)),
    )
    put(store, old)
    engine.dispose()
    with sqlite3.connect(tmp_path / "u.sqlite") as raw:
        raw.execute("ALTER TABLE records DROP COLUMN transfer")
        if version < 4:
            raw.execute("DROP TABLE workers")
            raw.execute("DELETE FROM meta WHERE name = 'identity'")
            raw.execute("ALTER TABLE records DROP COLUMN plan")
        columns = ["records.network", "records.cost", "records.changes", "records.peers",
                   "hours.cost"] if version < 3 else []  # fmt: skip
        columns += ["records.ipv4", "records.ipv6"] if version < 2 else []
        for table, column in (name.split(".") for name in columns):
            raw.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        if version < 3:
            raw.execute("DROP TABLE pools")
            raw.execute("DROP TABLE leases")
        raw.execute(f"UPDATE meta SET value = {version} WHERE name = 'schema'")
    raw.close()
    marks = []
    for _ in range(2):  # what is converted is not converted again
        engine, store, answers = open_store(tmp_path / "u.sqlite")
        put(store, new)
        assert sorted(kept(answers), key=lambda r: r.attachment_id) == [old, new]
        assert answers.totals([], EVERYTHING, None).rows[0].sent.bytes == 500
        marks.append(store.mark("w1"))
        engine.dispose()
    known = int(version == 4)  # had taken one batch by then
    assert [mark.number for mark in marks] == [known + 1, known + 2]
    assert marks[0].store == marks[1].store > 0


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """A store that a newer version wrote is not touched; the text names both versions."""
    engine, _, _ = open_store(tmp_path / "u.sqlite")
    engine.dispose()
    with sqlite3.connect(tmp_path / "u.sqlite") as raw:
        raw.execute("UPDATE meta SET value = 99 WHERE name = 'schema'")
    raw.close()
    with pytest.raises(StoreError, match=r"schema 99; this lark-collector knows 5"):
        open_engine(f"sqlite:///{tmp_path}/u.sqlite")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """The text names the file and what to do."""
    (tmp_path / "u.sqlite").write_text("this is a diary, not a database\n" * 100)
    with pytest.raises(StoreError, match=r"u\.sqlite.*restore"):
        open_engine(f"sqlite:///{tmp_path}/u.sqlite")


@pytest.mark.parametrize(
    "url", ["nonsense", "sqlite://", "sqlite:///:memory:", "postgresql://u:secret@h/db"]
)
def test_a_url_that_cannot_be_a_store_is_refused(url: str) -> None:
    """Only a SQLite file is a store so far; a password in the URL is not repeated."""
    with pytest.raises(ConfigurationError) as caught:
        open_engine(url)
    assert "secret" not in str(caught.value)


def test_a_full_store_says_so_and_keeps_what_it_has(
    opened: tuple[sql.Engine, Store, Answers],
) -> None:
    """With no page left the whole transaction is refused as full, and later ones work again."""
    engine, store, answers = opened
    put(store, record(1))
    raw = engine.raw_connection()
    pages = raw.cursor().execute("PRAGMA page_count").fetchone()[0]
    raw.cursor().execute(f"PRAGMA max_page_count = {pages + 2}")
    raw.close()
    with pytest.raises(StoreFullError, match="make room"):
        store.apply([tuple(record(n) for n in range(2, 1000))])
    assert [r.slot for r in kept(answers)] == [1]
    raw = engine.raw_connection()
    raw.cursor().execute("PRAGMA max_page_count = 1000000")
    raw.close()
    put(store, *(record(n) for n in range(2, 1000)))
    assert len(answers.list_jobs(EVERYTHING, None, 2000, "")) == 999


def test_a_store_held_by_another_process_is_an_error_that_passes(
    opened: tuple[sql.Engine, Store, Answers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody holds the write lock, writing fails with a remedy; then it works again."""
    engine, store, _ = opened
    raw = engine.raw_connection()
    raw.cursor().execute("PRAGMA busy_timeout = 50")
    raw.close()
    holder = sqlite3.connect(tmp_path / "usage.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another process"):
        store.apply([(record(),)])
    holder.execute("ROLLBACK")
    holder.close()
    put(store, record())
