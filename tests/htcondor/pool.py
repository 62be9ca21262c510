"""A pool of real HTCondor daemons on the laboratory's worker.

::

    with Lab() as lab:
        lab.agent(config)
        pool = Pool(lab, root.made("trixie"))
        job = pool.submit("echo hello")
        assert job.ended().status == 0
        pool.run(["condor_q"], user="alice")

Master, collector, negotiator, schedd and startd run in a Debian of their own (`tests.htcondor.root`
under an overlay) with mounts of their own (`enter.sh`), and in the worker's network, pid and host
name namespaces: for the agent, which runs beside them in the lab as always, they are the worker's
batch system. They listen on the worker's uplink address. /run/lark and the wrapper's directory are
the lab's, and alice and bob have the same numbers.

Intervals are as short as the daemons bear, so that a job starts a second or two after its
submission. HTCondor's control groups are off: they are the machine's, not the lab's.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from typing import TYPE_CHECKING, Any

from lark_agent.hooks.htcondor_config import BESIDE, wrapping
from tests.htcondor.jobs import CondorJob, submit_text
from tests.htcondor.machine import DOMAIN, Machine, home
from tests.lab.filesystem import USERS
from tests.lab.process import LabError
from tests.lab.topology import WORKER

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.lab.world import Lab

PROGRAMS = "/usr/libexec/lark"
WRAPPER = f"{PROGRAMS}/lark-run"
"""As the pool's machine sees them."""
POOL = f"""
CONDOR_HOST = {WORKER.ipv4}
NETWORK_INTERFACE = {WORKER.ipv4}
UID_DOMAIN = {DOMAIN}
FILESYSTEM_DOMAIN = {DOMAIN}
NUM_CPUS = 16
MEMORY = 16384
BASE_CGROUP =
SCHEDD_INTERVAL = 1
SCHEDD_MIN_INTERVAL = 1
NEGOTIATOR_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
NEGOTIATOR_MIN_INTERVAL = 1
UPDATE_INTERVAL = 2
STARTER_UPDATE_INTERVAL = 2
STARTER_INITIAL_UPDATE_INTERVAL = 1
SHADOW_QUEUE_UPDATE_INTERVAL = 2
PERIODIC_EXPR_INTERVAL = 2
JOB_START_DELAY = 0
# `Pool` does what of it concerns the worker's network; the rest would be the machine's
ENABLE_KERNEL_TUNING = false
# a proxy is copied: delegation fails in Debian 13's own build, without lark-run too
DELEGATE_JOB_GSI_CREDENTIALS = false
SEC_CREDENTIAL_DIRECTORY_OAUTH = /var/lib/condor/oauth
DAEMON_LIST = $(DAEMON_LIST), CREDD
"""
WRAPPED = f"""
USER_JOB_WRAPPER = {WRAPPER}
{BESIDE}
"""
LARK = "\n".join([*wrapping(PROGRAMS), ""])
"""What of `lark-agent htcondor-config` decides whether and where jobs start."""
TUNED_PORTS = "1024 65535"
"""What the master's tuning script makes of the worker's ephemeral ports."""
READY_SECONDS = 60.0


