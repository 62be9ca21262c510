"""The machine that HTCondor is installed on: a Debian's root, with the lab's worker around it.

Its processes have mounts of their own (`enter.sh`) and everything else from the worker. They are
started through nsenter, hence they are children of the lab's process 1, as a service's are of the
machine's.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.filesystem import ROOT, STATE, USERS
from tests.lab.process import LabError
from tests.lab.topology import WORKER

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence

    from tests.lab.process import Process
    from tests.lab.world import Lab

ACCOUNTS = ("alice", "bob")
DOMAIN = "campus.test"
HOSTS = f"127.0.0.1 localhost\n::1 localhost\n{WORKER.ipv4} worker1.{DOMAIN} worker1\n"
OWNED = ("run/condor", "run/lock/condor", "var/log/condor", "var/lib/condor",
         "var/lib/condor/execute", "var/lib/condor/spool", "var/spool/condor")  # fmt: skip
"""What systemd and the package's tmpfiles.d make at boot; the procd spins without its own."""
OAUTH = "/var/lib/condor/oauth"
"""Where the credd keeps tokens."""
_ENTER = ROOT / "tests/htcondor/enter.sh"
_PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_START_SECONDS = 30.0


class Machine:
    """A Debian on the lab's worker; it ends with the lab."""

    def __init__(self, lab: Lab, root: Path) -> None:
        place = STATE / f"machine-{root.name}-{time.monotonic_ns()}"
        lab.path(place).mkdir()
        self._lab = lab
        self._holder = lab.start(
            ["unshare", "--mount", "--propagation", "private", "/bin/sh", str(_ENTER), str(root),
             str(place)]
        )  # fmt: skip
        until = time.monotonic() + _START_SECONDS
        while "ready" not in self._holder.stdout:
            if self._holder.poll() is not None or time.monotonic() > until:
                raise LabError(f"the machine for HTCondor is not ready: {self._holder.stderr}")
            time.sleep(0.01)
        self._fill()

    def path(self, inside: str) -> Path:
        """Return where the test finds a file of the machine (links in it must be relative)."""
        return Path(f"/proc/{self._holder.pid}/root") / inside.lstrip("/")

    def start(
        self,
        command: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> Process:
        """Start a command and return at once."""
        return self._lab.start(self._entered(command, user, cwd), env=self._environment(user, env))

    def run(
        self,
        command: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: str = "",
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; raises LabError if it fails (and `check`) or takes too long."""
        return self._lab.run(
            self._entered(command, user, cwd), env=self._environment(user, env),
            stdin=stdin, check=check, timeout=timeout,
        )  # fmt: skip

    def _entered(self, command: Sequence[str], user: str, cwd: str) -> list[str]:
        enter = ["nsenter", f"--target={self._holder.pid_inside}", "--mount", f"--wdns={cwd}"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        return [*enter, *(become if user != "root" else []), "--", *command]

    def _environment(self, user: str, env: Mapping[str, str] | None) -> dict[str, str]:
        return {"PATH": _PATH, "HOME": home(user), **(env or {})}

    def _fill(self) -> None:
        self.path("/etc/hosts").write_text(HOSTS)
        for name in ACCOUNTS:
            number = USERS[name].uid
            with self.path("/etc/passwd").open("a") as passwd:
                passwd.write(f"{name}:*:{number}:{number}::{home(name)}:/bin/sh\n")
            with self.path("/etc/group").open("a") as group:
                group.write(f"{name}:x:{number}:\n")
            self.path(home(name)).mkdir(mode=0o700)
            os.chown(self.path(home(name)), number, number)
        self.run(["install", "-d", "-o", "condor", "-g", "condor", "-m", "755",
                  *(f"/{folder}" for folder in OWNED)])  # fmt: skip
        self.run(["install", "-d", "-o", "root", "-g", "condor", "-m", "2770", OAUTH])


def home(user: str) -> str:
    """Return a user's home on the machine."""
    return "/root" if user == "root" else f"/home/{user}"
