"""Whatever fails, no job of a real pool runs on the worker's own network, and its user reads why.

Every job writes down in which network namespace it runs (`WITNESS`) before anything else, where it
stays whatever becomes of the job: the worker's must never be there.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.htcondor.jobs import HELD, STARTER_ERROR, TERMINATED, WITNESS
from tests.htcondor.pool import WRAPPER, Pool
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.htcondor.jobs import CondorJob
    from tests.lab.process import Process

pytestmark = [pytest.mark.root, pytest.mark.htcondor]

UNTIL_ENOUGH = "until [ -e $SUBMITTED_FROM/enough ]; do sleep 0.2; done"
TWO_SLOTS = "[pool]\nslots = 2\nready = 2\nwait_seconds = 0.5\n"
FOUR_SLOTS = TWO_SLOTS.replace("2", "4")


@pytest.fixture(scope="module")
def worker(condor_root: Path) -> Iterator[Pool]:
    """Give a pool whose agent is the tests' to start."""
    with Lab() as lab:
        yield Pool(lab, condor_root)


@contextlib.contextmanager
def agent(worker: Pool, config: str = "") -> Iterator[Process]:
    """Run an agent for a while."""
    process = worker.lab.agent(config)
    try:
        yield process
    finally:
        process.terminate()


@contextlib.contextmanager
def reconfigured(worker: Pool, config: str) -> Iterator[None]:
    """Give the starters another configuration for a while."""
    worker.configure("70-test", config)
    try:
        yield
    finally:
        worker.configure("70-test", "")


def test_without_an_agent_no_job_runs(worker: Pool) -> None:
    """Agent stopped: the job waits, its log says why, and it runs when the agent is there."""
    job = worker.submit(f"{WITNESS} echo done")
    said = job.await_event(STARTER_ERROR).text
    assert "no agent at /run/lark/run.sock" in said, said
    assert job.networks() == []
    with agent(worker):
        assert job.ended().stdout == "done\n"
    assert worker.host() not in job.networks()


def test_without_an_agent_the_wrappers_own_last_word_is_in_the_log(worker: Pool) -> None:
    """Where no hook speaks before it, the starter finds lark-run's error file and says it."""
    with reconfigured(worker, "STARTER_JOB_HOOK_KEYWORD =\n"):
        job = worker.submit(f"{WITNESS} echo done")
        said = job.await_event(STARTER_ERROR, TERMINATED).text
        assert "wrapper failed" in said, said
        assert "no agent at /run/lark/run.sock" in said, said
        assert job.networks() == []
        with agent(worker):
            assert job.ended().stdout == "done\n"
    assert worker.host() not in job.networks()


def test_an_agent_that_restarts_under_a_full_worker_costs_no_job(worker: Pool) -> None:
    """Jobs that run go on, those that come meanwhile wait or try again: each ends, confined.

    Every sandbox is taken, before the restart and after it.
    """
    with agent(worker, FOUR_SLOTS):
        running = [worker.submit(f"{WITNESS}{UNTIL_ENOUGH}") for _ in range(4)]
        worker.await_true(lambda: all(job.networks() for job in running))
    starting = [worker.submit(WITNESS) for _ in range(4)]
    with agent(worker, FOUR_SLOTS):
        worker.await_true(lambda: all("sandbox" in _last_error(job) for job in starting))
        assert not any(job.networks() for job in starting)
        for job in running:
            job.file("enough").touch()
        assert [job.ended().status for job in (*running, *starting)] == [0] * 8
        assert [len(job.networks()) for job in running] == [1] * 4
        for job in running:
            assert job.record()["final"]
    assert not any(worker.host() in job.networks() for job in (*running, *starting))


