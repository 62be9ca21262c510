"""The laboratory: a worker, a campus and an internet server, and everything that runs on them.

::

    with Lab() as lab:
        agent = lab.agent('default_profile = "nat"')
        done = lab.job(["curl", "-sf", "http://server.campus.test/bytes/1000"], user="alice")
        lab.run(["lark", "jobs"])

A lab is a set of Linux namespaces (`tests.lab.init`, `filesystem`, `topology`); making one takes a
fraction of a second, any number can stand side by side, and leaving the `with` block, or dying in
it, ends every process and with them namespaces, interfaces, mounts and pins.

Commands run on a host of `topology.HOSTS` as a user of `filesystem.USERS`, with a small
environment of their own. Paths given to them are the lab's; `Lab.path` says where the test
finds the same file. Daemons are started as systemd would (Type=notify): the call returns when they
say that they are ready.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.lab.filesystem import ROOT, STATE, USERS, WRAPPERS
from tests.lab.jobs import JobHandle, JobResult, JobSpec, Scheduler
from tests.lab.process import ForkServer, LabError, Process
from tests.lab.topology import CAMPUS, FAR, HOSTS, LINKS, namespace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from tests.lab.jobs import AdValue

PROGRAMS = Path(sys.executable).parent
"""Where the installed lark, lark-agent and lark-collector are."""
SEARCH = f"{WRAPPERS}:{STATE}/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{PROGRAMS}"
READY_SECONDS = 30.0


class Lab:
    """One laboratory; a context manager.

    `mtu` is that of the worker's uplink; the router sends `delegated` prefixes on to the worker.
    With `second` there is a host "worker2" as well, to which it sends `delegated2`.
    """

    def __init__(
        self, *, ipv6: bool = True, mtu: int = 1500, delegated: Sequence[str] = (),
        second: bool = False, delegated2: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._second = second
        self._options = {
            "ipv6": ipv6, "mtu": mtu, "delegated": list(delegated),
            "second": second, "delegated2": list(delegated2),
        }  # fmt: skip
        self._numbers = itertools.count(1)
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        self._server = ForkServer(self._options)
        try:
            command = [sys.executable, "-S", "-m", "tests.lab.far"]
            starting = [
                self._begin_service([*command, *(["--dns"] if host is CAMPUS else [])], host.name)
                for host in FAR
            ]
            for process, notify in starting:
                _await_ready(process, notify)
            self._dropped_before = self._dropped()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything in the lab."""
        self._server.close()
        for process in self._processes:
            process.close()
        self._processes.clear()

    @property
    def pid(self) -> int:
        """Process 1 of the lab, as seen from outside."""
        return self._server.pid

    def path(self, inside: str | Path) -> Path:
        """Return where the test finds a file of the lab (links in it must be relative)."""
        return Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    def netns(self, host: str = "worker") -> Path:
        """Return the path of a host's network namespace, for setns(2) from outside."""
        inside = namespace(host)
        if inside.startswith("/proc/1/"):
            return Path(f"/proc/{self.pid}/ns/net")
        return self.path(inside)

    def lost(self) -> int:
        """Return how many packets the lab's own links have dropped since the start.

        Comparisons of counters with captures hold only while this is 0: see `topology`.
        """
        return self._dropped() - self._dropped_before

    def start(
        self,
        command: Sequence[str],
        *,
        host: str = "worker",
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: str = "",
    ) -> Process:
        """Start a command and return at once."""
        namespace(host)  # refuses an unknown one here, not in the forked child
        account = USERS[user]
        given = {
            "PATH": SEARCH, "HOME": account.home, "USER": user, "LOGNAME": user,
            "SHELL": "/bin/sh", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **(env or {}),
        }  # fmt: skip
        request = {
            "command": list(command), "host": host, "cwd": cwd, "env": given,
            "uid": account.uid, "groups": [account.uid, *account.groups],
        }  # fmt: skip
        process = self._server.start(request, stdin.encode())
        self._processes.append(process)
        return process

    def dismiss(self, process: Process) -> None:
        """Give back what a process that has ended still costs, for who starts thousands."""
        self._processes.remove(process)
        process.close()

    def run(
        self,
        command: Sequence[str],
        *,
        host: str = "worker",
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: str = "",
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; raises LabError if it fails (and `check`) or takes too long."""
        process = self.start(command, host=host, user=user, env=env, cwd=cwd, stdin=stdin)
        status = process.wait(timeout)
        done = subprocess.CompletedProcess(list(command), status, process.stdout, process.stderr)
        self.dismiss(process)
        if check and status != 0:
            raise LabError(
                f"{user}@{host}: {list(command)} ended with {status}\n{done.stdout}{done.stderr}"
            )
        return done

    def service(
        self,
        command: Sequence[str],
        *,
        host: str = "worker",
        env: Mapping[str, str] | None = None,
        timeout: float = READY_SECONDS,
    ) -> Process:
        """Start a daemon and wait until it says READY=1 on $NOTIFY_SOCKET, as systemd would.

        Nobody listens on that socket afterwards: later messages find it gone.
        """
        process, notify = self._begin_service(command, host, env)
        _await_ready(process, notify, timeout)
        return process

    def agent(
        self, config: str = "", *, host: str = "worker", env: Mapping[str, str] | None = None
    ) -> Process:
        """Start `lark-agent run` on a worker with a configuration text (empty: none at all)."""
        return self.service([*self._daemon("lark-agent", config)], host=host, env=env)

    def collector(
        self, config: str = "", *, host: str = "worker", insecure: bool = True
    ) -> Process:
        """Start `lark-collector run` with a configuration text; with TLS only if told so."""
        text = f"insecure = true\n{config}" if insecure else config
        return self.service([*self._daemon("lark-collector", text)], host=host)

    def start_job(
        self,
        command: Sequence[str],
        *,
        user: str = "alice",
        ad: Mapping[str, AdValue] | str | None = None,
        env: Mapping[str, str] | None = None,
        scheduler: Scheduler = "htcondor",
        wrapper: str | None = f"{WRAPPERS}/lark-run",
        umask: int = 0o022,
        host: str = "worker",
        listen: Sequence[str] = (),
        hook: str = "",
    ) -> JobHandle:
        """Start a job through the wrapper as a batch system does; see `tests.lab.starter`.

        Its starter listens for it on the addresses `listen`, after it has run its prepare `hook`.
        `ad` adds to or replaces attributes of an ordinary job ad, or, as text, is the whole ad.
        `wrapper` None starts the job bare.
        """
        number = next(self._numbers)
        spec = JobSpec(
            number, tuple(command), user, scheduler, wrapper, umask, dict(env or {}), ad,
            tuple(listen), hook,
        )  # fmt: skip
        starter = self.start(
            [spec.launcher, "-I", "-S", str(ROOT / "tests/lab/starter.py")],
            host=host,
            stdin=spec.to_json(),
        )
        return JobHandle(starter, self.path(STATE / "jobs" / f"{number}.json"), spec.job_id)

    def start_jobs(self, command: Sequence[str], users: Sequence[str]) -> list[JobHandle]:
        """Start an ordinary job for each of the users at once; results come when all have ended."""
        specs = [
            JobSpec(
                next(self._numbers), tuple(command), user, "htcondor", f"{WRAPPERS}/lark-run",
                0o022, {}, None, (), "",
            )
            for user in users
        ]  # fmt: skip
        starter = self.start(
            [specs[0].launcher, "-I", "-S", str(ROOT / "tests/lab/starter.py")],
            stdin=f"[{','.join(spec.to_json() for spec in specs)}]",
        )
        reports = [self.path(STATE / "jobs" / f"{spec.number}.json") for spec in specs]
        return [
            JobHandle(starter, report, spec.job_id)
            for spec, report in zip(specs, reports, strict=True)
        ]

    def job(
        self,
        command: Sequence[str],
        *,
        user: str = "alice",
        ad: Mapping[str, AdValue] | str | None = None,
        env: Mapping[str, str] | None = None,
        scheduler: Scheduler = "htcondor",
        wrapper: str | None = f"{WRAPPERS}/lark-run",
        umask: int = 0o022,
        timeout: float = 60,
    ) -> JobResult:
        """Run a job to its end; a job that fails is a result, not an error."""
        handle = self.start_job(
            command, user=user, ad=ad, env=env, scheduler=scheduler, wrapper=wrapper, umask=umask
        )
        return handle.result(timeout)

    def _dropped(self) -> int:
        total = 0
        for host in HOSTS if self._second else HOSTS[:-1]:
            for link in json.loads(self.run(["ip", "-s", "-j", "link"], host=host).stdout):
                if link["ifname"] in LINKS:
                    # the sender of a veth counts every frame that the other end had no room for;
                    # the receiver also counts frames that nobody there wanted
                    total += link["stats64"]["tx"]["dropped"]
        return total

    def _daemon(self, name: str, config: str) -> list[str]:
        command = [str(PROGRAMS / name), "run"]
        if not config:
            return command
        inside = STATE / f"{name}.{next(self._numbers)}.toml"
        self.path(inside).write_text(config)
        return [*command, "--config", str(inside)]

    def _begin_service(
        self, command: Sequence[str], host: str, env: Mapping[str, str] | None = None
    ) -> tuple[Process, socket.socket]:
        inside = STATE / "notify" / str(next(self._numbers))
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(str(self.path(inside)))
        given = {"NOTIFY_SOCKET": str(inside), **(env or {})}
        return self.start(command, host=host, env=given, cwd=str(ROOT)), notify


def _await_ready(process: Process, notify: socket.socket, timeout: float = READY_SECONDS) -> None:
    """Wait for READY=1; raises LabError with the daemon's own words if it ends first or is late."""
    name, until = " ".join(process.command), time.monotonic() + timeout
    with contextlib.closing(notify):
        while True:
            left = max(0.0, until - time.monotonic())
            ready = select.select([notify.fileno(), process.exit_pipe], [], [], left)[0]
            if notify.fileno() in ready and b"READY=1" in notify.recv(4096).split(b"\n"):
                return
            if ready == [process.exit_pipe]:
                status = process.wait()
                raise LabError(f"{name} ended with {status} before it was ready\n{_words(process)}")
            if not ready:
                raise LabError(f"{name} is not ready after {timeout} s\n{_words(process)}")


def _words(process: Process) -> str:
    return (process.stdout + process.stderr)[-4000:]
