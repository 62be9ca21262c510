"""LSF names a job in its environment.

LSB_JOBINDEX is 0 but for members of an array, which `bjobs` shows as ``123[4]``; LSB_PROJECT_NAME
is what `bsub -P` said, "default" without it. Jobs run under their owner's account. They are started
by `res`, a child of `sbatchd`, both of root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.model import Scheduler
from lark_agent.schedulers.naming import BatchSystem, Naming

if TYPE_CHECKING:
    from lark_agent.schedulers.naming import Said

JOB, INDEX, PROJECT = "LSB_JOBID", "LSB_JOBINDEX", "LSB_PROJECT_NAME"
NO_PROJECT = "default"


def _naming(said: Said) -> Naming | None:
    """Answer if the environment carries a job id."""
    words = said.environment
    job_id, index, project = words.get(JOB, ""), words.get(INDEX, ""), words.get(PROJECT, "")
    if not job_id:
        return None
    return Naming(
        job_id if index in {"", "0"} else f"{job_id}[{index}]",
        "" if project == NO_PROJECT else project,
    )


SYSTEM = BatchSystem(Scheduler.LSF, ("res", "sbatchd"), (JOB, INDEX, PROJECT), _naming)