def test_more_jobs_than_sandboxes_wait_for_one(worker: Pool) -> None:
    """With every sandbox taken a job waits, its log says why, and it runs when one is free."""
    with agent(worker, TWO_SLOTS):
        running = [worker.submit(f"{WITNESS}{UNTIL_ENOUGH}") for _ in range(2)]
        worker.await_true(lambda: all(job.networks() for job in running))
        late = worker.submit(WITNESS)
        assert "sandbox" in late.await_event(STARTER_ERROR).text
        assert late.networks() == []
        for job in running:
            job.file("enough").touch()
        assert [job.ended().status for job in (*running, late)] == [0] * 3
    assert not any(worker.host() in job.networks() for job in (*running, late))


def test_a_refusal_of_the_policy_puts_the_job_on_hold(worker: Pool) -> None:
    """The policy's own words are what condor_q -hold shows."""
    with agent(worker, '[[rules]]\nwhen = "Ask =!= undefined"\nset = { rate = "Ask" }\n'):
        job = worker.submit(WITNESS, my_Ask='"as fast as possible"')
        job.await_event(HELD)
        said = worker.run(["condor_q", "-hold", job.number]).stdout
        assert "as fast as possible" in said, said
        worker.run(["condor_rm", job.number])
    assert job.networks() == []


def test_a_hook_that_is_killed_opens_nothing(worker: Pool) -> None:
    """Killed before it could speak, the hook leaves the job held, tried again or confined."""
    with agent(worker) as process:
        process.signal(signal.SIGSTOP)
        try:
            job = worker.submit(f"{WITNESS} echo done")
            worker.await_true(lambda: bool(_named("lark-prepare", worker)))
            for hook in _named("lark-prepare", worker):
                hook.kill()
        finally:
            process.signal(signal.SIGCONT)
        job.await_event(HELD, TERMINATED)
        worker.run(["condor_rm", job.number], check=False)
    assert worker.host() not in job.networks()


@contextlib.contextmanager
def slow_wrapper(worker: Pool) -> Iterator[None]:
    """Let three seconds pass between the hook and the job."""
    slow = "/usr/local/bin/slow-wrapper"
    worker.machine.path(slow).write_text(f'#!/bin/sh\nsleep 3\nexec {WRAPPER} "$@"\n')
    worker.machine.path(slow).chmod(0o755)
    with reconfigured(worker, f"USER_JOB_WRAPPER = {slow}\n"):
        yield


def test_the_hook_reserves_the_sandbox_that_the_job_starts_in(worker: Pool) -> None:
    """It is there before the job, and the job's record is the one that began with it."""
    with agent(worker), slow_wrapper(worker):
        job = worker.submit(WITNESS)
        worker.await_true(lambda: bool(worker.records(job.number)))
        (waiting,) = worker.records(job.number)
        assert job.networks() == []
        assert job.ended().status == 0
        assert job.record()["attachment_id"] == waiting["attachment_id"]


def test_a_reservation_that_expired_opens_nothing(worker: Pool) -> None:
    """When the job comes later than its sandbox was kept for, it is planned again, and confined."""
    with agent(worker, "[pool]\nreserve_seconds = 1\n"), slow_wrapper(worker):
        job = worker.submit(WITNESS)
        assert job.ended().status == 0
        assert job.record()["exit_reason"] == "exited", "the one record is the run's"
    assert len(job.networks()) == 1
    assert worker.host() not in job.networks()


def test_a_hook_keyword_of_the_user_changes_nothing(worker: Pool) -> None:
    """A job that names another hook, which the site has for others, has ours all the same."""
    with (
        agent(worker, '[[rules]]\nwhen = "Ask =!= undefined"\nset = { rate = "Ask" }\n'),
        reconfigured(worker, "OTHER_HOOK_PREPARE_JOB = /bin/true\n"),
    ):
        free = worker.submit(WITNESS, my_HookKeyword='"OTHER"')
        assert free.ended().status == 0
        job = worker.submit(WITNESS, my_HookKeyword='"OTHER"', my_Ask='"all"')
        job.await_event(HELD)
        worker.run(["condor_rm", job.number])
    assert job.networks() == []
    assert worker.host() not in free.networks()


