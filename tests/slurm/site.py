"""The site of Slurm's tests: the agent's settings, and how jobs are started and looked at."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from lark_agent.accounting.journal import decode
from tests.agent.worker import READ, python, until
from tests.slurm.cluster import PLUGIN, home

if TYPE_CHECKING:
    from lark_agent.model import Record
    from tests.slurm.cluster import Cluster

PLUGSTACK = f"required {PLUGIN} gres=bandwidth\n"
AGENT = """
[accounting]
interval_seconds = 1
[pool]
slots = 16
ready = 4
wait_seconds = 10
drain_seconds = 2
[uplink]
rate = "1 Gbit/s"
[services]
slurmctld = { port = "tcp/6817" }
slurmd = { port = "tcp/6818" }
[profiles.slurm]
inbound = "all"
[profiles.alone]
connectivity = "none"
[profiles.campus]
reach = ["campus"]
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
[requests]
bandwidth = "50 Mbit/s"
[[rules]]
when = 'MY.Bandwidth isnt undefined'
set = { guarantee = 'MY.Bandwidth' }
[[rules]]
when = 'TARGET.Partition == "closed"'
profile = "alone"
[[rules]]
when = 'Scheduler == "slurm"'
profile = "slurm"
"""
"""Jobs may call and be called; srun in a job needs both."""
NETWORK = "readlink /proc/self/ns/net"
_names = itertools.count(1)


def script(cluster: Cluster, text: str, *options: str, user: str = "alice") -> int:
    """Submit a batch script; returns the job's number."""
    name = f"{home(user)}/batch{next(_names)}.sh"
    cluster.lab.path(name).write_text(f"#!/bin/sh\n{text}\n")
    done = cluster.run("sbatch", "--parsable", *options, name, user=user)
    return int(done.stdout.split(";")[0])


def state(cluster: Cluster, job: int | str) -> str:
    """Return what slurmctld calls a job's state now; empty once it has forgotten the job."""
    done = cluster.run("scontrol", "-o", "show", "job", str(job), user="root", check=False)
    words = dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
    return words.get("JobState", "")


def ended(cluster: Cluster, job: int | str) -> str:
    """Wait until a job has ended, epilog and all, and return how."""
    over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

    def settled() -> str:
        word = state(cluster, job)
        return word if word in over else ""

    return str(until(settled, f"job {job} that ends\n{cluster.log('slurmd.worker1')}"))


def running(cluster: Cluster, job: int | str) -> None:
    """Wait until a job runs."""
    until(lambda: state(cluster, job) == "RUNNING", f"job {job} that runs")


def output(cluster: Cluster, job: int | str, user: str = "alice") -> str:
    """Return what a batch job has written so far."""
    file = cluster.lab.path(f"{home(user)}/slurm-{job}.out")
    return file.read_text() if file.exists() else ""


def words(cluster: Cluster, job: int | str, *, user: str = "alice") -> list[str]:
    """Wait for a batch job's end and return the words that it wrote."""
    assert ended(cluster, job) == "COMPLETED", output(cluster, job, user)
    return output(cluster, job, user).split()


def host_network(cluster: Cluster) -> str:
    """Return the name of the worker's own network namespace."""
    return cluster.lab.run(["readlink", "/proc/self/ns/net"]).stdout.strip()


def of_job(cluster: Cluster, job: int | str) -> list[Record]:
    """Return the records of every run of a job, the oldest first."""
    return [r for r in all_records(cluster) if r.job.job_id == f"campus:{job}"]


def all_records(cluster: Cluster) -> list[Record]:
    """Return the journal's latest record of every attachment, the oldest first."""
    lines = cluster.lab.run(python(READ)).stdout.encode().splitlines()
    return [decode(line) for line in lines]


def final(cluster: Cluster, job: int | str) -> Record:
    """Wait for the final record of a job's last run."""

    def last() -> Record | None:
        found = of_job(cluster, job)
        return found[-1] if found and found[-1].final else None

    answer: Record = until(last, f"final record of job {job}")
    return answer


def guarantees(cluster: Cluster, host: str = "worker") -> list[float]:
    """Return what a node's kernel holds for the jobs that run, in Mbit/s of frames."""
    show = ["tc", "class", "show", "dev", "larkup"]
    shown = cluster.lab.run(show, host=host, check=False).stdout  # fails before the first is held
    found = re.findall(r" leaf .* rate (\d+)(K|M)bit ceil", shown)
    return sorted(int(rate) / (1000 if unit == "K" else 1) for rate, unit in found)
