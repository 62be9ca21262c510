"""Processes in a lab, as the test outside sees them.

`ForkServer` speaks to the lab's process 1 (`tests.lab.init`). Output goes to unnamed temporary
files, not pipes, so that nobody has to drain it while a process runs, and it can be read at any
time. A process is named by its pidfd: signals cannot hit a stranger after a pid was used again.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.lab.filesystem import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

START_SECONDS = 30.0


class LabError(Exception):
    """The laboratory, or something that a test started in it, did not do what it must."""


class Process:
    """One process in a lab."""

    def __init__(
        self, command: Sequence[str], pid_inside: int, pidfd: int, status: int,
        output: tuple[IO[bytes], IO[bytes]],
    ) -> None:  # fmt: skip
        self.command = tuple(command)
        self.pid_inside = pid_inside
        """As processes of the lab see it."""
        self.pid = pid_of(pidfd)
        """As the test sees it."""
        self.status: int | None = None
        """Exit status, or minus the signal that ended it; None while it runs."""
        self._pidfd, self._pipe, self._output = pidfd, status, output

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return _text(self._output[0])

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return _text(self._output[1])

    @property
    def exit_pipe(self) -> int:
        """A descriptor that is readable once the process has ended."""
        return self._pipe

    def poll(self) -> int | None:
        """Return the exit status if it has ended."""
        if self.status is None and select.select([self._pipe], [], [], 0)[0]:
            return self.wait()
        return self.status

    def wait(self, timeout: float = 60) -> int:
        """Wait for its end and return its status; raises LabError after `timeout` seconds."""
        if self.status is not None:
            return self.status
        if not select.select([self._pipe], [], [], timeout)[0]:
            raise LabError(f"{self.command} still runs after {timeout} s\n{self.stderr[-4000:]}")
        text = os.read(self._pipe, 64)
        if not text:
            raise LabError(f"the lab ended before {self.command} did")
        self.status = int(text)
        return self.status

    def signal(self, number: int) -> None:
        """Send a signal."""
        signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self, timeout: float = 30) -> int:
        """Ask it to end and wait until it has."""
        if self.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def close(self) -> None:
        """Give back descriptors; the process itself goes on."""
        os.close(self._pidfd)
        os.close(self._pipe)
        for file in self._output:
            file.close()


class ForkServer:
    """The way into one lab; closing it ends the lab and everything in it."""

    def __init__(self, options: Mapping[str, object]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(START_SECONDS)
        with tempfile.TemporaryFile() as errors:
            # setns, mounts and network set-up need root; -S and -E because process 1 uses only the
            # standard library, and must not depend on the caller's environment
            self._unshare = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork",
                 "--kill-child=KILL", sys.executable, "-S", "-m", "tests.lab.init",
                 json.dumps(options), str(theirs.fileno())],
                pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL,
                stdout=errors, stderr=errors, start_new_session=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
            theirs.close()
            self._control = ours
            self._lock = threading.Lock()
            try:
                _, pidfd = self._answer()
            except LabError as error:
                self.close()
                raise LabError(f"the lab did not start: {_text(errors).strip()}") from error
        self.pid = pid_of(pidfd)
        """Process 1 of the lab, as the test sees it."""
        os.close(pidfd)

    def start(self, request: Mapping[str, Any], stdin: bytes) -> Process:
        """Start one process in the lab; see `tests.lab.init` for the request."""
        inward, outward = os.pipe()
        output = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  closed by Process.close
        with tempfile.TemporaryFile() as given:
            given.write(stdin)
            given.seek(0)
            fds = [given.fileno(), output[0].fileno(), output[1].fileno(), outward]
            with self._lock:
                socket.send_fds(self._control, [json.dumps(request).encode()], fds)
                answer, pidfd = self._answer()
        os.close(outward)
        return Process(request["command"], answer["pid"], pidfd, inward, output)

    def close(self) -> None:
        """End the lab and wait until the kernel has killed everything in it."""
        self._control.close()
        self._unshare.wait(START_SECONDS)

    def _answer(self) -> tuple[dict[str, Any], int]:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise LabError(f"process 1 of the lab does not answer: {error}") from error
        if not data:
            raise LabError("process 1 of the lab has ended")
        return json.loads(data), fds[0]


def pid_of(pidfd: int) -> int:
    """Return the pid in this process's own pid namespace."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise LabError(f"descriptor {pidfd} is not a pidfd")


def _text(file: IO[bytes]) -> str:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")
