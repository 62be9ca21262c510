"""What the batch systems' tables promise, and how each names its jobs."""

from __future__ import annotations

import pkgutil

import pytest

from lark_agent import schedulers
from lark_agent.config import AgentSettings
from lark_agent.model import Scheduler
from lark_agent.schedulers.naming import Naming, Said

PBS = {"PBS_JOBID": "7.pbs1"}
LSF = {"LSB_JOBID": "7", "LSB_JOBINDEX": "0"}
GRIDENGINE = {"JOB_ID": "7", "SGE_TASK_ID": "undefined"}


def test_every_module_is_in_the_table_and_every_word_has_one() -> None:
    """A batch system cannot be half added."""
    modules = {module.name for module in pkgutil.iter_modules(schedulers.__path__)} - {"naming"}
    assert modules == {str(system.scheduler) for system in schedulers.SYSTEMS}
    assert modules == {str(word) for word in Scheduler} - {Scheduler.PLAIN}


def test_a_launcher_or_a_variable_tells_one_batch_system() -> None:
    """No name stands in two tables, and none is longer than what the kernel keeps of a command."""
    assert len(set(schedulers.LAUNCHERS)) == len(schedulers.LAUNCHERS)
    assert len(set(schedulers.ENVIRONMENT)) == len(schedulers.ENVIRONMENT)
    assert all(len(name) <= 15 for name in schedulers.LAUNCHERS)


def test_the_agent_believes_the_launchers_of_all_tables() -> None:
    """The default of `trusted_launchers` follows from the tables."""
    assert AgentSettings().trusted_launchers == schedulers.LAUNCHERS


@pytest.mark.parametrize(
    ("words", "scheduler", "naming"),
    [
        (PBS, Scheduler.PBS, Naming("7.pbs1")),
        (PBS | {"PBS_ACCOUNT": "physics"}, Scheduler.PBS, Naming("7.pbs1", "physics")),
        ({"PBS_JOBID": "7[3].pbs1"}, Scheduler.PBS, Naming("7[3].pbs1")),
        (LSF, Scheduler.LSF, Naming("7")),
        ({"LSB_JOBID": "7"}, Scheduler.LSF, Naming("7")),
        (LSF | {"LSB_JOBINDEX": "3"}, Scheduler.LSF, Naming("7[3]")),
        (LSF | {"LSB_PROJECT_NAME": "default"}, Scheduler.LSF, Naming("7")),
        (LSF | {"LSB_PROJECT_NAME": "physics"}, Scheduler.LSF, Naming("7", "physics")),
        (GRIDENGINE, Scheduler.GRIDENGINE, Naming("7")),
        (GRIDENGINE | {"SGE_TASK_ID": "3"}, Scheduler.GRIDENGINE, Naming("7.3")),
        (GRIDENGINE | {"SGE_ACCOUNT": "sge"}, Scheduler.GRIDENGINE, Naming("7")),
        (GRIDENGINE | {"SGE_ACCOUNT": "physics"}, Scheduler.GRIDENGINE, Naming("7", "physics")),
    ],
)
def test_a_job_is_named_by_its_environment(
    words: dict[str, str], scheduler: Scheduler, naming: Naming
) -> None:
    """The id is the one that people see in the batch system's own list; arrays by member."""
    named = schedulers.name(Said(words))
    assert named is not None
    assert (named[0].scheduler, named[1]) == (scheduler, naming)


@pytest.mark.parametrize(
    "words", [{}, {"PBS_JOBID": ""}, {"LSB_JOBINDEX": "1"}, {"JOB_ID": "7"}, {"SGE_TASK_ID": "1"}]
)
def test_half_a_name_is_none(words: dict[str, str]) -> None:
    """JOB_ID alone is a name that other programs use as well."""
    assert schedulers.name(Said(words)) is None


@pytest.mark.parametrize("launcher", schedulers.LAUNCHERS)
def test_the_launcher_says_whose_the_job_is(launcher: str) -> None:
    """Whatever else stands in the environment, or as an ad: only the launcher's own words count."""
    everything = Said({"SLURM_JOB_ID": "1"} | PBS | LSF | GRIDENGINE, {"globaljobid": "forged"})
    named = schedulers.name(everything, launcher)
    assert named is not None
    assert launcher in named[0].launchers


def test_a_launcher_that_a_site_added_may_start_jobs_of_any() -> None:
    """`trusted_launchers` may name a program that no table knows; then the first that answers."""
    named = schedulers.name(Said(PBS), "site_starter")
    assert named is not None
    assert named[0].scheduler is Scheduler.PBS


def test_only_a_starter_of_one_job_makes_one_job_of_all_it_starts() -> None:
    """pbs_mom starts jobs of everybody: two of them must never share a sandbox."""
    one = [name for name in schedulers.LAUNCHERS if schedulers.starts_one_job(name)]
    assert one == ["condor_starter"]
    assert not schedulers.starts_one_job("")
