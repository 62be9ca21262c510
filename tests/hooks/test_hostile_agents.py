"""The wrapper and the hooks against agents that are wrong: no job runs, and the end comes in time.

The agents are root's and at the right place, so that nothing but what they say is wrong with them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent.hooks.install import MODE
from tests.hooks import hostile_agent
from tests.hooks.conftest import allow_sys_admin
from tests.hooks.fake_agent import RUN_SOCKET, granted
from tests.hooks.hostile_agent import SILENT_OR_GARBLED, WRONG_GRANTS, WRONG_TO_MAKERS, Hostile
from tests.hooks.test_lark_prepare import REQUEUE, run_hook, said

if TYPE_CHECKING:
    from tests.hooks.conftest import Worker

pytestmark = pytest.mark.root

UNPRIVILEGED = ("/usr/bin/setpriv", "--no-new-privs")
NATIVE = Path(hostile_agent.__file__).parents[2] / "lark_agent" / "hooks" / "native"
BOUND = 2
"""Seconds that a wrapper built for these tests waits; installed ones wait 300."""
IN_TIME = 20
"""Seconds within which a bound of two must have ended it, on a busy machine."""


def test_control_a_right_answer_runs_the_job(worker: Worker) -> None:
    """From the same agent, so that the refusals below are for what it says."""
    with Hostile(hostile_agent.answers(granted()), worker.namespace):
        assert worker.wrapped(*worker.mark).returncode == 0
    assert worker.marker.exists()


@pytest.mark.parametrize("name", [*SILENT_OR_GARBLED, *WRONG_GRANTS])
def test_no_job_runs_for_a_wrong_answer(worker: Worker, name: str) -> None:
    """lark-run ends with 125 and one line; what the agent still holds or sends changes nothing."""
    with Hostile((SILENT_OR_GARBLED | WRONG_GRANTS)[name], worker.namespace) as agent:
        worker.assert_refused(worker.wrapped(*worker.mark))
    assert agent.callers == 1


@pytest.mark.parametrize("name", [*SILENT_OR_GARBLED, *WRONG_GRANTS, *WRONG_TO_MAKERS])
def test_no_job_runs_in_a_namespace_of_its_own(worker: Worker, name: str) -> None:
    """The same where lark-run makes the namespace, and is told wrong things about that."""
    script = (SILENT_OR_GARBLED | WRONG_GRANTS | WRONG_TO_MAKERS)[name]
    with Hostile(script, worker.namespace) as agent:
        done = worker.execute(*UNPRIVILEGED, str(worker.run), *worker.mark)
    worker.assert_refused(done)
    assert agent.callers == 1


@pytest.mark.parametrize("name", SILENT_OR_GARBLED)
def test_the_hook_sends_the_job_elsewhere(worker: Worker, name: str) -> None:
    """What is no answer is the worker's fault: no job is put on hold for it."""
    with Hostile(SILENT_OR_GARBLED[name], worker.namespace):
        code, _ = said(run_hook(worker))
    assert code in REQUEUE


def test_a_grant_that_finds_no_room_is_none(worker: Worker) -> None:
    """A job may have no descriptor left for its sandbox; then it has none, and does not run."""

    def before() -> None:  # 0, 1, 2 and the socket
        resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))

    with Hostile(hostile_agent.answers(granted()), worker.namespace):
        done = worker.execute(str(worker.run), *worker.mark, before=before)
    worker.assert_refused(done, "something else than one namespace")


@pytest.fixture
def impatient(worker: Worker) -> Worker:
    """Install a wrapper that differs in one number: it waits for two seconds."""
    for program in (worker.run, worker.enter):
        program.unlink()
        flags = ("-std=gnu17", "-O1", "-static", f"-DANSWER_SECONDS={BOUND}")
        source = str(NATIVE / f"{program.name}.c")
        subprocess.run(["cc", *flags, source, "-o", str(program)], check=True)
        program.chmod(MODE)
    allow_sys_admin(worker.enter)
    return worker


def _never(connection: socket.socket, _namespace: int, _made: contextlib.ExitStack) -> None:
    """Take the request, and say nothing until the caller has gone."""
    while connection.recv(65536):
        pass


@pytest.mark.parametrize("way", [(), UNPRIVILEGED], ids=["capability", "own"])
def test_an_agent_that_never_answers_is_waited_for_a_bounded_time(
    impatient: Worker, way: tuple[str, ...]
) -> None:
    """Then the job is refused, by either way in."""
    with Hostile(_never, impatient.namespace):
        started = time.monotonic()
        done = impatient.execute(*way, str(impatient.run), *impatient.mark)
        took = time.monotonic() - started
    impatient.assert_refused(done, f"no answer from the agent in {BOUND} s")
    assert BOUND - 1 <= took < IN_TIME


def test_an_agent_that_says_no_more_is_waited_for_a_bounded_time(impatient: Worker) -> None:
    """The second answer, after the namespace was made, has the same bound."""

    def script(connection: socket.socket, _namespace: int, _made: contextlib.ExitStack) -> None:
        hostile_agent.asked(connection)
        hostile_agent.give(connection, hostile_agent.MAKE_OWN)
        while connection.recv(65536):
            pass

    with Hostile(script, impatient.namespace):
        done = impatient.execute(*UNPRIVILEGED, str(impatient.run), *impatient.mark)
    impatient.assert_refused(done, f"no answer from the agent in {BOUND} s")


def test_an_agent_that_accepts_nobody_is_waited_for_a_bounded_time(impatient: Worker) -> None:
    """Others fill its queue; the connection is not made."""
    with contextlib.ExitStack() as stack:
        RUN_SOCKET.parent.mkdir(exist_ok=True)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(str(RUN_SOCKET))
        RUN_SOCKET.chmod(0o666)
        listener.listen(0)
        other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        other.connect(str(RUN_SOCKET))
        done = impatient.execute(str(impatient.run), *impatient.mark)
    impatient.assert_refused(done, "no agent at /run/lark/run.sock: Resource temporarily")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="poll has another number here")
def test_installed_wrappers_wait_five_minutes(worker: Worker) -> None:
    """The bound of those that are installed, as the kernel was asked for it (poll's last word)."""
    with (
        Hostile(_never, worker.namespace),
        worker.start(str(worker.run), *worker.mark) as job,
    ):
        waiting = Path(f"/proc/{job.pid}/syscall")
        end = time.monotonic() + IN_TIME
        while (words := waiting.read_text().split())[0] != "7":
            assert time.monotonic() < end, words
            time.sleep(0.01)
        job.kill()
        job.communicate(timeout=IN_TIME)
    assert int(words[3], 16) <= 300_000
    assert not worker.marker.exists()
