"""HTCondor's starter in a test's hands: its prepare hook, its job, and what joins the job later.

::

    starter = Starter(lab)
    assert starter.prepare() is None          # or the hook's (code, words)
    job = starter.run(["sleep", "1000"])
    shell = starter.run(["sh", "-c", "…"])    # as condor_ssh_to_job's sshd
    assert shell.wait().status == 0
    starter.end()
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
from typing import TYPE_CHECKING, Any

from lark_agent.accounting.journal import decode
from tests.agent.worker import READ, python, until
from tests.lab.filesystem import LAUNCHERS, ROOT, STATE, USERS, WRAPPERS
from tests.lab.jobs import JobResult, JobSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lark_agent.model import Record
    from tests.lab.jobs import AdValue
    from tests.lab.process import Process
    from tests.lab.world import Lab

_numbers = itertools.count(7001)
PATH = "/run/lab/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


POOL = """
default_profile = "nat"
[accounting]
interval_seconds = 1
[pool]
slots = {slots}
ready = 1
wait_seconds = {wait}
drain_seconds = 1
reserve_seconds = {reserve}
[nat]
rest_seconds = 0
"""


def pool(*, slots: int = 2, wait: float = 10, reserve: float = 100) -> str:
    return POOL.format(slots=slots, wait=wait, reserve=reserve)


def all_records(lab: Lab, job_id: str) -> list[Record]:
    """Return every record of a job, oldest first."""
    bodies = lab.run(python(READ)).stdout.encode().splitlines()
    return [one for one in map(decode, bodies) if one.job.job_id == job_id]


class Child:
    """A process that a launcher started."""

    def __init__(self, launcher: Launcher, pid: int) -> None:
        self._launcher = launcher
        self.pid = pid
        """As processes of the lab see it."""

    def wait(self) -> JobResult:
        """Wait for its end; nothing else can be asked of its launcher meanwhile."""
        said = self._launcher.order(do="wait", pid=self.pid)
        return JobResult(seconds=0, scratch="", wrapper_error="", **said)

    result = wait

    @property
    def network(self) -> str:
        """Wait until it is in a sandbox and return the name of its network."""
        host = self._launcher.lab.netns().readlink()

        def seen() -> str:
            now = self._launcher.lab.path(f"/proc/{self.pid}/ns/net").readlink()
            return "" if now == host else str(now)

        return str(until(seen, "a job in its sandbox"))

    def signal(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        self._launcher.lab.run(["kill", f"-{number}", str(self.pid)])


class Launcher:
    """A process of root by which a batch system starts others: `name` is its program, or a path."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        inside = f"{STATE}/launcher{next(_numbers)}"
        code = str(ROOT / "tests/lab/launcher.py")
        self.process: Process = lab.start([str(LAUNCHERS / name), "-I", "-S", code, inside])
        until(lab.path(inside).exists, "a launcher")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(60)
        until(lambda: self._socket.connect_ex(str(lab.path(inside))) == 0, "a launcher")

    def order(self, **words: Any) -> dict[str, Any]:
        """Give one order and return its answer."""
        self._socket.send(json.dumps(words).encode())
        answer: dict[str, Any] = json.loads(self._socket.recv(1 << 20))
        return answer

    def start(
        self, command: Sequence[str], *, user: str = "", cwd: str = "/", stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Child:  # fmt: skip
        """Start a process, as root if no user is named."""
        account = USERS.get(user)
        groups = [account.uid, *account.groups] if account else []
        given = {"PATH": PATH, "LANG": "C.UTF-8", **(env or {})}
        answer = self.order(
            do="start", command=list(command), groups=groups, cwd=cwd, stdin=stdin, env=given
        )
        return Child(self, answer["pid"])

    def end(self) -> None:
        """End the launcher; what it started goes on."""
        self._socket.close()
        self.process.wait()


class Starter(Launcher):
    """A condor_starter with one job; `ad` adds to the ordinary ad."""

    def __init__(
        self, lab: Lab, *, user: str = "alice", ad: Mapping[str, AdValue] | None = None,
        program: str = "condor_starter",
    ) -> None:  # fmt: skip
        super().__init__(lab, program)
        self.user = user
        self._spec = JobSpec(next(_numbers), ("job",), user, "htcondor", None, 0o022, {}, ad)
        self.job_id = self._spec.job_id
        self.scratch = f"/var/lib/condor/execute/dir_{self.process.pid_inside}"
        there = lab.path(self.scratch)
        there.mkdir(parents=True, mode=0o700)
        os.chown(there, USERS[user].uid, USERS[user].uid)
        self.rewrite(".job.ad", self._spec.job_ad())
        self.rewrite(".machine.ad", self._spec.machine_ad())

    def rewrite(self, name: str, text: str) -> None:
        """Write one of the ads in the scratch directory, as the job's user may."""
        file = self.lab.path(self.scratch) / name
        file.write_text(text)
        os.chown(file, USERS[self.user].uid, USERS[self.user].uid)

    @property
    def env(self) -> dict[str, str]:
        """What the starter tells everything that it starts."""
        return {
            "_CONDOR_JOB_AD": f"{self.scratch}/.job.ad",
            "_CONDOR_MACHINE_AD": f"{self.scratch}/.machine.ad",
            "_CONDOR_SCRATCH_DIR": self.scratch,
            "_CONDOR_SLOT": "slot1_1",
        }

    def start_hook(self) -> Child:
        """Start the prepare hook with the job's ad on stdin."""
        return self.start(
            [f"{WRAPPERS}/lark-prepare"], user=self.user, cwd=self.scratch,
            stdin=self._spec.job_ad(), env=self.env,
        )  # fmt: skip

    def prepare(self) -> tuple[int, str] | None:
        """Run the prepare hook; returns its code and words, None if it had none."""
        done = self.start_hook().wait()
        assert done.status == 0, done
        if not done.stdout:
            return None
        found = re.fullmatch(r'HookStatusCode = (\d+)\nHookStatusMessage = "(.*)"\n', done.stdout)
        assert found, done
        return int(found[1]), found[2]

    def run(self, command: Sequence[str]) -> Child:
        """Start a process through the wrapper, as the starter does."""
        return self.start(
            [f"{WRAPPERS}/lark-run", *command], user=self.user, cwd=self.scratch, env=self.env
        )
