"""Somebody sets the worker's clock by hours, under running jobs.

The agent runs with a library before libc that adds a number from a file to CLOCK_REALTIME and
leaves the other clocks alone, as settimeofday does.
"""

from __future__ import annotations

import os
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from lark_agent.agent.clock import Clock, Ids
from tests.agent.test_report import CONFIG, collected
from tests.agent.worker import ONCE, Talker, final, kill, records, until
from tests.lab.filesystem import STATE

if TYPE_CHECKING:
    from lark_agent.model import Record
    from tests.lab.process import Process
    from tests.lab.world import Lab

HOUR_NS = 3600 * 10**9
SHIFT = STATE / "shift"
LIBRARY = STATE / "shift.so"
SOURCE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile const long long *shift;

__attribute__((constructor)) static void begin(void)
{
    void *page = mmap(0, 8, PROT_READ, MAP_SHARED, open("%s", O_RDONLY | O_CLOEXEC), 0);
    if (page != MAP_FAILED)
        shift = page;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME && shift)
        now->tv_sec += *shift;
    return failed;
}
"""


class Worker:
    """A worker whose clock can be set, and when its jobs ran by the test's own clock."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.set(0)
        build = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(lab.path(LIBRARY))]
        subprocess.run(build, input=SOURCE % SHIFT, text=True, check=True)

    def set(self, hours: int) -> None:
        """Set its clock so many hours before or after the true time."""
        file = self.lab.path(SHIFT)
        content = struct.pack("=q", hours * 3600)
        if not file.exists():
            file.write_bytes(content)
        with file.open("r+b") as same:  # it is mapped
            same.write(content)

    def start(self) -> Process:
        return self.lab.agent(CONFIG, env={"LD_PRELOAD": str(LIBRARY)})

    def sampled(self, talker: Talker, packets: int) -> Record:
        """Wait until a sample has what a job sent."""
        job = talker.job.job_id
        return until(  # type: ignore[no-any-return]  # what the lambda returns
            lambda: records(self.lab)[job].usage.sent.packets == packets and records(self.lab)[job],
            "a sample",
        )


def in_order(record: Record) -> bool:
    return record.started_ns <= record.ended_ns <= record.sampled_ns


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces")
def test_a_clock_that_is_set_by_hours(lab: Lab) -> None:
    """Times are in order, durations are true, later jobs have later ids, each byte is told once."""
    worker = Worker(lab)
    lab.collector()
    agent = worker.start()
    began = time.monotonic_ns()
    talkers = [Talker(lab)]
    for hours in (5, -5):
        worker.set(hours)
        for talker in talkers:
            talker.talk()
        talkers.append(Talker(lab))
    for number, talker in enumerate(reversed(talkers)):
        worker.sampled(talker, number * ONCE.packets)
    kill(agent)
    worker.set(-7)
    worker.start()
    for talker in talkers:
        talker.talk()
        talker.end()
    ended = {talker.job.job_id: final(lab, talker.job.job_id) for talker in talkers}
    took = time.monotonic_ns() - began
    first, second, third = ended.values()
    assert all(map(in_order, ended.values()))
    assert [one.usage.sent.packets // ONCE.packets for one in ended.values()] == [3, 2, 1]
    assert first.attachment_id < second.attachment_id < third.attachment_id
    assert second.started_ns - first.started_ns > 4 * HOUR_NS
    assert first.started_ns - third.started_ns > 4 * HOUR_NS
    for one in (first, second, third):  # the last of it by another agent, from its last sample on
        assert 0 < one.ended_ns - one.started_ns <= took
    collected(lab, {job: one.usage.sent.bytes for job, one in ended.items()})


def test_a_clock_goes_on_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set meanwhile does not show."""
    clock = Clock.at(HOUR_NS)
    before = clock.now_ns()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert HOUR_NS <= before <= clock.now_ns() < 2 * HOUR_NS


def test_ids_tell_which_came_later() -> None:
    """Also in the same millisecond, after the clock was set back, and after another agent's."""
    ids = Ids()
    made = [ids.new(at) for at in (5 * HOUR_NS, 5 * HOUR_NS, 2 * HOUR_NS, 9 * HOUR_NS)]
    assert made == sorted(made)
    next_agent = Ids()
    next_agent.seen(made[-1])
    assert next_agent.new(HOUR_NS) > made[-1]
    assert Ids().new(HOUR_NS) < made[0]
