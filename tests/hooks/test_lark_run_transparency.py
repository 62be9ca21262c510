"""A wrapped job starts exactly as it would have started without the wrapper, but for its network.

Each test starts the same probe twice from the same state, directly and through lark-run, and
compares everything the probe can see (`tests/hooks/probe.py`).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import LIBC, check
from tests.hooks.conftest import USER, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.root

PR_SET_PDEATHSIG, PR_SET_TIMERSLACK, PR_SET_CHILD_SUBREAPER = 1, 29, 36
ADDR_NO_RANDOMIZE = 0x0040000
PYTHON = "/usr/bin/python3"


@pytest.fixture
def probe(worker: Worker) -> list[str]:
    """Give the probe's command line, within reach of the job's user."""
    copy = worker.run.parent / "probe.py"
    shutil.copy(Path(__file__).parent / "probe.py", copy)
    return [PYTHON, "-I", "-S", str(copy)]


def both_ways(
    worker: Worker, probe: Sequence[str], before: Callable[[], None] | None = None, **how: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the probe without and with the wrapper; return what each saw."""
    with worker.agent():
        plain = worker.execute(*probe, before=before, **how)
        wrapped = worker.execute(str(worker.run), *probe, before=before, **how)
    assert plain.returncode == 0, plain.stderr
    assert wrapped.returncode == 0, wrapped.stderr
    assert wrapped.stderr == plain.stderr
    return json.loads(plain.stdout), json.loads(wrapped.stdout)


def test_nothing_but_the_network_differs(worker: Worker, probe: list[str]) -> None:
    """Environment, cwd, stdio, descriptors, signals, limits, ids and the rest are the same."""
    plain, wrapped = both_ways(worker, probe, stdin=b"some input")
    assert wrapped == plain
    assert wrapped["stdin"] == "some input"
    assert wrapped["owner of /proc/self/environ"] == USER
    assert wrapped["cwd"] == str(worker.scratch)


def test_signal_state_is_untouched(worker: Worker, probe: list[str]) -> None:
    """Ignored, default, blocked and pending signals arrive in the job as they were."""

    def before() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2, signal.SIGRTMIN})
        os.kill(os.getpid(), signal.SIGUSR2)

    plain, wrapped = both_ways(worker, probe, before)
    assert wrapped == plain
    ignored = int(wrapped["status"]["SigIgn"], 16)
    assert ignored & 1 << signal.SIGUSR1 - 1
    assert int(wrapped["status"]["ShdPnd"], 16) == 1 << signal.SIGUSR2 - 1
    assert int(wrapped["status"]["SigBlk"], 16) & 1 << signal.SIGTERM - 1


@pytest.mark.parametrize("closed", [(0,), (0, 1, 2), (2,), (1, 2)])
def test_closed_standard_descriptors_stay_closed(worker: Worker, closed: tuple[int, ...]) -> None:
    """The wrapper's own descriptors never appear in their place, and glibc's replacements go."""
    # an interpreter would put files of its own on the free numbers: let the shell look
    script = "for n in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$n ] && l=$l$n; done; echo =$l > $0"
    seen = []
    for wrapper in ((), (str(worker.run),)):
        out = worker.scratch / "seen"
        with worker.agent():
            worker.execute(
                *wrapper, "/bin/sh", "-c", script, str(out), before=lambda: close_all(closed)
            )
        seen.append(out.read_text())
        out.unlink()
    assert seen[0] == seen[1]
    assert not any(str(fd) in seen[1] for fd in closed)


def close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def test_open_descriptors_are_inherited_and_none_added(worker: Worker, probe: list[str]) -> None:
    """A job gets the descriptors its parent left open, at the same numbers."""
    with Path("/dev/zero").open("rb") as one, Path("/dev/full").open("rb") as other:
        plain, wrapped = both_ways(worker, probe, pass_fds=(one.fileno(), other.fileno()))
    assert wrapped == plain
    assert {"/dev/zero", "/dev/full"} <= {target for target, _ in wrapped["descriptors"].values()}


def raw_exec(command: Sequence[str], environment: Sequence[bytes]) -> Callable[[], None]:
    """Return what execs with an environment that no dictionary can express."""
    argv = (ctypes.c_char_p * (len(command) + 1))(*[c.encode() for c in command], None)
    envp = (ctypes.c_char_p * (len(environment) + 1))(*environment, None)
    return lambda: check(LIBC.execve(command[0].encode(), argv, envp), "execve")


