"""The bytes of a job of Slurm: in its record, in sacct, and for nobody else to forge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import until
from tests.lab.topology import CAMPUS
from tests.slurm.site import final, script

if TYPE_CHECKING:
    from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.root, pytest.mark.slurm]
FETCH = f"curl -sfo /dev/null http://{CAMPUS.ipv4}/bytes/300000"


def comment(cluster: Cluster, job: int | str, parts: int = 1) -> str:
    """Wait for a job's admin comment, of so many nodes, and return it."""

    def there() -> str:
        show = ["sacct", "-XnP", "-j", str(job), "-o", "admincomment"]
        text = cluster.run(*show).stdout.strip()
        return text if text.count("lark ") >= parts else ""

    return str(until(there, f"an admin comment of job {job}\n{cluster.log('slurmd.worker1')}"))


def test_sacct_tells_a_users_bytes(cluster: Cluster) -> None:
    """The admin comment has what the record has, to the byte: those of all steps together."""
    job = script(cluster, f"{FETCH}\nsrun {FETCH}\nsrun {FETCH}")
    said = comment(cluster, job)
    usage = final(cluster, job).usage
    assert usage.received.bytes > 3 * 300_000
    assert f"sent={usage.sent.bytes} received={usage.received.bytes}" in said
    assert said.startswith("lark worker1: ")


def test_a_plain_srun_has_its_comment_too(cluster: Cluster) -> None:
    """Without a batch script there is the same epilog."""
    number = cluster.run("srun", "sh", "-c", f"{FETCH}; echo $SLURM_JOB_ID").stdout.strip()
    said = comment(cluster, number)
    assert f"received={final(cluster, number).usage.received.bytes}" in said


def test_a_users_own_comment_is_not_taken_for_it(cluster: Cluster) -> None:
    """Users write Comment; AdminComment is the site's."""
    job = script(cluster, "true", "--comment=lark worker1: sent=0 received=0")
    update = ["scontrol", "update", f"jobid={job}", "admincomment=lark worker1: sent=0"]
    assert cluster.run(*update, check=False).returncode != 0
    assert "received=0 " in comment(cluster, job) + " "


def test_lark_shows_a_user_the_own_jobs(cluster: Cluster) -> None:
    """`lark jobs` names it as Slurm does; bob does not see it."""
    job = script(cluster, FETCH)
    final(cluster, job)
    assert f"campus:{job}" in cluster.run("lark", "jobs").stdout
    assert f"campus:{job}" not in cluster.run("lark", "jobs", user="bob").stdout
