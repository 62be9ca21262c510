"""Who a job is: from the caller the kernel vouches for, and what the request says.

The batch systems and the words by which each names a job are in `lark_agent.schedulers`. The one
whose process launched the job is asked; where that is not known, the first that answers names it.
The wrapper's own options name what no batch system does.

Whose words these are: the account is the kernel's, and it owns the job. Only an account that runs
jobs of many (`shared_accounts`: nobody, slot users) says nothing; then the owner is the ad's, if
the launcher (the caller's parent process) is the batch system itself, a process of root that runs
one of `trusted_launchers`. Root alone would not do, since cron starts what a user's
crontab says, and orphans have init for a parent. `verified` says that such a launcher started the
job. What runs before the job under the same account can still rewrite its ad (job id, accounting
group), and on a shared account its owner: sites that must not trust their users there give each job
an account of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lark_agent import schedulers
from lark_agent.hooks.request import printable
from lark_agent.model import Job, Scheduler
from lark_agent.policy import ads, requests
from lark_agent.schedulers import slurm
from lark_agent.schedulers.naming import Naming, Said

if TYPE_CHECKING:
    from lark_agent.hooks.request import RunRequest
    from lark_agent.policy.ads import Ad

MAX_WORD = 256


@dataclass(frozen=True, slots=True)
class Launcher:
    """A process of the batch system that starts jobs."""

    pid: int
    start_time: int
    command: str


@dataclass(frozen=True, slots=True)
class Caller:
    """What the kernel says about the process that wants to become a job."""

    pid: int
    uid: int
    """The job's account; where root asks for it, what root says."""
    user: str
    """Name of `uid`, or the number if it has none."""
    launcher: Launcher | None = None
    """The batch system's own process, if that started it."""
    shared_account: bool = False
    """`uid` runs jobs of many."""
    by_root: bool = False
    """Root asks, for `uid`: the batch system itself."""

    @property
    def trusted(self) -> bool:
        """Tell whether the batch system stands behind what is asked."""
        return self.by_root or self.launcher is not None


def identify(request: RunRequest, caller: Caller) -> tuple[Job, Ad]:
    """Name the job; returns it with its ad (empty without one). Raises InvalidRequest."""
    ad: Ad = {}
    if request.job_ad is not None:
        ad = ads.parse(request.job_ad, "job ad", requests.NAMES)
    folded = None if request.job_ad is None else {name.lower(): value for name, value in ad.items()}
    launcher = caller.launcher.command if caller.launcher else ""
    if caller.by_root:  # root speaks for another account in Slurm's plugin only
        launcher = slurm.SYSTEM.launchers[0]
    named = schedulers.name(Said(request.environment, folded), launcher)
    scheduler, words, verified = Scheduler.PLAIN, Naming(""), False
    if named is not None:
        system, words = named
        scheduler, verified = system.scheduler, caller.trusted
        if verified and not system.brings_ad and not caller.by_root:
            ad = {}  # the user's own making, which rules would take for the batch system's
    # what the batch system said is not for the job's user to replace
    options = {} if verified else request.options
    job_id = options.get("job-id") or words.job_id or f"pid-{caller.pid}"
    group = options.get("group") or words.accounting_group
    owner = words.owner if verified and caller.shared_account and words.owner else caller.user
    job_id, owner, group = (printable(word[:MAX_WORD]) for word in (job_id, owner, group))
    return Job(scheduler, job_id, owner, caller.uid, group, verified), ad
