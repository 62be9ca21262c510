"""Who may trace the wrapper: nobody but root, while it is in the worker's own network.

Another process of the same account, in a sandbox, could steer it there otherwise (ptrace), where
the kernel has no Yama or `kernel.yama.ptrace_scope` is 0. Each test has its control: the same
tracer reaches a plain program of the same account.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent.hooks.install import MODE
from tests.hooks.fake_agent import FakeAgent, granted

if TYPE_CHECKING:
    from tests.hooks.conftest import Worker

pytestmark = pytest.mark.root
PTRACE_ATTACH = 16
TRACE = f"""
import ctypes, errno, os, sys
libc, pid = ctypes.CDLL(None, use_errno=True), int(sys.argv[1])
failed = libc.ptrace({PTRACE_ATTACH}, pid, None, None)
print(errno.errorcode[ctypes.get_errno()] if failed else "traced")
"""
AS_IS = ["/usr/bin/env"]
UNPRIVILEGED = ["/usr/bin/setpriv", "--no-new-privs"]


def traced(worker: Worker, pid: int) -> bool:
    """Try to trace a process as another of the same user; the tracer's end lets it go on."""
    done = worker.execute("/usr/bin/python3", "-I", "-S", "-c", TRACE, str(pid))
    said = done.stdout.decode().strip()
    assert said in {"traced", "EPERM"}, done.stderr
    return said == "traced"


@pytest.fixture(autouse=True)
def _control(worker: Worker) -> None:
    """Skip where the kernel lets nobody trace what is not their child."""
    with worker.start("/usr/bin/sleep", "100") as plain:
        reached = _until_runs(plain.pid, "sleep") and traced(worker, plain.pid)
        plain.kill()
    if not reached:
        pytest.skip("this kernel's Yama forbids the tracer already (kernel.yama.ptrace_scope)")


def _until_runs(pid: int, name: str) -> bool:
    """Wait until a process has become a program."""
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}/comm").read_text() != f"{name}\n":
        assert time.monotonic() < end, f"{pid} did not become {name}"
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("mode", [MODE, 0o755], ids=["installed", "readable"])
@pytest.mark.parametrize("way", [AS_IS, UNPRIVILEGED], ids=["capability", "own"])
def test_it_cannot_be_traced_while_it_asks(worker: Worker, way: list[str], mode: int) -> None:
    """By either way in; the job can, as it could without the wrapper."""
    for program in (worker.run, worker.enter, worker.prepare):
        program.chmod(mode)
    own = way == UNPRIVILEGED
    agent = FakeAgent(granted(), [] if own else [worker.namespace], own=own)
    with agent:
        agent.answer.clear()
        with worker.start(*way, str(worker.run), "/usr/bin/sleep", "100") as job:
            assert agent.asked.wait(20)
            assert not traced(worker, job.pid)
            agent.answer.set()
            _until_runs(job.pid, "sleep")
            assert traced(worker, job.pid)
            job.kill()


@pytest.mark.parametrize("mode", [MODE, 0o755], ids=["installed", "readable"])
def test_the_hook_cannot_be_traced_while_it_asks(worker: Worker, mode: int) -> None:
    """HTCondor runs it with the job's ad on stdin, as the job's user."""
    worker.prepare.chmod(mode)
    with worker.agent() as agent:
        agent.answer.clear()
        with worker.start(str(worker.prepare)) as hook:
            assert hook.stdin is not None
            hook.stdin.close()
            assert agent.asked.wait(20)
            assert not traced(worker, hook.pid)
            agent.answer.set()
            hook.wait(20)


def test_what_cannot_be_read_cannot_be_traced_from_its_exec_on(worker: Worker) -> None:
    """So there is no moment before lark-run can say it itself: a program that never does."""
    plain = worker.run.with_name("sleep")
    shutil.copy("/usr/bin/sleep", plain)
    plain.chmod(MODE)
    with worker.start(str(plain), "100") as process:
        _until_runs(process.pid, "sleep")
        assert not traced(worker, process.pid)
        process.kill()
