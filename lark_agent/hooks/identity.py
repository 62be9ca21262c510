"""Who a job is: from the caller the kernel vouches for, and what the request says.

Each batch system is one small function in the table `NAMINGS`: it looks at the request and answers
with the words that name the job, or None if the job is not its. The first that answers names the
job. Its owner and group are believed only if the launcher (the caller's parent process) is the
batch system itself: a process of root whose command is one of `trusted_launchers`. Root alone would
not do, since cron starts what a user's crontab says, and orphans have init for a parent. For anyone
else the owner is the user the kernel names, so nobody can book bytes on another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lark_agent.hooks import htcondor, slurm
from lark_agent.hooks.request import printable
from lark_agent.model import Job, Scheduler
from lark_agent.policy import ads

if TYPE_CHECKING:
    from collections.abc import Callable

    from lark_agent.hooks.naming import Naming
    from lark_agent.hooks.request import RunRequest
    from lark_agent.policy.ads import Ad

NAMINGS: tuple[Callable[[RunRequest, Ad], Naming | None], ...] = (htcondor.naming, slurm.naming)
MAX_WORD = 256


@dataclass(frozen=True, slots=True)
class Caller:
    """What the kernel says about the process that wants to become a job."""

    pid: int
    uid: int
    user: str
    """Name of `uid`, or the number if it has none."""
    trusted_launcher: bool


def identify(request: RunRequest, caller: Caller) -> tuple[Job, Ad]:
    """Name the job; returns it with its ad (empty without one). Raises InvalidRequest."""
    ad = ads.parse(request.job_ad, "job ad") if request.job_ad is not None else {}
    named = next((n for naming in NAMINGS if (n := naming(request, ad))), None)
    scheduler = named.scheduler if named else Scheduler.PLAIN
    job_id = request.options.get("job-id") or (named.job_id if named else "") or f"pid-{caller.pid}"
    owner, group = caller.user, request.options.get("group", "")
    verified = named is not None and caller.trusted_launcher
    if named is not None:
        group = group or named.accounting_group
        if caller.trusted_launcher:
            owner = named.owner or caller.user
    job_id, owner, group = (printable(word[:MAX_WORD]) for word in (job_id, owner, group))
    return Job(scheduler, job_id, owner, caller.uid, group, verified), ad
