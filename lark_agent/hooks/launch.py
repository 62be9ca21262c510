"""Which processes are one job: the key that a launch gives to all that belongs together.

A batch system may start several processes of a job through the wrapper: HTCondor's starter the job
itself, and later the sshd of `condor_ssh_to_job`; Slurm every task of every step. They share one
sandbox, and the first of them decides about it, because what came later could have been asked for
by the job itself. So the key is made of what the kernel says, and of words of root:

* HTCondor: the starter, a process of root that serves one job. Its pid and start time.
* root that asks for an account (Slurm's plugin): cluster, job id and account.

Everything else has no key: each call of the wrapper is a job of its own.

A starter may also start its job a second time when the first process has ended (HTCondor's
checkpoints). The ad is the job's to write by then, so what was decided for the starter holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.hooks.identity import Launcher
from lark_agent.schedulers import slurm, starts_one_job

if TYPE_CHECKING:
    from lark_agent.hooks.identity import Caller
    from lark_agent.hooks.request import RunRequest


def key(caller: Caller, request: RunRequest) -> str:
    """Return what this caller shares with others of its job; empty: nothing."""
    if caller.by_root:
        words = request.environment
        job, cluster = words.get(slurm.JOB, ""), words.get(slurm.CLUSTER, "")
        return f"slurm {cluster} {job} {caller.uid}" if job else ""
    launcher = caller.launcher
    if launcher is None or not starts_one_job(launcher.command):
        return ""
    return f"{launcher.command} {launcher.pid} {launcher.start_time}"


def launcher(known: str) -> Launcher | None:
    """Return the launcher that a key names; None if it names none that serves one job."""
    match known.split():
        case [command, pid, start_time] if (
            starts_one_job(command) and pid.isdecimal() and start_time.isdecimal()
        ):
            return Launcher(int(pid), int(start_time), command)
    return None
