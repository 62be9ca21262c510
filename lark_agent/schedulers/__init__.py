"""The batch systems that LARK knows: how each names a job, and what starts its jobs.

Each is one module with one table, `SYSTEM` (see `naming`). Everything else follows from the tables:
which variables `lark-run` sends (setup.py writes them into a header of its sources), which
processes of root the agent believes (`trusted_launchers`), and how a request is read. So a batch
system is added by a module here, its line in `SYSTEMS` and its word in `model.Scheduler`; a test
finds what was forgotten.

The tables stand below the rooms that use them because the configuration has its defaults from here,
and because the build of `lark-run` reads them where none of the package's dependencies is
installed: only the standard library and `model` may be imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.schedulers import gridengine, htcondor, lsf, pbs, slurm

if TYPE_CHECKING:
    from lark_agent.schedulers.naming import BatchSystem, Naming, Said

SYSTEMS: tuple[BatchSystem, ...] = (
    # pilots of HTCondor run inside jobs of the others, whose variables are then around as well
    htcondor.SYSTEM,
    slurm.SYSTEM,
    pbs.SYSTEM,
    lsf.SYSTEM,
    gridengine.SYSTEM,
)
"""In the order in which they are asked when nobody says which one started the job."""

LAUNCHERS = tuple(name for system in SYSTEMS for name in system.launchers)
"""Commands of root that are a batch system's own."""

ENVIRONMENT = tuple(name for system in SYSTEMS for name in system.environment)
"""Variables that name a job, whatever started it."""


def starts_one_job(launcher: str) -> bool:
    """Tell whether all that a process of this command starts is one job."""
    return any(launcher in system.launchers and system.one_job_each for system in SYSTEMS)


def name(said: Said, launcher: str = "") -> tuple[BatchSystem, Naming] | None:
    """Return the batch system that the job is of and what it calls the job; None if it is of none.

    `launcher` is the command of root that started the job. One that stands in a table leaves only
    that system: a job of PBS does not become one of Slurm by a variable that its user adds.
    """
    asked = [system for system in SYSTEMS if launcher in system.launchers] or SYSTEMS
    for system in asked:
        naming = system.naming(said)
        if naming is not None:
            return system, naming
    return None
