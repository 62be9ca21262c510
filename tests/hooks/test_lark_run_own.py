"""lark-run where file capabilities have no effect: it makes the namespace and becomes the job.

What of its surroundings a job finds changed is listed in docs/unprivileged.md, and here: each test
compares the probe with no_new_privs, without and with lark-run.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import LIBC, check, mount
from tests.hooks.conftest import USER, Worker
from tests.hooks.fake_agent import FakeAgent, granted, refused
from tests.hooks.test_lark_run_transparency import ADDR_NO_RANDOMIZE, PR_SET_PDEATHSIG, raw_exec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.root

LIMITED = ("/usr/bin/setpriv", "--no-new-privs")
CONTAINED = ("/usr/bin/setpriv", "--bounding-set=-sys_admin", f"--reuid={USER}", f"--regid={USER}",
             "--clear-groups")  # fmt: skip
EVERY = (1 << 41) - 1
"""All capabilities of Linux 5.9 and later."""


@pytest.fixture
def probe(worker: Worker) -> list[str]:
    """Give the probe's command line, within reach of the job's user."""
    copy = worker.run.parent / "probe.py"
    shutil.copy(Path(__file__).parent / "probe.py", copy)
    return ["/usr/bin/python3", "-I", "-S", str(copy)]


@pytest.fixture
def agent(worker: Worker) -> Iterator[FakeAgent]:
    """Give an agent that is asked for namespaces of callers' own."""
    with own_agent(worker) as made:
        yield made


def own_agent(worker: Worker, reply: bytes = granted()) -> FakeAgent:
    made = worker.agent(reply, [])
    made.own = True
    return made