class Pool:
    """HTCondor on a lab's worker, started; it ends with the lab.

    `lark` is the text that a site would drop into config.d, `config` what it adds for itself.
    """

    def __init__(self, lab: Lab, root: Path, *, lark: str = LARK, config: str = "") -> None:
        self.lab = lab
        self.machine = Machine(lab, root)
        self._numbers = itertools.count(1)
        for name, text in {"40-pool": POOL, "50-lark": lark, "60-site": config}.items():
            self.configure(name, text)
        self.start()

    def configure(self, name: str, text: str) -> None:
        """Write a file of config.d; running daemons read it at `reconfigure`."""
        self.machine.path(f"/etc/condor/config.d/{name}").write_text(text)

    def start(self) -> None:
        """Start the master and wait until the worker's slot is known to the pool."""
        self.lab.run(["sysctl", "-q", "-w", f"net.ipv4.ip_local_port_range={TUNED_PORTS}"])
        self.master = self.machine.start(["condor_master", "-f"])
        with contextlib.suppress(LabError):
            self.await_true(lambda: bool(self._slots()), READY_SECONDS)
            return
        raise LabError(f"the pool does not come up:\n{self.logs()}")

    def reconfigure(self) -> None:
        """Let all daemons read their configuration again."""
        self.run(["condor_reconfig"])

    def run(
        self,
        command: Sequence[str],
        *,
        user: str = "root",
        cwd: str = "/",
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the pool's machine."""
        return self.machine.run(command, user=user, cwd=cwd, check=check, timeout=timeout)

    def submit(
        self,
        script: str,
        *,
        user: str = "alice",
        inputs: Mapping[str, str] | None = None,
        executable: str = "",
        **commands: str | int,
    ) -> CondorJob:
        """Submit a shell script (or `executable`) with file transfer; see `CondorJob`.

        `inputs` are files beside it; `commands` add to or replace lines of the submit file, a name
        that starts with `my_` being an attribute of the job. The job finds the folder it was
        submitted from in $SUBMITTED_FROM, since it runs on the same machine.
        """
        folder = f"{home(user)}/{next(self._numbers)}"
        here = self.machine.path(folder)
        here.mkdir(parents=True)
        files = {"job.sh": f"#!/bin/sh\n{script}\n", **(inputs or {})}
        for name, text in files.items():
            (here / name).write_text(text)
            (here / name).chmod(0o755)
        where = {"environment": f"SUBMITTED_FROM={folder}"}
        (here / "job.sub").write_text(
            submit_text(executable or "job.sh", inputs or {}, {**where, **commands})
        )
        for file in (here, *here.iterdir()):
            os.chown(file, USERS[user].uid, USERS[user].uid)
        said = self.run(["condor_submit", "-terse", "job.sub"], user=user, cwd=folder).stdout
        return CondorJob(self, said.split()[0], user, folder)

    def query(self, *command: str) -> list[dict[str, Any]]:
        """Return the ads that condor_q, condor_history or condor_status prints."""
        said = self.run([*command, "-json"]).stdout.strip()
        ads: list[dict[str, Any]] = json.loads(said) if said else []
        return ads

    def records(self, number: str) -> list[dict[str, Any]]:
        """Return the agent's records of a job, by the number that people know."""
        said = self.lab.run(["lark", "jobs", "--limit", "0", "--json"]).stdout
        jobs = json.loads(said)["jobs"]
        return [job for job in jobs if job["job_id"].split("#")[1:2] == [number]]

    def record(self, number: str) -> dict[str, Any]:
        """Wait for the one final record of a job; raises LabError."""
        with contextlib.suppress(LabError):
            self.await_true(lambda: any(record["final"] for record in self.records(number)))
        records = self.records(number)
        if len(records) != 1 or not records[0]["final"]:
            raise LabError(f"job {number} has not one final record but {records}")
        return records[0]

    def host(self) -> str:
        """Return the worker's own network namespace, as jobs would name it."""
        return self.lab.run(["readlink", "/proc/1/ns/net"]).stdout.strip()

    def await_true(self, true: Callable[[], bool], timeout: float = 60) -> None:
        """Ask until it is so; raises LabError with what the daemons logged when it is not."""
        until = time.monotonic() + timeout
        while not true():
            if time.monotonic() > until:
                raise LabError(f"not so after {timeout} s; the daemons say:\n{self.logs()}")
            time.sleep(0.1)

    def logs(self, lines: int = 8) -> str:
        """Return the end of the logs that a job's start leaves traces in."""
        folder = self.machine.path("/var/log/condor")
        tails = [
            f"== {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
            for file in sorted(folder.glob("S[ht]a*Log*"))
        ]
        return "\n".join(tails)

    def _slots(self) -> list[dict[str, Any]]:
        done = self.run(["condor_status", "-json"], check=False)
        found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
        return found
