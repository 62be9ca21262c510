"""What the journal promises: the latest state of each attachment, durable; finals are final."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lark_agent.accounting.answers import Answers
from lark_agent.accounting.journal import Journal, Launch, Process
from lark_agent.accounting.marks import Mark
from lark_agent.accounting.questions import HOUR_NS, GroupBy, JobFilter
from lark_agent.errors import StoreError
from lark_agent.model import (
    ClassUsage,
    Connectivity,
    Count,
    ExitReason,
    Job,
    NetworkPlan,
    Record,
    Scheduler,
    Usage,
    new_attachment_id,
)

if TYPE_CHECKING:
    from pathlib import Path

PLAN = NetworkPlan("nat", Connectivity.NAT)
HERE = Launch(members=(Process(4711, 12345, "boot-1"),))
MARK = Mark(77, 1)
START = 1_700_000_000 * 10**9


def record(owner: str = "alice", at: int = START, job_id: str = "1.0", group: str = "g") -> Record:
    job = Job(Scheduler.HTCONDOR, job_id, owner, 1001, group)
    key = new_attachment_id(at, owner.encode().ljust(10, b"\0"))
    return Record(key, "worker1", 3, job, "nat", Connectivity.NAT, at, sampled_ns=at)


def moved(before: Record, sent: int, received: int, seconds: float, name: str = "other") -> Record:
    usage = Usage((ClassUsage(name, Count(1, sent), Count(2, received)),))
    return before.sampled(usage, before.started_ns + int(seconds * 1e9))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


def test_what_was_saved_is_there_after_the_process_died(path: Path) -> None:
    """Records, and what finds their processes again, survive without an orderly close."""
    journal = Journal(path)
    first = record()
    journal.begin(first, HERE, PLAN)
    second = moved(first, 10, 20, 1)
    journal.save([second])
    again = Journal(path)
    (living,) = again.living()
    assert living.record == second
    assert living.launch == HERE
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_was_decided_for_a_launch_outlives_its_end(path: Path) -> None:
    """The latest plan of the same key, of this boot only; a launch without a key has none."""
    journal = Journal(path)
    first = record()
    process = HERE.members[0]
    journal.begin(first, Launch("condor_starter 7 9", None, (process,)), PLAN)
    journal.save([replace(moved(first, 1, 1, 1), final=True)])
    journal.begin(record(), HERE, PLAN)
    assert journal.decided("condor_starter 7 9", process.boot_id) == (first.job, PLAN)
    assert journal.decided("condor_starter 7 9", "another boot") is None
    assert journal.decided("condor_starter 7 10", process.boot_id) is None
    assert journal.decided("", process.boot_id) is None


def test_what_was_announced_is_a_record_when_it_comes(path: Path) -> None:
    """Until then the collector hears nothing; if nothing comes it never does, nor does anybody."""
    journal = Journal(path)
    process = HERE.members[0]
    announced = Launch("condor_starter 7 9", process)
    never, late = record(), record()
    journal.begin(never, announced, PLAN)
    assert journal.unacknowledged(10) == []
    assert len(Answers(path).list_jobs(JobFilter(), None, 10, "")) == 1
    last = replace(never.sampled(never.usage, START), final=True, ended_ns=START + 1)
    journal.save([last])
    journal.begin(late, announced, PLAN)
    assert journal.unacknowledged(10) == []
    journal.join(late.attachment_id, replace(announced, members=(process,)))
    assert journal.unacknowledged(10) == [late]
    assert Answers(path).list_jobs(JobFilter(), None, 10, "") == [late]
    (total,) = Answers(path).totals([], JobFilter(), None).rows
    assert total.jobs == 1
    assert journal.decided(announced.key, process.boot_id) == (never.job, PLAN)
    journal.prune(START + 2, unacknowledged_too=False)
    assert Answers(path).list_jobs(JobFilter(), None, 10, "") == [late]


def test_what_never_came_is_forgotten_with_time(path: Path) -> None:
    """As what the collector has; and it is not sent when that has lost everything."""
    journal = Journal(path)
    first = record()
    journal.begin(first, Launch("condor_starter 7 9", HERE.members[0]), PLAN)
    journal.save([replace(first.sampled(first.usage, START), final=True, ended_ns=START + 1)])
    assert journal.resume(Mark(1, 5)) == 0
    assert journal.resume(Mark(2, 0)) == 0
    assert journal.unacknowledged(10) == []
    journal.prune(START + 2, unacknowledged_too=False)
    assert journal.decided("condor_starter 7 9", HERE.members[0].boot_id) is None


def test_a_transfer_is_known_to_the_agent_alone(path: Path) -> None:
    """It lives as a job does, but is in no report, list or total; what it moved is in a job's."""
    journal = Journal(path)
    starter = record("root", job_id="")
    journal.begin(starter, Launch("transfer 7 9", None, HERE.members), PLAN)
    files = moved(starter, 10, 20, 1)
    journal.save([files])
    assert [living.record for living in journal.living()] == [files]
    journal.begin(record(), HERE, PLAN)
    job = replace(moved(record(), 1, 1, 1), transfer=files.usage)
    journal.save([job, replace(files.sampled(files.usage, START), final=True, ended_ns=START + 1)])
    assert journal.resume(Mark(2, 0)) == 0
    assert journal.unacknowledged(10) == [job]
    answers = Answers(path)
    assert answers.list_jobs(JobFilter(), None, 10, "") == [job]
    assert answers.find_job(starter.attachment_id, None) == []
    (total,) = answers.totals([], JobFilter(), None).rows
    assert (total.jobs, total.sent.bytes) == (1, 1)
    journal.prune(START + 2, unacknowledged_too=False)
    assert [living.record for living in journal.living()] == [job]