def both_ways(
    worker: Worker, probe: Sequence[str], before: Callable[[], None] | None = None, **how: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the probe with no_new_privs, without and with the wrapper; return what each saw."""
    seen = []
    for wrapper in ((), (str(worker.run),)):
        done = worker.execute(*LIMITED, *wrapper, *probe, before=before, **how)
        assert (done.returncode, done.stderr) == (0, b"")
        seen.append(json.loads(done.stdout))
    return seen[0], seen[1]


@pytest.mark.usefixtures("agent")
def test_the_unavoidable_differences_are_known(worker: Worker, probe: list[str]) -> None:
    """The user namespace and the bounding set that comes with it; nothing else the probe sees."""
    plain, wrapped = both_ways(worker, probe, stdin=b"some input")
    different = {key for key in plain if wrapped[key] != plain[key]}
    assert different == {"namespaces", "status"}
    kinds = {k for k, v in plain["namespaces"].items() if wrapped["namespaces"][k] != v}
    assert kinds == {"user"}
    lines = {k for k, v in plain["status"].items() if wrapped["status"][k] != v}
    assert lines == {"CapBnd"}
    assert int(wrapped["status"]["CapBnd"], 16) & EVERY == EVERY
    assert {int(wrapped["status"][f"Cap{s}"], 16) for s in ("Inh", "Prm", "Eff", "Amb")} == {0}
    assert wrapped["status"]["NoNewPrivs"] == "1"


@pytest.mark.usefixtures("agent")
def test_process_attributes_are_untouched(worker: Worker, probe: list[str]) -> None:
    """Death signal, personality, limits, ignored and pending signals, alarm, umask survive."""

    def before() -> None:
        os.setsid()
        check(LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGUSR1), 0, 0, 0), "prctl")
        LIBC.personality(ADDR_NO_RANDOMIZE)
        resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
        os.kill(os.getpid(), signal.SIGUSR2)
        signal.alarm(1000)

    plain, wrapped = both_ways(worker, probe, before, umask=0o137)
    for kind in ("namespaces", "status"):
        del plain[kind], wrapped[kind]
    assert wrapped == plain
    assert wrapped["prctl"]["pdeathsig"] == signal.SIGUSR1
    assert wrapped["limits"]["RLIMIT_STACK"][0] == resource.RLIM_INFINITY


@pytest.mark.usefixtures("agent")
def test_environment_is_the_same_byte_for_byte(worker: Worker, probe: list[str]) -> None:
    """Order, duplicates and odd strings too, and what the dynamic linker looks at."""
    environment = [b"TMPDIR=/x", b"LD_LIBRARY_PATH=/y", b"A=1", b"A=2", b"", b"odd", b"=\xff\n"]
    seen = []
    for wrapper in ((), (str(worker.run),)):
        command = [*LIMITED, *wrapper, *probe]
        done = worker.execute("/bin/false", before=raw_exec(command, environment))
        assert done.returncode == 0, done.stderr
        seen.append(json.loads(done.stdout)["environ"].encode("latin-1"))
    assert seen[1] == seen[0] == b"".join(one + b"\0" for one in environment)


@pytest.mark.usefixtures("agent")
def test_others_are_nobody(worker: Worker) -> None:
    """The map has the user and their group: what others own appears as nobody's."""
    script = "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; stat -c %u / $0"
    done = worker.execute(*LIMITED, str(worker.run), "/bin/sh", "-c", script, str(worker.scratch))
    own = [str(USER), str(USER), "1"]
    assert done.stdout.decode().split() == [*own, *own, "deny", "65534", str(USER)]


@pytest.mark.usefixtures("agent")
def test_a_container_without_the_capability_is_the_same_case(worker: Worker) -> None:
    """Where CAP_SYS_ADMIN is missing in the bounding set lark-run takes this way, too."""
    done = worker.execute(*CONTAINED, str(worker.run), "/bin/ls", "/sys/class/net", uid=0)
    assert (done.returncode, done.stdout) == (0, b"lo\n"), done.stderr


@pytest.mark.usefixtures("agent")
def test_a_covered_sys_stays_as_it_was(worker: Worker) -> None:
    """Where something covers a part of /sys, as in containers, the kernel allows no new one."""
    mount("none", "/sys/kernel", "tmpfs")
    done = worker.execute(*LIMITED, str(worker.run), "/bin/ls", "/sys/class/net")
    assert done.returncode == 0, done.stderr
    assert b"outside0" in done.stdout


def test_later_processes_join_the_first(worker: Worker) -> None:
    """Granted what the first made, another process of the user enters its network and users."""
    look = ("/bin/readlink", "/proc/self/ns/net", "/proc/self/ns/user")
    with own_agent(worker) as agent:
        first = worker.start(*LIMITED, str(worker.run), "/bin/sh", "-c", "echo up; read line")
        with first:
            assert first.stdout is not None
            assert first.stdout.readline() == b"up\n"
            proc = Path(f"/proc/{first.pid}/ns")
            with (proc / "net").open("rb") as network:
                agent.descriptors = [network.fileno()]
                done = worker.execute(*LIMITED, str(worker.run), *look)
            wanted = [str((proc / kind).readlink()) for kind in ("net", "user")]
            first.communicate(b"\n", timeout=30)
    assert done.stdout.decode().split() == wanted, done.stderr


def test_a_sandbox_of_the_agents_cannot_be_joined(worker: Worker) -> None:
    """What would need the capability is refused, and nothing runs."""
    agent = own_agent(worker)
    agent.descriptors = [worker.namespace]
    with agent:
        done = worker.execute(*LIMITED, str(worker.run), *worker.mark)
    worker.assert_refused(done, "cannot enter the network that the job made")


def test_a_refusal_comes_before_anything_is_made(worker: Worker) -> None:
    """The agent's words reach the user; no namespace was made for them."""
    with own_agent(worker, refused(2, "not today")) as agent:
        agent.descriptors = [worker.namespace]  # so that it answers at once
        done = worker.execute(*LIMITED, str(worker.run), *worker.mark)
    worker.assert_refused(done, "refused by the agent: not today")


def test_a_job_that_cannot_be_started_is_told(worker: Worker) -> None:
    """The agent, which holds a sandbox for it, learns status and reason."""
    with own_agent(worker) as agent:
        done = worker.execute(*LIMITED, str(worker.run), "/nowhere/at-all")
        deadline = time.monotonic() + 30
        while not agent.notices:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert done.returncode == 127
    assert agent.notices[0][:8] == b"LARK\x01\x00\x7f\x00"
    assert agent.notices[0][8:] + b"\n" == done.stderr


def test_a_worker_without_user_namespaces_refuses(worker: Worker) -> None:
    """With what to change; the job does not run on the worker's network."""
    with subprocess.Popen(
        ["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as cat:
        until_own_user(cat.pid)
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{cat.pid}/{kind}").write_text("0 0 65536")
        forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
        become = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *LIMITED[1:])
        with own_agent(worker):
            done = worker.execute(
                *("nsenter", f"--target={cat.pid}", "--user", "sh", "-c", forbid, "sh", *become),
                *(str(worker.run), *worker.mark),
                uid=0,
            )
        cat.communicate(b"", timeout=30)
    worker.assert_refused(done, "cannot make a user and network namespace", "user.max_user_")


def until_own_user(pid: int) -> None:
    """Wait until a process is in another user namespace than ours."""
    deadline = time.monotonic() + 30
    here = Path("/proc/self/ns/user").readlink()
    while Path(f"/proc/{pid}/ns/user").readlink() == here:
        assert time.monotonic() < deadline
        time.sleep(0.01)