BESIDE = "#!/bin/sh\nreadlink /proc/self/ns/net >> /home/alice/beside\n"
BESIDES: dict[str, dict[str, Any]] = {
    "pre-script": {"my_PreCmd": '"beside.sh"'},
    "post-script": {"my_PostCmd": '"beside.sh"'},
    "tool daemon": {"tool_daemon_cmd": "beside.sh"},
    "transfer plugin": {
        "transfer_plugins": "mine=beside.sh",
        "transfer_input_files": "beside.sh, mine://x/y",
    },
}


@pytest.mark.parametrize("kind", BESIDES)
def test_what_would_run_beside_the_job_keeps_the_job_away(worker: Pool, kind: str) -> None:
    """The starter runs some programs of users without the wrapper: jobs with one do not match."""
    with agent(worker):
        job = worker.submit(WITNESS, inputs={"beside.sh": BESIDE}, **BESIDES[kind])
        other = worker.submit(WITNESS)
        assert other.ended().status == 0
        worker.await_true(lambda: "no match found" in job.ad().get("LastRejMatchReason", ""))
        worker.run(["condor_rm", job.number])
    assert job.networks() == []
    assert not worker.machine.path("/home/alice/beside").exists()


UNSEEN = 'ifThenElse(TARGET.Cpus =?= undefined, "{}", undefined)'
"""Undefined to the matchmaker, and a program to the starter, which has no machine beside it."""
UNSEEN_BESIDES: dict[str, dict[str, Any]] = {
    "PreCmd": {"my_PreCmd": UNSEEN.format("beside.sh")},
    "PostCmd": {"my_PostCmd": UNSEEN.format("beside.sh")},
    "ToolDaemonCmd": {"my_ToolDaemonCmd": UNSEEN.format("beside.sh")},
    "TransferPlugins": {
        "my_TransferPlugins": UNSEEN.format("mine=beside.sh"),
        "transfer_input_files": "beside.sh, mine://x/y",
    },
}


def test_what_the_matchmaker_cannot_see_is_held(worker: Pool) -> None:
    """A program that START takes for undefined is found by the hooks, before it can run.

    The job of the local universe needs no match, and is not started through START.
    """
    script = worker.machine.path("/home/alice/beside.sh")
    script.write_text(BESIDE)
    script.chmod(0o755)
    with agent(worker):
        jobs = {
            name: worker.submit(WITNESS, inputs={"beside.sh": BESIDE}, **commands)
            for name, commands in UNSEEN_BESIDES.items()
        }
        local = worker.submit(WITNESS, universe="local", my_PreCmd='"/home/alice/beside.sh"')
        for name, job in [*jobs.items(), ("PreCmd", local)]:
            assert f"the job has {name}, which would run" in job.await_event(HELD).text
            worker.run(["condor_rm", job.number])
    assert not any(job.networks() for job in (*jobs.values(), local))
    assert not worker.machine.path("/home/alice/beside").exists()


def test_a_killed_look_at_the_ad_opens_nothing(worker: Pool) -> None:
    """The hook that would find a program beside the job is killed: the program does not run."""
    dead = worker.machine.path("/usr/local/bin/dead")
    dead.write_text("#!/bin/sh\nkill -9 $$\n")
    dead.chmod(0o755)
    with (
        agent(worker),
        reconfigured(worker, "LARK_HOOK_PREPARE_JOB_BEFORE_TRANSFER = /usr/local/bin/dead\n"),
    ):
        commands = UNSEEN_BESIDES["TransferPlugins"]
        job = worker.submit(WITNESS, inputs={"beside.sh": BESIDE}, **commands)
        assert "died with signal 9" in job.await_event(STARTER_ERROR).text
        worker.run(["condor_rm", job.number])
    assert not worker.machine.path("/home/alice/beside").exists()


def _last_error(job: CondorJob) -> str:
    return next((e.text for e in reversed(job.events) if e.number == STARTER_ERROR), "")


def _named(name: str, worker: Pool) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(worker.lab.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # others of the pool end all the time
            if process.name() == name:
                found.append(process)
    return found
