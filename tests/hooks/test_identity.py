"""Who a job is, and whose word that is."""

from __future__ import annotations

import pytest

from lark_agent.hooks.identity import Caller, Launcher, identify
from lark_agent.hooks.request import RunRequest
from lark_agent.model import Scheduler

LAUNCHER = Launcher(4000, 123456, "condor_starter")
STARTER = Caller(4711, 1001, "slot1_3", LAUNCHER, shared_account=True)
STEPD = Caller(4711, 1001, "nobody", Launcher(4000, 123456, "slurmstepd"), shared_account=True)
OWN_ACCOUNT = Caller(4711, 1001, "alice", LAUNCHER)
PERSON = Caller(4711, 1001, "alice")
AD = b"""GlobalJobId = "submit.example.org#12.0#1700000000"
ClusterId = 12
ProcId = 0
Owner = "bob"
AcctGroup = "group_atlas"
"""


def test_htcondor_names_the_job_in_its_ad() -> None:
    """Id, owner and accounting group come from the ad when the starter launched the job."""
    job, ad = identify(RunRequest(job_ad=AD), STARTER)
    assert job.scheduler == Scheduler.HTCONDOR
    assert job.job_id == "submit.example.org#12.0#1700000000"
    assert (job.owner, job.accounting_group, job.uid) == ("bob", "group_atlas", 1001)
    assert job.verified
    assert ad["ClusterId"] == 12


def test_nobody_books_bytes_on_another() -> None:
    """A user who runs lark-run with an ad of their own making stays the owner."""
    job, _ = identify(RunRequest(job_ad=AD), PERSON)
    assert (job.owner, job.verified) == ("alice", False)


def test_an_account_of_ones_own_is_the_owner() -> None:
    """The ad belongs to the job's user: where the kernel's account says who it is, that holds."""
    job, _ = identify(RunRequest(job_ad=AD), OWN_ACCOUNT)
    assert (job.owner, job.verified) == ("alice", True)


def test_options_do_not_replace_the_batch_systems_words() -> None:
    """`lark-run --job-id X` inside a batch job changes nothing."""
    options = {"job-id": "mine", "group": "vip"}
    job, _ = identify(RunRequest(job_ad=AD, options=options), STARTER)
    assert job.job_id == "submit.example.org#12.0#1700000000"
    assert job.accounting_group == "group_atlas"
    job, _ = identify(RunRequest(job_ad=AD, options=options), PERSON)
    assert (job.job_id, job.accounting_group) == ("mine", "vip")


def test_an_ad_without_attributes_still_names_a_job() -> None:
    """The slot, or at last the process, stands in for the missing id."""
    request = RunRequest(job_ad=b"A = 1\n", environment={"_CONDOR_SLOT": "slot1_3"})
    job, _ = identify(request, STARTER)
    assert (job.job_id, job.owner) == ("slot:slot1_3", "slot1_3")
    job, _ = identify(RunRequest(job_ad=b""), STARTER)
    assert job.job_id == "pid-4711"
    job, _ = identify(RunRequest(job_ad=b"ClusterId = 3\nProcId = 1\n"), STARTER)
    assert job.job_id == "3.1"


def test_slurm_names_the_job_in_its_environment() -> None:
    """Cluster, job, account and user; array tasks as people know them."""
    words = {
        "SLURM_JOB_ID": "101", "SLURM_CLUSTER_NAME": "campus", "SLURM_JOB_USER": "bob",
        "SLURM_JOB_ACCOUNT": "physics",
    }  # fmt: skip
    job, _ = identify(RunRequest(environment=words), STEPD)
    assert (job.scheduler, job.job_id, job.owner) == (Scheduler.SLURM, "campus:101", "bob")
    assert job.accounting_group == "physics"
    words |= {"SLURM_ARRAY_JOB_ID": "99", "SLURM_ARRAY_TASK_ID": "2"}
    job, _ = identify(RunRequest(environment=words), STEPD)
    assert job.job_id == "campus:99_2"


@pytest.mark.parametrize(
    ("launcher", "words", "scheduler", "job_id"),
    [
        ("slurmstepd", {"SLURM_JOB_ID": "101"}, Scheduler.SLURM, "101"),
        ("pbs_mom", {"PBS_JOBID": "7.pbs1"}, Scheduler.PBS, "7.pbs1"),
        ("res", {"LSB_JOBID": "7"}, Scheduler.LSF, "7"),
        ("sge_shepherd", {"JOB_ID": "7", "SGE_TASK_ID": "2"}, Scheduler.GRIDENGINE, "7.2"),
    ],
)
def test_an_ad_of_ones_own_making_is_not_the_batch_systems(
    launcher: str, words: dict[str, str], scheduler: Scheduler, job_id: str
) -> None:
    """A job that exports _CONDOR_JOB_AD is not named by it, and no rule sees it."""
    caller = Caller(4711, 1001, "alice", Launcher(4000, 123456, launcher))
    job, ad = identify(RunRequest(environment=words, job_ad=AD), caller)
    assert (job.scheduler, job.job_id, job.accounting_group) == (scheduler, job_id, "")
    assert job.verified
    assert ad == {}


def test_a_trusted_launcher_that_does_not_name_the_job_verifies_nothing() -> None:
    """pbs_mom without PBS_JOBID started something else; other systems' variables are no name."""
    caller = Caller(4711, 1001, "alice", Launcher(4000, 123456, "pbs_mom"))
    job, _ = identify(RunRequest(environment={"SLURM_JOB_ID": "1"}, job_ad=AD), caller)
    assert (job.scheduler, job.job_id, job.verified) == (Scheduler.PLAIN, "pid-4711", False)


def test_the_wrappers_own_arguments_name_a_plain_job() -> None:
    """`lark-run --job-id X --group G` works without any batch system."""
    options = {"job-id": "nightly", "group": "ops", "profile": "none"}
    job, _ = identify(RunRequest(options=options), PERSON)
    assert (job.scheduler, job.job_id, job.owner) == (Scheduler.PLAIN, "nightly", "alice")
    assert (job.accounting_group, job.verified) == ("ops", False)


def test_words_are_bounded() -> None:
    """An absurd name is cut, not carried through every record."""
    job, _ = identify(RunRequest(options={"job-id": "x" * 5000}), PERSON)
    assert len(job.job_id) == 256
