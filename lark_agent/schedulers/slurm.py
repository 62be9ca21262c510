"""Slurm names a job in its environment (`slurmstepd` sets it for every task).

The tasks of an array have SLURM_JOB_IDs of their own; people know them as ARRAY_TASK. Job ids are
unique in a cluster, so the cluster's name goes before them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.model import Scheduler
from lark_agent.schedulers.naming import BatchSystem, Naming

if TYPE_CHECKING:
    from lark_agent.schedulers.naming import Said

JOB, ARRAY, TASK = "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"
USER, ACCOUNT, CLUSTER = "SLURM_JOB_USER", "SLURM_JOB_ACCOUNT", "SLURM_CLUSTER_NAME"


def _naming(said: Said) -> Naming | None:
    """Answer if the environment carries a job id."""
    words = said.environment
    job_id = words.get(JOB, "")
    if not job_id:
        return None
    array, task, cluster = words.get(ARRAY), words.get(TASK), words.get(CLUSTER)
    if array and task:
        job_id = f"{array}_{task}"
    return Naming(
        f"{cluster}:{job_id}" if cluster else job_id, words.get(ACCOUNT, ""), words.get(USER, "")
    )


SYSTEM = BatchSystem(
    Scheduler.SLURM, ("slurmstepd",), (JOB, ARRAY, TASK, USER, ACCOUNT, CLUSTER), _naming
)
