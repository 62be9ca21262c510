"""Jobs: what a test says about one, and what it learns.

The batch system's side is played by `tests.lab.starter`, one process per job inside the lab; this
module writes its orders (JSON on stdin) and reads its report (a file in the lab). Ads are written
as HTCondor's starter does: one `Name = value` a line, old syntax.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psutil

from tests.lab.filesystem import LAUNCHERS, USERS
from tests.lab.process import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.lab.process import Process

AdValue = str | int | float | bool
Scheduler = Literal["htcondor", "slurm", "pbs", "lsf", "gridengine", "plain"]
_COMMANDS: dict[Scheduler, str] = {
    "htcondor": "condor_starter", "slurm": "slurmstepd", "pbs": "pbs_mom", "lsf": "res",
    "gridengine": "sge_shepherd", "plain": "starter",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One job as ordered; `ad` adds to the ordinary ad, or, as text, replaces it."""

    number: int
    command: tuple[str, ...]
    user: str
    scheduler: Scheduler
    wrapper: str | None
    umask: int
    env: dict[str, str]
    ad: Mapping[str, AdValue] | str | None
    listen: tuple[str, ...] = ()
    """Addresses of the worker on which the starter listens for the job."""
    hook: str = ""
    """What the starter runs before the job, and before it listens."""

    @property
    def job_id(self) -> str:
        """As the batch system names the job; empty at a prompt, where none does."""
        condor = f"submit1.campus.test#{self.number}.0#1700000000"
        unusual = {"htcondor": condor, "pbs": f"{self.number}.pbs1", "plain": ""}
        return unusual.get(self.scheduler, str(self.number))

    @property
    def launcher(self) -> str:
        """The program that starts it."""
        return str(LAUNCHERS / _COMMANDS[self.scheduler])

    def job_ad(self) -> str:
        """Return the text of .job.ad."""
        if isinstance(self.ad, str):
            return self.ad
        ordinary: dict[str, AdValue] = {
            "GlobalJobId": self.job_id, "ClusterId": self.number, "ProcId": 0,
            "Owner": self.user, "User": f"{self.user}@campus.test", "JobUniverse": 5,
            "Cmd": self.command[0], "RequestCpus": 1,
        }  # fmt: skip
        return _ad_text({**ordinary, **(self.ad or {})})

    def machine_ad(self) -> str:
        """Return the text of .machine.ad."""
        slot = f"slot1_{self.number}"
        return _ad_text({"Name": f"{slot}@worker1", "Machine": "worker1", "SlotID": 1})

    def to_json(self) -> str:
        """Return the starter's orders."""
        account = USERS[self.user]
        return json.dumps(
            {
                "number": self.number,
                "command": self.command,
                "user": self.user,
                "scheduler": self.scheduler,
                "wrapper": self.wrapper,
                "umask": self.umask,
                "env": self.env,
                "listen": self.listen,
                "hook": self.hook,
                "job_ad": self.job_ad(),
                "machine_ad": self.machine_ad(),
                "uid": account.uid,
                "groups": [account.uid, *account.groups],
                "home": account.home,
            }
        )


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended."""

    status: int
    """Exit status, or minus the signal that ended it."""
    stdout: str
    stderr: str
    seconds: float
    """From fork to end."""
    scratch: str
    """The job's directory, inside the lab."""
    wrapper_error: str
    """What the wrapper left in $_CONDOR_WRAPPER_ERROR_FILE."""


class JobHandle:
    """A job that was started."""

    def __init__(self, starter: Process, report: Path, job_id: str) -> None:
        self.starter = starter
        """The job's parent."""
        self.job_id = job_id
        """As the batch system names the job, unless the test gave another ad."""
        self._report = report

    @property
    def pid(self) -> int:
        """The process that the batch system forked (wrapper, then job), as the test sees it."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            children = psutil.Process(self.starter.pid).children()
            if children:
                return children[0].pid
            time.sleep(0.002)  # the starter is still preparing the scratch directory
        raise LabError(f"no job was forked\n{self.starter.stderr}")

    @property
    def listening(self) -> list[tuple[str, int]]:
        """Address and port of each of the starter's listeners."""
        file, until = self._report.with_suffix(".listening"), time.monotonic() + 10
        while not file.exists():
            if time.monotonic() > until:
                raise LabError(f"the starter does not listen\n{self.starter.stderr}")
            time.sleep(0.002)
        return [(address, port) for address, port in json.loads(file.read_text())]

    def kill(self, number: int) -> None:
        """Send the job a signal."""
        psutil.Process(self.pid).send_signal(number)

    def result(self, timeout: float = 60) -> JobResult:
        """Wait for the job's end."""
        if self.starter.wait(timeout) != 0:
            raise LabError(f"the starter failed: {self.starter.stderr}")
        report = json.loads(self._report.read_text())
        return JobResult(stdout=self.starter.stdout, stderr=self.starter.stderr, **report)


def _ad_text(attributes: Mapping[str, AdValue]) -> str:
    return "".join(f"{name} = {_literal(value)}\n" for name, value in attributes.items())


def _literal(value: AdValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)
