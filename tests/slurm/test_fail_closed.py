"""Without an agent, a plan or a sandbox no task of Slurm runs on the worker, in no network.

Each test has a cluster of its own without the database: they take the agent away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import kill, until
from tests.lab.world import Lab
from tests.slurm.cluster import Cluster, home
from tests.slurm.site import (
    AGENT,
    NETWORK,
    PLUGSTACK,
    final,
    host_network,
    of_job,
    output,
    script,
    state,
    words,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.slurm]


@pytest.fixture
def bare(slurm_installed: None) -> Iterator[Cluster]:
    """Give the test a cluster with the plugin, and no agent."""
    with Lab() as lab:
        yield Cluster(lab, plugstack=PLUGSTACK)


def node(cluster: Cluster) -> str:
    """Return the state of the node, in Slurm's short words."""
    return cluster.lab.run(["sinfo", "-h", "-o", "%T %E"]).stdout.strip()


def test_without_an_agent_the_node_is_drained_and_the_job_waits(bare: Cluster) -> None:
    """The job runs later, in a sandbox, when the admin has put it right; it has not failed."""
    job = script(bare, NETWORK)
    until(lambda: "drain" in node(bare), "a node that is drained", timeout=60)
    until(lambda: state(bare, job) == "PENDING", "a job that waits again")
    assert "net:" not in output(bare, job)
    assert "no agent at /run/lark/run.sock" in bare.log("slurmd.worker1")
    bare.lab.agent(AGENT)
    bare.run("scontrol", "update", "nodename=worker1", "state=resume", user="root")
    bare.run("scontrol", "release", str(job), user="root")
    bare.run("scontrol", "update", f"jobid={job}", "starttime=now", user="root")
    network = words(bare, job)[-1]
    assert network.startswith("net:")
    assert network != host_network(bare)


def test_a_step_without_an_agent_fails_with_the_reason(bare: Cluster) -> None:
    """The agent dies under an allocation: the next step waits for it a while, then fails."""
    agent = bare.lab.agent(AGENT)
    steps = f"srun -Q true; touch first; while [ -e first ]; do sleep 0.1; done; srun -Q {NETWORK}"
    salloc = bare.lab.start(
        ["salloc", "-Q", "sh", "-c", steps], user="alice", cwd=home("alice")
    )  # fmt: skip
    mark = bare.lab.path(f"{home('alice')}/first")
    until(mark.exists, "a first step that ran")
    kill(agent)
    mark.unlink()
    assert salloc.wait(60) != 0
    assert salloc.stdout == ""
    assert "no agent at /run/lark/run.sock" in salloc.stderr


def test_a_restarted_agent_costs_no_job(bare: Cluster) -> None:
    """A batch job runs on; its next step waits for the agent, and joins the same sandbox."""
    agent = bare.lab.agent(AGENT)
    job = script(bare, f"{NETWORK}; while [ ! -e go ]; do sleep 0.1; done; srun -Q {NETWORK}")
    until(lambda: output(bare, job), "a job that runs")
    kill(agent)
    bare.lab.path(f"{home('alice')}/go").touch()
    bare.lab.agent(AGENT)
    first, second = words(bare, job)
    assert first == second != host_network(bare)
    final(bare, job)
    assert len(of_job(bare, job)) == 1


def test_the_plugin_fails_closed_where_it_is_optional(bare: Cluster) -> None:
    """A line that says "optional" by mistake opens nothing: a required hook is not what holds."""
    bare.lab.path("/etc/slurm/plugstack.conf").write_text(PLUGSTACK.replace("required", "optional"))
    bare.lab.agent(AGENT)
    done = bare.run("srun", "--network-profile=nonsense", "sh", "-c", NETWORK, check=False)
    assert done.stdout == ""
    assert done.returncode != 0


def test_a_job_of_root_is_refused(bare: Cluster) -> None:
    """No sandbox can hold root."""
    bare.lab.agent(AGENT)
    done = bare.run("srun", "sh", "-c", NETWORK, user="root", check=False)
    assert done.stdout == ""
    assert "root" in done.stderr


def test_nobody_but_root_speaks_for_slurm(bare: Cluster) -> None:
    """A user who sends the plugin's words, another user's account among them, is refused."""
    bare.lab.agent(AGENT)
    send = """
import socket, struct, sys
def field(kind, data):
    return struct.pack("<HH", kind, len(data)) + data
request = b"LARK\\1\\0\\0\\0" + field(5, sys.argv[1].encode()) + field(6, struct.pack("<I", 1002))
request += field(2, b"SLURM_JOB_ID=1") + field(2, b"SLURM_CLUSTER_NAME=campus")
agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
agent.connect("/run/lark/run.sock")
agent.send(request)
print(agent.recv(1024)[6])
"""
    for purpose in ("r", "e"):
        done = bare.lab.run(["python3", "-c", send, purpose], user="alice")
        assert done.stdout.strip() != "0"
