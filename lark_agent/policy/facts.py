"""What the agent vouches for in every job's ad, whichever batch system started the job.

A plain job brings no ad: it is presented as an ad of these attributes alone, and rules over
anything else are undefined for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.policy import requests

if TYPE_CHECKING:
    from lark_agent.model import Job
    from lark_agent.policy.ads import Ad

FACTS = ("Owner", "JobId", "AcctGroup", "Scheduler", "Uid", "IdentityVerified", requests.PROFILE)
"""Attributes of the job ad that are the agent's word, not the ad's."""


def facts(job: Job) -> Ad:
    """Return all of `FACTS` but the profile that the job asks for."""
    return {
        "Owner": job.owner,
        "JobId": job.job_id,
        "AcctGroup": job.accounting_group,
        "Scheduler": job.scheduler.value,
        "Uid": job.uid,
        "IdentityVerified": job.verified,
    }