def test_a_final_record_never_changes(path: Path) -> None:
    """Nothing that comes after the final record, whatever its number, is taken."""
    journal = Journal(path)
    first = record()
    journal.begin(first, HERE, PLAN)
    last = replace(
        moved(first, 10, 20, 1), final=True, ended_ns=START + 10**9, exit_reason=ExitReason.EXITED
    )
    journal.save([last])
    journal.save([moved(last, 99, 99, 2)])
    assert journal.living() == []
    assert journal.unacknowledged(10) == [last]


def test_an_older_sample_does_not_replace_a_newer_one(path: Path) -> None:
    """Repeating a pass changes nothing, and totals count it once."""
    journal = Journal(path)
    first = record()
    journal.begin(first, HERE, PLAN)
    second = moved(first, 10, 20, 1)
    third = moved(second, 30, 40, 2)
    for pass_ in ([second], [third], [second], [third]):
        journal.save(pass_)
    assert journal.unacknowledged(10) == [third]
    (total,) = Answers(path).totals([], JobFilter(), None).rows
    assert (total.sent.bytes, total.received.bytes, total.jobs) == (30, 40, 1)


def test_the_outbox_holds_what_the_collector_does_not_have(path: Path) -> None:
    """Acknowledging a record removes it until the attachment has news."""
    journal = Journal(path)
    first, other = record(), record("bob", START + 1, "2.0")
    journal.begin(first, HERE, PLAN)
    journal.begin(other, HERE, PLAN)
    assert journal.count_unacknowledged() == 2
    journal.acknowledge([first], MARK)
    assert journal.unacknowledged(10) == [other]
    newer = moved(first, 1, 1, 1)
    journal.save([newer])
    journal.acknowledge([first], MARK)  # a late, repeated acknowledgement
    assert journal.unacknowledged(10) == [newer, other]


@pytest.mark.parametrize(
    ("told", "again"),
    [(Mark(77, 4), 0), (Mark(77, 5), 0), (Mark(77, 3), 2), (Mark(78, 9), 2), (Mark(0, 0), 0)],
)
def test_a_store_that_has_less_is_sent_everything_again(path: Path, told: Mark, again: int) -> None:
    """A lower mark or another identity empties what counts as confirmed, once."""
    journal = Journal(path)
    both = [record(), record("bob", START + 1, "2.0")]
    for each in both:
        journal.begin(each, HERE, PLAN)
    assert journal.resume(Mark(77, 3)) == 0  # nothing was confirmed by any store yet
    journal.acknowledge(both, Mark(77, 4))
    journal.close()
    journal = Journal(path)
    assert journal.resume(told) == again
    assert journal.unacknowledged(10) == (both if again else [])
    assert journal.resume(told) == 0


def test_pruning_spares_what_runs_and_what_is_not_reported(path: Path) -> None:
    """Only ended and acknowledged attachments leave, unless nobody takes reports."""
    journal = Journal(path)
    running, ended = record(), record("bob", START + 1, "2.0")
    journal.begin(running, HERE, PLAN)
    journal.begin(ended, HERE, PLAN)
    last = replace(moved(ended, 1, 1, 1), final=True, ended_ns=START + 2)
    journal.save([last])
    journal.prune(START + 3, unacknowledged_too=False)
    assert journal.count_unacknowledged() == 2
    journal.acknowledge([last], MARK)
    journal.prune(START + 3, unacknowledged_too=False)
    answers = Answers(path)
    assert [r.job.owner for r in answers.list_jobs(JobFilter(), None, 10, "")] == ["alice"]
    assert answers.totals([GroupBy.OWNER], JobFilter(), None).rows[0].key == ("alice",)