@pytest.mark.parametrize(
    "environment",
    [
        [],
        [b""],
        [
            b"Z=last first",
            b"TMPDIR=/somewhere",
            b"LD_LIBRARY_PATH=/nowhere",
            b"LD_PRELOAD=",
            b"LD_AUDIT=",
            b"GLIBC_TUNABLES=glibc.malloc.check=0",
            b"MALLOC_ARENA_MAX=1",
            b"HOSTALIASES=/x",
            b"LOCALDOMAIN=y",
            b"RES_OPTIONS=ndots:3",
            b"GCONV_PATH=/z",
            b"A=1",
            b"A=2",
            b"A=",
            b"",
            b"no equals sign",
            b"=empty name",
            b"+A=guarded already",
            b"\xff\xfe=\x01\x7f\n",
            b"LARGE=" + b"x" * 100_000,
            b"A=1",
        ],
    ],
    ids=["empty", "one empty string", "hostile"],
)
def test_environment_is_the_same_byte_for_byte(
    worker: Worker, probe: list[str], environment: list[bytes]
) -> None:
    """Order, duplicates, odd strings survive, and so does what secure execution removes."""
    seen = []
    with worker.agent():
        for command in (probe, [str(worker.run), *probe]):
            done = worker.execute("/bin/false", before=raw_exec(command, environment))
            assert done.returncode == 0, done.stderr
            seen.append(json.loads(done.stdout)["environ"].encode("latin-1"))
    assert seen[1] == seen[0] == b"".join(one + b"\0" for one in environment)


@pytest.mark.parametrize("soft", [resource.RLIM_INFINITY, 1 << 30, 1 << 20])
def test_limits_are_untouched(worker: Worker, probe: list[str], soft: int) -> None:
    """Also a stack limit over 8 MiB, which secure execution lowers."""

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 50))

    plain, wrapped = both_ways(worker, probe, before)
    assert wrapped == plain
    assert wrapped["limits"]["RLIMIT_STACK"][0] == soft


def test_process_attributes_are_untouched(worker: Worker, probe: list[str]) -> None:
    """Parent-death signal, personality, timer slack, nice value, alarm, session survive."""

    def before() -> None:
        os.setsid()
        os.nice(5)
        for option, value in (
            (PR_SET_PDEATHSIG, signal.SIGUSR1),
            (PR_SET_TIMERSLACK, 12345),
            (PR_SET_CHILD_SUBREAPER, 1),
        ):
            check(LIBC.prctl(option, int(value), 0, 0, 0), "prctl")
        LIBC.personality(ADDR_NO_RANDOMIZE)
        signal.alarm(1000)

    plain, wrapped = both_ways(worker, probe, before, umask=0o137)
    assert wrapped == plain
    assert wrapped["prctl"]["pdeathsig"] == signal.SIGUSR1
    assert int(wrapped["personality"], 16) == ADDR_NO_RANDOMIZE
    assert wrapped["status"]["Umask"] == "0137"


def test_capabilities_are_all_gone(worker: Worker, probe: list[str]) -> None:
    """The job has no capability in any set that acts, and its bounding set is its user's."""
    plain, wrapped = both_ways(worker, probe)
    status = wrapped["status"]
    assert {int(status[f"Cap{name}"], 16) for name in ("Prm", "Eff", "Amb")} == {0}
    assert status["CapBnd"] == plain["status"]["CapBnd"]
    assert wrapped["secure"] == 0


def test_root_loses_every_capability(worker: Worker) -> None:
    """With those that exec gives root, from bounding and inheritable set, it could leave."""
    command = ("setpriv", "--inh-caps=+sys_admin,+net_admin", str(worker.run), "/bin/grep", "Cap")
    with worker.agent():
        done = worker.execute(*command, "/proc/self/status", uid=0)
    assert done.returncode == 0, done.stderr
    sets = dict(re.findall(rb"Cap(\w+):\s+(\w+)", done.stdout))
    assert len(sets) == 5
    assert {int(value, 16) for value in sets.values()} == {0}


