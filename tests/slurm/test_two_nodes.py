"""A job on two nodes has a sandbox on each, and its parts find each other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import until
from tests.lab.topology import CAMPUS, WORKER, WORKER2
from tests.slurm.cluster import home
from tests.slurm.site import NETWORK, guarantees, script, words
from tests.slurm.test_usage import comment

if TYPE_CHECKING:
    from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.root, pytest.mark.slurm]
LOOK = f"echo $SLURMD_NODENAME $({NETWORK})"


def networks(told: str) -> dict[str, str]:
    """Return what each node said of its network."""
    return dict(line.split() for line in told.splitlines())


def hosts(cluster: Cluster) -> set[str]:
    """Return the nodes' own networks."""
    look = ["readlink", "/proc/self/ns/net"]
    return {cluster.lab.run(look, host=host).stdout.strip() for host in ("worker", "worker2")}


def test_each_node_has_a_sandbox_for_the_job(pair: Cluster) -> None:
    """The tasks of two steps: the same two networks, neither of which is a node's."""
    step = f"srun -Q sh -c '{LOOK}'; echo"
    told = pair.run("salloc", "-Q", "-N2", "sh", "-c", f"{step}; {step}").stdout
    first, second = (networks(part) for part in told.strip().split("\n\n"))
    assert set(first) == {"worker1", "worker2"}
    assert first == second
    assert not set(first.values()) & hosts(pair)


def test_srun_in_a_batch_job_reaches_the_other_node_and_is_called_back(pair: Cluster) -> None:
    """The script's srun, in a sandbox of one node, runs a task on the other."""
    told = words(pair, script(pair, f"srun -Q sh -c '{LOOK}'", "-N2"))
    assert {"worker1", "worker2"} <= set(told)


def test_ranks_on_two_nodes_meet_at_a_port_of_a_block(pair: Cluster) -> None:
    """Rank 0 tells its port by a file; rank 1 calls the other worker's address there."""
    ranks = f"""
import os, pathlib, socket, time
meeting = pathlib.Path("meeting")
if os.environ["SLURM_PROCID"] == "0":
    with socket.create_server(("", 0)) as server:
        address = {{"worker1": "{WORKER.ipv4}", "worker2": "{WORKER2.ipv4}"}}
        there = address[os.environ["SLURMD_NODENAME"]]
        pathlib.Path("fresh").write_text(f"{{there}} {{server.getsockname()[1]}}")
        pathlib.Path("fresh").rename(meeting)
        server.accept()[0].sendall(b"met")
else:
    while not meeting.exists():
        time.sleep(0.05)
    address, port = meeting.read_text().split()
    print(socket.create_connection((address, int(port)), timeout=10).recv(3).decode())
"""
    assert pair.run("srun", "-N2", "-n2", "python3", "-c", ranks).stdout.split() == ["met"]


def test_the_comment_has_the_bytes_of_both_nodes(pair: Cluster) -> None:
    """Two epilogs write it, at about the same time; neither is lost."""
    fetch = f"curl -sfo /dev/null http://{CAMPUS.ipv4}/bytes/200000"
    number = pair.run("srun", "-N2", "sh", "-c", f"{fetch}; echo $SLURM_JOB_ID").stdout.split()[0]
    parts = dict(part.split(": ", 1) for part in comment(pair, number, parts=2).split("; "))
    assert set(parts) == {"lark worker1", "lark worker2"}
    for part in parts.values():
        received = int(part.split("received=")[1].split()[0])
        assert 200_000 < received < 250_000


def test_bandwidth_is_each_nodes_own(pair: Cluster) -> None:
    """--gres counts on every node, and the guarantee is held on both."""
    job = ["srun", "-N2", "--gres=bandwidth:300", "sleep", "60"]
    process = pair.lab.start(job, user="alice", cwd=home("alice"))

    for host in ("worker", "worker2"):
        until(partial(guarantees, pair, host), f"a guarantee on {host}")
        assert guarantees(pair, host) == pytest.approx([300], rel=0.02)
    process.signal(9)
    process.wait()