def test_jobs_are_found_by_filter_page_and_owner(path: Path) -> None:
    """Newest first, a page at a time, and nobody sees what is not theirs."""
    journal = Journal(path)
    records = [
        record(owner, START + n * 10**6, f"{n}.0") for n, owner in enumerate(["alice", "bob"] * 5)
    ]
    for one in records:
        journal.begin(one, HERE, PLAN)
    answers = Answers(path)
    newest = [r.attachment_id for r in reversed(records)]
    first = answers.list_jobs(JobFilter(), None, 4, "")
    second = answers.list_jobs(JobFilter(), None, 100, first[-1].attachment_id)
    assert [r.attachment_id for r in (*first, *second)] == newest
    assert len(answers.list_jobs(JobFilter(owner="bob"), "alice", 100, "")) == 0
    assert len(answers.list_jobs(JobFilter(), "bob", 100, "")) == 5
    assert len(answers.list_jobs(JobFilter(), "", 100, "")) == 0
    assert len(answers.list_jobs(JobFilter(running=False), None, 100, "")) == 0
    assert len(answers.list_jobs(JobFilter(until_ns=START + 3 * 10**6), None, 100, "")) == 3


def test_a_job_is_found_by_each_of_its_names(path: Path) -> None:
    """By the batch system's id, the attachment id, or an unambiguous start of that."""
    journal = Journal(path)
    first, again = record(job_id="7.0"), record(at=START + 10**12, job_id="7.0")
    for one in (first, again):
        journal.begin(one, HERE, PLAN)
        journal.save([moved(one, 5, 6, 1)])
    answers = Answers(path)
    assert [run.record.started_ns for run in answers.find_job("7.0", None)] == [
        again.started_ns,
        first.started_ns,
    ]
    (run,) = answers.find_job(first.attachment_id, None)
    assert [sample.sent.bytes for sample in run.samples] == [0, 5]
    (run,) = answers.find_job(again.attachment_id[:13], None)
    assert run.record.attachment_id == again.attachment_id
    assert answers.find_job(first.attachment_id[:4], None) == []
    assert answers.find_job("7.0", "bob") == []
    assert answers.find_job("%", None) == []


def test_totals_belong_to_hours_and_groups(path: Path) -> None:
    """Bytes are booked to the hour of their sample, and rows add up to everything."""
    journal = Journal(path)
    hour = START // HOUR_NS * HOUR_NS
    one = record(at=hour + 60 * 10**9)
    journal.begin(one, HERE, PLAN)
    early = moved(one, 100, 200, 60, "campus")
    late = moved(early, 150, 260, 3600, "campus")
    for sample in (early, late):
        journal.save([sample])
    answers = Answers(path)
    whole = answers.totals([GroupBy.CLASS, GroupBy.OWNER], JobFilter(), None)
    assert [(t.key, t.jobs, t.sent.bytes) for t in whole.rows] == [(("campus", "alice"), 1, 150)]
    second = answers.totals([], JobFilter(since_ns=hour + HOUR_NS), None)
    assert (second.rows[0].sent.bytes, second.rows[0].received.bytes) == (50, 60)
    day = answers.totals([GroupBy.DAY], JobFilter(), None).rows
    assert [t.key for t in day] == [("2023-11-14",)]
    assert answers.totals([], JobFilter(), "bob").rows == ()


def test_a_full_disk_is_an_error_and_loses_nothing_recorded(path: Path) -> None:
    """What does not fit is refused as a whole with a remedy; what was there stays readable."""
    journal = Journal(path)
    first = record()
    journal.begin(first, HERE, PLAN)
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for number in range(1000):
            journal.begin(record("bob", START + (1 + number) * 10**6, "x" * 200), HERE, PLAN)

    with pytest.raises(StoreError, match=r"full.*free space"):
        fill()
    journal._db.execute("PRAGMA max_page_count = 100000")
    newer = moved(first, 1, 1, 1)
    journal.save([newer])
    assert newer in journal.unacknowledged(2000)


def test_a_journal_of_the_future_is_not_touched(path: Path) -> None:
    """A schema that this release does not know is refused before anything is written."""
    Journal(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="schema 99"):
        Journal(path)


def test_a_file_that_is_no_journal_is_named(path: Path) -> None:
    """The error says which file and what SQLite thinks of it."""
    path.parent.mkdir()
    path.write_text("these are not the records you are looking for" * 100)
    with pytest.raises(StoreError, match=str(path)):
        Journal(path)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_older_journal_is_converted(path: Path, version: int) -> None:
    """Jobs that an earlier release began go on, with their totals; what they cost begins at 0."""
    journal = Journal(path)
    journal.begin(record(), HERE, PLAN)
    journal.save([moved(record(), 10, 20, 1)])
    journal.close()
    db = sqlite3.connect(path)
    db.execute("DROP INDEX launches")
    for column in ("launch", "launch_key"):
        db.execute(f"ALTER TABLE attachments DROP COLUMN {column}")
    if version < 3:
        db.execute("ALTER TABLE hours DROP COLUMN cost")
    if version == 1:
        db.execute("ALTER TABLE attachments DROP COLUMN plan")
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    for _ in range(2):  # what is converted is not converted again
        journal = Journal(path)
        (living,) = journal.living()
        assert (living.plan, living.launch) == (PLAN, HERE)
        journal.close()
    journal = Journal(path)
    journal.save([moved(living.record, 15, 20, 2)])
    (total,) = Answers(path).totals((), JobFilter(), None).rows
    assert (total.sent.bytes, total.cost) == (15, 0)
    journal.close()
