"""What a job of Slurm may ask for, what it gets, and how it hears that it may not have it."""

from __future__ import annotations

import pytest

from lark_agent.model import Connectivity
from tests.agent.worker import until
from tests.slurm.cluster import BANDWIDTH, Cluster, home
from tests.slurm.site import ended, final, guarantees, of_job, output, running, script, state

pytestmark = [pytest.mark.root, pytest.mark.slurm]
MARK = f"touch {home('alice')}/it-ran"


def test_a_job_gets_the_profile_that_it_asks_for_within_the_policy(cluster: Cluster) -> None:
    """--network-profile works on srun and on sbatch, whose steps have it too."""
    links = cluster.run("srun", "--network-profile=alone", "ls", "/sys/class/net").stdout
    assert links.split() == ["lo"]
    job = script(cluster, "ls /sys/class/net", "--network-profile=alone")
    assert ended(cluster, job) == "COMPLETED"
    assert output(cluster, job).split() == ["lo"]
    record = final(cluster, job)
    assert (record.profile, record.connectivity) == ("alone", Connectivity.NONE)


def test_a_refusal_fails_the_launch_with_the_words_of_the_policy(cluster: Cluster) -> None:
    """srun: on the user's stderr; nothing of the job has run."""
    done = cluster.run("srun", "--network-profile=nonsense", "sh", "-c", MARK, check=False)
    assert done.returncode != 0
    assert "refused by the agent" in done.stderr
    assert "nonsense" in done.stderr
    assert not cluster.lab.path(f"{home('alice')}/it-ran").exists()


def test_a_refused_batch_job_fails_and_says_why_in_its_output(cluster: Cluster) -> None:
    """sbatch: FAILED, and the reason is where its stderr goes."""
    job = script(cluster, MARK, "--network-profile=nonsense")
    assert ended(cluster, job) == "FAILED"
    assert "refused by the agent" in output(cluster, job)
    assert "nonsense" in output(cluster, job)
    assert not cluster.lab.path(f"{home('alice')}/it-ran").exists()
    assert of_job(cluster, job) == []


def test_a_refusal_costs_the_node_nothing(cluster: Cluster) -> None:
    """The node stays in service for the next job."""
    cluster.run("srun", "--network-profile=nonsense", "true", check=False)
    assert cluster.run("srun", "true").returncode == 0


def test_a_later_step_cannot_ask_for_more(cluster: Cluster) -> None:
    """The first plan of the job holds: a step that names another profile joins it."""
    step = "srun -Q --network-profile=slurm ls /sys/class/net"
    told = cluster.run(
        "salloc", "-Q", "--network-profile=alone", "sh", "-c", f"srun -Q true; {step}"
    )
    assert told.stdout.split() == ["lo"]


def test_what_cannot_be_a_name_is_refused_at_the_prompt(cluster: Cluster) -> None:
    """Quotes and the like, which could end a literal in an ad, never leave the submit host."""
    for option in ('--network-profile=a"b', "--bandwidth=1\n", f"--network-profile={'x' * 200}"):
        done = cluster.run("srun", option, "true", check=False)
        assert done.returncode != 0
        assert "takes a word" in done.stderr


def test_rules_see_the_partition(cluster: Cluster) -> None:
    """What slurmctld says, not what the job's environment says."""
    forged = {"SLURM_JOB_PARTITION": "main"}
    links = cluster.run("srun", "-p", "closed", "ls", "/sys/class/net", env=forged).stdout
    assert links.split() == ["lo"]


def test_bandwidth_is_guaranteed_within_the_policy(cluster: Cluster) -> None:
    """--bandwidth books what the site lets everybody ask for, and no more."""
    job = script(cluster, "sleep 60", "--bandwidth=20")
    running(cluster, job)
    until(lambda: of_job(cluster, job), "a job in its sandbox")
    assert guarantees(cluster) == pytest.approx([20], rel=0.02)
    cluster.run("scancel", str(job))
    over = cluster.run("srun", "--bandwidth=200 Mbit/s", "true", check=False)
    assert over.returncode != 0
    assert "50 Mbit/s" in over.stderr
    ended(cluster, job)


def test_what_the_scheduler_gave_away_is_guaranteed(cluster: Cluster) -> None:
    """--gres=bandwidth: Slurm counts, the agent holds it; what does not fit waits in the queue."""
    first = script(cluster, "sleep 60", f"--gres=bandwidth:{BANDWIDTH - 300}")
    running(cluster, first)
    until(lambda: of_job(cluster, first), "a job in its sandbox")
    assert guarantees(cluster) == pytest.approx([BANDWIDTH - 300], rel=0.02)
    second = script(cluster, "true", f"--gres=bandwidth:{BANDWIDTH - 300}")
    assert cluster.run("srun", "--gres=bandwidth:100", "true").returncode == 0
    assert state(cluster, second) == "PENDING"
    cluster.run("scancel", str(first))
    assert ended(cluster, second) == "COMPLETED"
