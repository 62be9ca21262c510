"""HTCondor names a job in its job ad.

GlobalJobId is unique over time and submit nodes (``submit.example.org#123.0#1700000000``);
ClusterId.ProcId stands in where it is missing. The accounting group is AcctGroup, which submit
files set by `accounting_group`; AccountingGroup is the older attribute with the user appended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.hooks.naming import Naming
from lark_agent.model import Scheduler
from lark_agent.policy import ads

if TYPE_CHECKING:
    from lark_agent.hooks.request import RunRequest
    from lark_agent.policy.ads import Ad


def naming(request: RunRequest, ad: Ad) -> Naming | None:
    """Answer if the request carries a job ad."""
    if request.job_ad is None:
        return None
    job_id = ads.text_of(ad, "GlobalJobId")
    cluster, process = ads.integer_of(ad, "ClusterId"), ads.integer_of(ad, "ProcId")
    if not job_id and cluster is not None and process is not None:
        job_id = f"{cluster}.{process}"
    slot = request.environment.get("_CONDOR_SLOT", "")
    return Naming(
        Scheduler.HTCONDOR,
        job_id or (f"slot:{slot}" if slot else ""),
        ads.text_of(ad, "Owner", "OsUser"),
        ads.text_of(ad, "AcctGroup", "AccountingGroup"),
    )