def test_pid_is_the_same(worker: Worker) -> None:
    """The process that the batch system started asks the agent and becomes the job."""
    with (
        worker.agent() as agent,
        worker.start(str(worker.run), "/bin/sh", "-c", "echo $$") as process,
    ):
        out, _ = process.communicate(timeout=30)
    assert int(out) == process.pid == agent.requests[0].pid
    assert agent.requests[0].uid == USER


@pytest.mark.parametrize("status", [0, 1, 42, 125, 255])
def test_exit_status_is_the_jobs(worker: Worker, status: int) -> None:
    """Whatever the job exits with."""
    with worker.agent():
        assert worker.wrapped("/bin/sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_death_by_signal_is_the_jobs(worker: Worker, number: signal.Signals) -> None:
    """The parent sees a process killed by that signal, not an exit status."""
    with worker.agent():
        done = worker.wrapped("/bin/sh", "-c", f"ulimit -c 0; kill -{number.value} $$")
    assert done.returncode == -number


def test_job_receives_signals_sent_to_the_pid(worker: Worker) -> None:
    """A batch system that signals what it started signals the job."""
    script = "trap 'echo got it; exit 7' TERM; echo ready; while :; do read line; done"
    with worker.agent(), worker.start(str(worker.run), "/bin/sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == (b"got it\n", 7)


def test_signal_ends_a_job_that_waits_for_its_sandbox(worker: Worker) -> None:
    """The batch system can remove a job that the agent keeps waiting."""
    with worker.agent() as agent:
        agent.answer.clear()
        with worker.start(str(worker.run), *worker.mark) as process:
            assert agent.asked.wait(30)
            process.terminate()
            assert process.wait(30) == -signal.SIGTERM
    assert not worker.marker.exists()


def test_stop_and_continue_while_waiting_is_survived(worker: Worker) -> None:
    """A job suspended before it began starts when it is continued and granted."""
    with worker.agent() as agent:
        agent.answer.clear()
        with worker.start(str(worker.run), *worker.mark) as process:
            assert agent.asked.wait(30)
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            process.send_signal(signal.SIGCONT)
            os.waitid(os.P_PID, process.pid, os.WCONTINUED)
            agent.answer.set()
            assert process.wait(30) == 0
    assert worker.marker.exists()


def test_parent_that_dies_during_the_wait_takes_the_job_along(worker: Worker) -> None:
    """The parent-death signal holds also for the time in which the kernel had forgotten it."""
    parent = (
        "import ctypes,subprocess,sys,time\n"
        "subprocess.Popen(sys.argv[1:], preexec_fn=lambda: ctypes.CDLL(None).prctl(1, 9))\n"
        "time.sleep(60)\n"
    )
    check(LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "adopt orphans")
    with worker.agent() as agent:
        agent.answer.clear()
        with worker.start(PYTHON, "-c", parent, str(worker.run), *worker.mark) as process:
            assert agent.asked.wait(30)
            job = agent.requests[0].pid
            wait_for_command(job, "lark-enter")
            process.kill()
            process.wait(30)
            agent.answer.set()
            _, status = os.waitpid(job, 0)
    check(LIBC.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0), "adopt no more")
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert not worker.marker.exists()


def wait_for_command(pid: int, name: str) -> None:
    """Wait until a process has exec'd the program of that name."""
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/comm").read_text().strip() != name:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_environment_is_not_readable_by_others_during_the_wait(worker: Worker) -> None:
    """The environment stays out of the argument list, which everybody can read."""
    with worker.agent() as agent:
        agent.answer.clear()
        with worker.start(str(worker.run), "/bin/true", env={"TOKEN": "s3cr3t"}) as process:
            assert agent.asked.wait(30)
            wait_for_command(process.pid, "lark-enter")
            proc = Path(f"/proc/{process.pid}")
            assert b"s3cr3t" not in (proc / "cmdline").read_bytes()
            assert b"s3cr3t" in (proc / "environ").read_bytes()  # root may
            assert (proc / "environ").stat().st_uid == 0
            agent.answer.set()
            assert process.wait(30) == 0


def test_path_search_uses_the_jobs_environment(worker: Worker) -> None:
    """A command without a slash is found as env(1) would find it."""
    tool = worker.scratch / "a-tool"
    tool.write_text("#!/bin/sh\necho found $0\n")
    tool.chmod(0o755)
    with worker.agent():
        done = worker.wrapped("a-tool", env={"PATH": f"/nowhere:{worker.scratch}"})
    assert done.stdout == f"found {tool}\n".encode()
