"""HTCondor names a job in its job ad.

GlobalJobId is unique over time and submit nodes (``submit.example.org#123.0#1700000000``);
ClusterId.ProcId stands in where it is missing, and the slot, which the starter puts into the
environment, where that is missing too. The accounting group is AcctGroup, which submit files set by
`accounting_group`; AccountingGroup is the older attribute with the user appended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.model import Scheduler
from lark_agent.schedulers.naming import BatchSystem, Naming

if TYPE_CHECKING:
    from lark_agent.schedulers.naming import Ad, Said

SLOT = "_CONDOR_SLOT"


def _naming(said: Said) -> Naming | None:
    """Answer if the request carries a job ad."""
    if said.ad is None:
        return None
    job_id = _text(said.ad, "globaljobid")
    cluster, process = said.ad.get("clusterid"), said.ad.get("procid")
    if not job_id and type(cluster) is int and type(process) is int:
        job_id = f"{cluster}.{process}"
    slot = said.environment.get(SLOT, "")
    return Naming(
        job_id or (f"slot:{slot}" if slot else ""),
        _text(said.ad, "acctgroup", "accountinggroup"),
        _text(said.ad, "owner", "osuser"),
    )


def _text(ad: Ad, *names: str) -> str:
    """Return the first non-empty string among attributes."""
    found = (ad.get(name) for name in names)
    return next((value for value in found if isinstance(value, str) and value), "")


SYSTEM = BatchSystem(
    Scheduler.HTCONDOR, ("condor_starter",), (SLOT,), _naming, brings_ad=True, one_job_each=True
)
