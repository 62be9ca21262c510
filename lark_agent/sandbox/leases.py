"""IPv4 addresses by DHCP: udhcpc, one process a sandbox, from before the first job to the end.

`obtain` starts it in the sandbox's namespace and waits: udhcpc stays in the foreground until it has
a lease, fails if it gets none, and goes on in the background, where it renews without the agent.
`lease.sh` puts the address on eth0 with the lifetime of the lease.

Two files tell of a lease: one below the agent's run directory while the sandbox lives, and one
below its state directory, which stays. A slot has the same MAC address whenever it is built, so the
server knows its client; the client asks for the address it had before, and nothing is released at
the end. A worker's leases therefore stay few: one a slot and network.

Why udhcpc: it is one process of 2 MB that daemonises when it has a lease, its exit status says
whether it has one, and all state is in the files of its script. dhcpcd keeps five processes for
each sandbox and files by the interface's name, which is eth0 in every sandbox; the DHCP client of
pyroute2 is a Python interpreter for each, and ended after the first lease when it was tried (0.9).

The client is root with three capabilities: it reads what any host on that network says.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lark_agent.errors import KernelError, LarkError, PrerequisiteError
from lark_agent.linux import namespaces, process
from lark_agent.sandbox import addressing, inside
from lark_agent.sandbox.addressing import INSIDE

if TYPE_CHECKING:
    from lark_agent.sandbox.connectivity import Sandbox

_SCRIPT = Path(__file__).with_name("lease.sh")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_CLIENT = "udhcpc"
_DISCOVERIES, _SECONDS_BETWEEN = 4, 1
_CHECK = "-a300"
"""Look for another holder of the address by ARP, for 300 ms."""
_SECONDS = 12
"""Longer than all discoveries; a client that is still there then waits to try again."""
_CONFINED = (
    "setpriv", "--no-new-privs", "--inh-caps=-all",
    "--bounding-set=-all,+net_admin,+net_raw,+net_bind_service",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lease:
    """What a server gave."""

    address: IPv4Interface
    resolvers: tuple[IPv4Address, ...]

    @classmethod
    def read(cls, file: Path) -> Lease | None:
        """Return what a file tells, None if there is none or it makes no sense."""
        try:
            lines = file.read_text(encoding="ascii").splitlines()
            words = dict(line.split("=", 1) for line in lines)
            resolvers = tuple(map(IPv4Address, words["resolvers"].split()))
            return cls(IPv4Interface(words["address"]), resolvers)
        except (OSError, ValueError, KeyError):
            return None


class Leases:
    """The leases of one network's sandboxes."""

    flags = inside.Upkeep.DHCP
    ipv6 = False

    def __init__(self, network: str, run_directory: Path, state_directory: Path) -> None:
        self._network = network
        self._running = run_directory / "dhcp"
        self._kept = state_directory / "leases" / network

    def check(self) -> None:
        """Look for the client; raises PrerequisiteError if there is none."""
        if not any((Path(directory) / _CLIENT).exists() for directory in _PATH.split(":")):
            raise PrerequisiteError(
                f"network '{self._network}' has its addresses by DHCP and there is no {_CLIENT} "
                "here; install udhcpc (a part of busybox)"
            )

    def obtain(self, sandbox: Sandbox) -> IPv4Address:
        """Get a lease and keep it renewed; raises KernelError if there is none to be had."""
        for directory in (self._running, self._kept):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _live(self._running, sandbox.name).unlink(missing_ok=True)
        known = Lease.read(self._kept / str(sandbox.slot))
        said = self._start(sandbox, known)
        lease = Lease.read(_live(self._running, sandbox.name))
        if lease is None:
            raise KernelError(
                f"getting an address by DHCP on network '{self._network}' as {sandbox.mac}",
                said or "the server's answer makes no sense",
                "is a DHCP server there, and does it know or take this client?",
            )
        return lease.address.ip

    def keep(self, sandbox: Sandbox) -> None:
        """See that the lease of a sandbox of an earlier agent is renewed."""
        if _client(self._running, sandbox.name) is None:
            lease = Lease.read(_live(self._running, sandbox.name))
            self._start(sandbox, lease, patient=True)

    def release(self, sandbox: Sandbox) -> None:
        """Stop renewing; the server is not told, the slot will want its address again."""
        stop(self._running.parent, sandbox.name)

    def _start(self, sandbox: Sandbox, wanted: Lease | None, *, patient: bool = False) -> str:
        """Run the client until it is in the background or has failed; returns what it said.

        A patient one does not fail: without an answer it goes on asking in the background.
        """
        with tempfile.TemporaryFile() as output:
            command = self._command(sandbox, wanted, patient=patient)
            environment = {
                "PATH": _PATH,
                "LARK_LEASE": str(_live(self._running, sandbox.name)),
                "LARK_KEPT": str(self._kept / str(sandbox.slot)),
            }
            # a file, not a pipe: the client in the background still holds it
            namespaces.run_inside(sandbox.name, lambda: _run(command, environment, output))
            output.seek(0)
            return "; ".join(output.read(4096).decode(errors="replace").splitlines()[1:])

    def _command(self, sandbox: Sandbox, wanted: Lease | None, *, patient: bool) -> list[str]:
        before = [] if wanted is None else ["-r", str(wanted.address.ip)]
        # a patient one has the address already, and would take its own answer for another host's
        mode = ["-b", "-t", "1"] if patient else ["-n", "-t", str(_DISCOVERIES), _CHECK]
        return [
            *_CONFINED, _CLIENT, "-i", INSIDE, "-s", str(_SCRIPT), *mode, *before,
            "-p", str(_pid_file(self._running, sandbox.name)), "-T", str(_SECONDS_BETWEEN),
        ]  # fmt: skip


def _run(command: list[str], environment: dict[str, str], output: IO[bytes]) -> None:
    """Run a child in this thread's network namespace (by vfork: nothing is copied)."""
    try:
        subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            cwd="/", check=False, timeout=_SECONDS, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        output.write(f"\nstopped after {_SECONDS} s".encode())
    except OSError as error:
        raise KernelError(f"running {command[0]}", str(error.strerror)) from error


def stop(run_directory: Path, name: str) -> None:
    """End the client of a sandbox, whoever started it. Repeatable."""
    running = run_directory / "dhcp"
    found = _client(running, name)
    if found is not None:
        try:
            descriptor = process.open_pid(found)
        except LarkError:
            descriptor = -1
        if descriptor >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)
    _pid_file(running, name).unlink(missing_ok=True)
    _live(running, name).unlink(missing_ok=True)


def _client(running: Path, name: str) -> int | None:
    """Return the pid of the client in this sandbox, None if it does not run.

    A number in a file may be another process's by now: it must be in the sandbox, and be root's
    client. A job there is not root.
    """
    try:
        number = int(_pid_file(running, name).read_text(encoding="ascii"))
        there = namespaces.identity(namespaces.path(name))
    except (OSError, ValueError):
        return None
    is_client = process.command_and_user(number) == (_CLIENT, 0)
    return number if is_client and process.network_identity(number) == there else None


def _pid_file(running: Path, name: str) -> Path:
    return running / f"{name}.pid"


def _live(running: Path, name: str) -> Path:
    return running / f"{name}.lease"


def resolvers(run_directory: Path, slot: int) -> tuple[IPv4Address, ...]:
    """Return the resolvers that the server named for a living sandbox."""
    lease = Lease.read(_live(run_directory / "dhcp", addressing.name(slot)))
    return lease.resolvers if lease else ()
