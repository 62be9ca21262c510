"""A journal's bound: what was reported gives way, what was not stops new jobs, nothing else."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lark_agent.accounting.journal import Journal, Launch, Process
from lark_agent.accounting.marks import Mark
from lark_agent.errors import StoreError
from lark_agent.model import (
    ClassUsage,
    Connectivity,
    Count,
    Job,
    NetworkPlan,
    Record,
    Scheduler,
    Usage,
    new_attachment_id,
)

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 10**6
PLAN = NetworkPlan("nat", Connectivity.NAT)
HERE = Launch(members=(Process(4711, 12345, "boot-1"),))
START = 1_700_000_000 * 10**9


def begin(journal: Journal, number: int) -> Record:
    job = Job(Scheduler.HTCONDOR, f"{number}.0", "alice", 1001, "g")
    at = START + number * 10**9
    key = new_attachment_id(at, os.urandom(10))
    record = Record(key, "w1", 3, job, "nat", Connectivity.NAT, at, sampled_ns=at)
    journal.begin(record, HERE, PLAN)
    return record


def ended(record: Record) -> Record:
    usage = Usage((ClassUsage("other", Count(1, 100), Count(2, 200)),))
    last = record.sampled(usage, record.sampled_ns + 1)
    return replace(last, final=True, ended_ns=last.sampled_ns)


def test_what_was_reported_gives_way(tmp_path: Path) -> None:
    """Thousands of reported jobs fit in a megabyte; the newest stay, and all that runs."""
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, SIZE)
    running = begin(journal, 0)
    for number in range(1, 3000):
        last = ended(begin(journal, number))
        journal.save([last])
        journal.acknowledge([last], Mark(1, number))
    assert path.stat().st_size < 1.1 * SIZE
    assert [each.record for each in journal.living()] == [running]
    journal.resume(Mark(1, 0))
    kept = [record.job.job_id for record in journal.unacknowledged(5000)]
    assert 100 < len(kept) < 2000
    assert kept[0] == "0.0"
    assert kept[-1] == "2999.0"


def test_what_was_not_reported_stops_new_jobs_and_stays(tmp_path: Path) -> None:
    """Nothing begins any more, with the reason; what runs is finished; an answer makes room."""
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, SIZE)
    running = begin(journal, 0)
    waiting = [running]

    def fill() -> None:
        for number in range(1, 3000):
            waiting.append(begin(journal, number))
            journal.save([ended(waiting[-1])])

    with pytest.raises(StoreError, match=r"wait for the collector; .* accounting\.journal_size"):
        fill()
    assert len(waiting) > 100
    assert [r.job.job_id for r in journal.unacknowledged(5000)] == [r.job.job_id for r in waiting]
    journal.save([ended(running)])
    assert journal.living() == []
    journal.acknowledge(journal.unacknowledged(5000), Mark(1, 1))
    begin(journal, 4000)
    assert path.stat().st_size < 1.1 * SIZE


def test_a_worker_that_reports_to_nobody_forgets_its_oldest(tmp_path: Path) -> None:
    """There what ended may go, reported or not, so jobs go on beginning."""
    journal = Journal(tmp_path / "journal.sqlite", SIZE, reports=False)
    for number in range(3000):
        journal.save([ended(begin(journal, number))])
    assert 100 < journal.count_unacknowledged() < 2000


def test_samples_give_way_before_jobs_are_refused(tmp_path: Path) -> None:
    """A job that runs for long is sampled for ever within the bound, and its totals stay."""
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, SIZE)
    jobs = [begin(journal, number) for number in range(50)]
    for number in range(1, 300):
        usage = Usage((ClassUsage("other", Count(number, number), Count()),))
        jobs = [job.sampled(usage, job.sampled_ns + 10**10) for job in jobs]
        journal.save(jobs)
    assert path.stat().st_size < 1.1 * SIZE
    with sqlite3.connect(path) as db:
        (samples,) = db.execute("SELECT count(*) FROM samples").fetchone()
    db.close()
    assert 1000 < samples < 50 * 299
    begin(journal, 50)
    assert [each.record for each in journal.living()][:50] == jobs
