"""PBS in all its kinds (OpenPBS, PBS Professional, Torque) names a job in its environment.

PBS_JOBID carries the server's name and, for a member of an array, its index (``123[4].server``);
PBS_ACCOUNT is what `qsub -A` said. `pbs_mom` sets the id itself, over what the user exports. It
starts every job under its owner's account, so the account says who that is; PBS_O_LOGNAME, which
comes from the environment of qsub, could say anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.model import Scheduler
from lark_agent.schedulers.naming import BatchSystem, Naming

if TYPE_CHECKING:
    from lark_agent.schedulers.naming import Said

JOB, ACCOUNT = "PBS_JOBID", "PBS_ACCOUNT"


def _naming(said: Said) -> Naming | None:
    """Answer if the environment carries a job id."""
    job_id = said.environment.get(JOB, "")
    return Naming(job_id, said.environment.get(ACCOUNT, "")) if job_id else None


SYSTEM = BatchSystem(Scheduler.PBS, ("pbs_mom",), (JOB, ACCOUNT), _naming)
