"""Slurm names a job in its environment (`slurmstepd` sets it for every task).

The tasks of an array have SLURM_JOB_IDs of their own; people know them as ARRAY_TASK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.hooks.naming import Naming
from lark_agent.model import Scheduler

if TYPE_CHECKING:
    from lark_agent.hooks.request import RunRequest
    from lark_agent.model import Record
    from lark_agent.policy.ads import Ad


def naming(request: RunRequest, ad: Ad) -> Naming | None:  # noqa: ARG001  one signature for all
    """Answer if the environment carries SLURM_JOB_ID."""
    words = request.environment
    job_id = words.get("SLURM_JOB_ID", "")
    if not job_id:
        return None
    array, task = words.get("SLURM_ARRAY_JOB_ID"), words.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        job_id = f"{array}_{task}"
    cluster = words.get("SLURM_CLUSTER_NAME")
    return Naming(
        Scheduler.SLURM,
        f"{cluster}:{job_id}" if cluster else job_id,
        words.get("SLURM_JOB_USER", ""),
        words.get("SLURM_JOB_ACCOUNT", ""),
    )


def summary(record: Record) -> str:
    """Return what stays with the job at Slurm, in its admin comment: bytes by direction and class.

    Such as "lark worker1: sent=1200 received=34000 campus=1200/34000".
    """
    usage = record.usage
    classes = "".join(
        f" {c.traffic_class}={c.sent.bytes}/{c.received.bytes}" for c in usage.classes
    )
    return f"lark {record.worker}: sent={usage.sent.bytes} received={usage.received.bytes}{classes}"
