"""Grid Engine (Sun, Univa, Altair, Son of) names a job in its environment.

JOB_ID is a name that others use too, so a job is Grid Engine's if SGE_TASK_ID is there as well: it
is "undefined" but for tasks of an array, which `qstat` shows with their number and people write
``123.4``. SGE_ACCOUNT is what `qsub -A` said, "sge" without it. A user who exports them changes
nothing: tried with 8.1.9. Jobs run under their owner's account; each has its `sge_shepherd`, whose
real user is root, though its effective one is the cluster's manager.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.model import Scheduler
from lark_agent.schedulers.naming import BatchSystem, Naming

if TYPE_CHECKING:
    from lark_agent.schedulers.naming import Said

JOB, TASK, ACCOUNT = "JOB_ID", "SGE_TASK_ID", "SGE_ACCOUNT"
NO_ARRAY, NO_ACCOUNT = "undefined", "sge"


def _naming(said: Said) -> Naming | None:
    """Answer if the environment carries a job id and a task id."""
    words = said.environment
    job_id, task, account = words.get(JOB, ""), words.get(TASK, ""), words.get(ACCOUNT, "")
    if not job_id or not task:
        return None
    return Naming(
        job_id if task == NO_ARRAY else f"{job_id}.{task}",
        "" if account == NO_ACCOUNT else account,
    )


SYSTEM = BatchSystem(Scheduler.GRIDENGINE, ("sge_shepherd",), (JOB, TASK, ACCOUNT), _naming)
