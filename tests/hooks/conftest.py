"""A worker for the wrapper's tests: its binaries with their capability, and a job's user.

Everything lives in the `fresh_host`: `/run` is a tmpfs there, so binaries, scratch directory and
the agent's socket are in reach of an unprivileged user and end with the namespaces. Mounts of the
fresh host are shared, as systemd has them: what leaks out of a job's mount namespace is seen.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lark_agent.hooks
from lark_agent.hooks.install import MODE, PROGRAMS
from tests.conftest import CLONE_NEWNET, LIBC, MS_REC, check, mount
from tests.hooks.fake_agent import FakeAgent, granted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

USER = 1001
BINARIES = Path(lark_agent.hooks.__file__).parent / "native" / "bin"
MS_SHARED = 1 << 20
PLAIN_ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@dataclass
class Worker:
    """A host with the wrapper installed and a user's scratch directory."""

    run: Path
    enter: Path
    scratch: Path
    namespace: int
    """A sandbox's network, with lo, inside0 and inside1; the host has outside0 and outside1."""

    @property
    def prepare(self) -> Path:
        """HTCondor's hook, beside the others."""
        return self.run.with_name("lark-prepare")

    @property
    def beside(self) -> Path:
        """HTCondor's hook before files are transferred."""
        return self.run.with_name("lark-beside")

    @property
    def marker(self) -> Path:
        """What `mark` leaves behind: proof that a job ran."""
        return self.scratch / "the-job-ran"

    @property
    def mark(self) -> tuple[str, ...]:
        """Return a job that can be seen to have run."""
        return ("/usr/bin/touch", str(self.marker))

    def agent(
        self, reply: bytes | None = granted(), descriptors: Sequence[int] | None = None
    ) -> FakeAgent:
        """Return an agent; by default it grants the sandbox."""
        return FakeAgent(reply, [self.namespace] if descriptors is None else descriptors)

    def start(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        pass_fds: Sequence[int] = (),
        uid: int = USER,
        umask: int = 0o22,
    ) -> subprocess.Popen[bytes]:
        """Start a command as the job's user in the scratch directory, after `before`."""
        return subprocess.Popen(
            command,
            env=PLAIN_ENVIRONMENT if env is None else env,
            cwd=self.scratch,
            user=uid,
            group=uid,
            extra_groups=[],
            preexec_fn=before,  # noqa: PLW1509  short-lived children; only threads of ours exist
            pass_fds=pass_fds,
            umask=umask,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def execute(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        stdin: bytes = b"",
        pass_fds: Sequence[int] = (),
        uid: int = USER,
        umask: int = 0o22,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end; see `start`."""
        with self.start(
            *command, env=env, before=before, pass_fds=pass_fds, uid=uid, umask=umask
        ) as process:
            try:
                out, err = process.communicate(stdin, timeout=20)
            finally:
                process.kill()  # one that hangs fails its test and nothing else
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def wrapped(
        self, *command: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command through lark-run."""
        return self.execute(str(self.run), *command, env=env)

    def assert_refused(self, done: subprocess.CompletedProcess[bytes], *reasons: str) -> None:
        """Check that `mark` did not run, and that one line says why."""
        assert not self.marker.exists()
        assert done.returncode == 125
        line = done.stderr.decode()
        assert line.startswith("lark-run: ")
        assert line.endswith("\n")
        assert line.count("\n") == 1
        for reason in reasons:
            assert reason in line


def make_namespace() -> int:
    """Return a descriptor of a new network namespace with a pair of interfaces."""
    made: list[int | BaseException] = []

    def make() -> None:
        try:
            check(LIBC.unshare(CLONE_NEWNET), "unshare")
            add_interfaces("inside0", "inside1")
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except (OSError, subprocess.SubprocessError) as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], BaseException):
        raise made[0]
    return made[0]


def add_interfaces(one: str, other: str) -> None:
    subprocess.run(["ip", "link", "add", one, "type", "veth", "peer", other], check=True)


def allow_sys_admin(path: Path) -> None:
    """Set the file capability cap_sys_admin+ep (vfs_cap_data, revision 2, effective)."""
    value = struct.pack("<5I", 0x02000001, 1 << 21, 0, 0, 0)
    os.setxattr(path, "security.capability", value)


@pytest.fixture
def worker(fresh_host: Path) -> Iterator[Worker]:
    """Install the wrapper on the fresh host."""
    check(LIBC.mount(b"none", b"/", None, MS_REC | MS_SHARED, None), "share mounts")
    place = Path("/run/libexec")
    place.mkdir(mode=0o755)
    for name in PROGRAMS:
        shutil.copy(BINARIES / name, place / name)
        (place / name).chmod(MODE)
    allow_sys_admin(place / "lark-enter")
    scratch = Path("/run/scratch")
    scratch.mkdir(mode=0o700)
    os.chown(scratch, USER, USER)
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
    add_interfaces("outside0", "outside1")
    namespace = make_namespace()
    yield Worker(place / "lark-run", place / "lark-enter", scratch, namespace)
    os.close(namespace)
