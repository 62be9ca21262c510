"""Every way in which Slurm starts the tasks of a job leads into the job's one sandbox."""

from __future__ import annotations

import pytest

from lark_agent.model import ExitReason
from tests.agent.worker import until
from tests.slurm.cluster import Cluster, home
from tests.slurm.site import (
    NETWORK,
    all_records,
    ended,
    final,
    host_network,
    of_job,
    output,
    running,
    script,
    state,
    words,
)  # fmt: skip

pytestmark = [pytest.mark.root, pytest.mark.slurm]
STEP = f"srun -Q {NETWORK}"


def test_a_task_of_srun_is_in_a_sandbox_of_its_own(cluster: Cluster) -> None:
    """It sees eth0 and a loopback, resolves names as sandboxes do, and runs as its user."""
    look = (
        f"{NETWORK}; ls -x /sys/class/net; ls -x /proc/sys/net/ipv4/conf; id -un;"
        " grep -c lark /etc/resolv.conf; grep CapEff /proc/self/status"
    )
    network, links, conf, user, resolver, caps = (
        cluster.run("srun", "sh", "-c", look).stdout.splitlines()
    )  # fmt: skip
    assert network != host_network(cluster)
    assert links.split() == ["eth0", "lo"]
    assert "uplink0" not in conf
    assert (user, resolver) == ("alice", "1")
    assert caps.split()[1] == "0" * 16


def test_tasks_of_a_job_share_its_sandbox_and_talk_over_its_loopback(cluster: Cluster) -> None:
    """Four ranks meet at rank 0's port on 127.0.0.1, as programs with MPI do."""
    ranks = """
import os, socket, time
rank = int(os.environ["SLURM_PROCID"])
if rank == 0:
    with socket.create_server(("127.0.0.1", 5000)) as server:
        for _ in range(3):
            server.accept()[0].sendall(b"hello")
else:
    for _ in range(200):
        try:
            there = socket.create_connection(("127.0.0.1", 5000))
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    assert there.recv(5) == b"hello"
print(os.readlink("/proc/self/ns/net"))
"""
    networks = cluster.run("srun", "-n4", "python3", "-c", ranks).stdout.split()
    assert len(networks) == 4
    assert len(set(networks)) == 1
    assert networks[0] != host_network(cluster)


def test_ranks_find_each_other_by_slurms_own_pmi(cluster: Cluster) -> None:
    """With --mpi=pmi2, as MPI is started: its key-value store passes rank 0's port on."""
    ranks = """
import ctypes, os, socket
pmi = ctypes.CDLL("libpmi2.so.0")
numbers = [ctypes.c_int() for _ in range(4)]
assert pmi.PMI2_Init(*map(ctypes.byref, numbers)) == 0
_, size, rank, _ = (number.value for number in numbers)
if rank == 0:
    server = socket.create_server(("127.0.0.1", 0))
    assert pmi.PMI2_KVS_Put(b"port", str(server.getsockname()[1]).encode()) == 0
assert pmi.PMI2_KVS_Fence() == 0
if rank == 0:
    for _ in range(size - 1):
        server.accept()[0].sendall(b"hello")
else:
    port, length = ctypes.create_string_buffer(16), ctypes.c_int()
    assert pmi.PMI2_KVS_Get(None, -1, b"port", port, 16, ctypes.byref(length)) == 0
    assert socket.create_connection(("127.0.0.1", int(port.value))).recv(5) == b"hello"
assert pmi.PMI2_Finalize() == 0
print(size, os.readlink("/proc/self/ns/net"))
"""
    said = cluster.run("srun", "--mpi=pmi2", "-n3", "python3", "-c", ranks).stdout.splitlines()
    (size, network), *others = [line.split() for line in said]
    assert (size, others) == ("3", [["3", network]] * 2)
    assert network != host_network(cluster)


def test_two_jobs_of_a_user_are_apart(cluster: Cluster) -> None:
    """Neither sees the other's loopback, nor reaches its address."""
    listen = "exec python3 -m http.server 5001 --directory /tmp"
    first = script(cluster, f"{NETWORK}; ip -4 -br a show eth0; {listen}")
    until(lambda: len(output(cluster, first).split()) >= 4, "a job that listens")
    network, address = (output(cluster, first).split()[i] for i in (0, 3))
    knock = "curl -so /dev/null -m 2 --retry 3 --retry-connrefused http://{}:5001/; echo $?"
    until(
        lambda: (
            cluster.run(
                "srun", "-Q", "--overlap", f"--jobid={first}", "sh", "-c", knock.format("127.0.0.1")
            ).stdout.strip()
            == "0"
        ),
        "a server that answers its own job",
    )
    ask = "; ".join([NETWORK, knock.format("127.0.0.1"), knock.format(address.split("/")[0])])
    other, own_loopback, other_job = cluster.run("srun", "sh", "-c", ask).stdout.split()
    assert other not in {network, host_network(cluster)}
    assert own_loopback == "7"  # nobody listens there
    assert other_job in {"7", "28"}
    cluster.run("scancel", str(first))
    ended(cluster, first)


def test_steps_of_a_batch_job_join_its_sandbox(cluster: Cluster) -> None:
    """The script and each srun in it, one after the other, have one network and one record."""
    job = script(cluster, f"{NETWORK}; {STEP}; {STEP}")
    networks = words(cluster, job)
    assert len(networks) == 3
    assert len(set(networks)) == 1
    assert networks[0] != host_network(cluster)
    final(cluster, job)
    assert len(of_job(cluster, job)) == 1


def test_steps_of_an_allocation_share_a_sandbox_that_is_held_between_them(
    cluster: Cluster,
) -> None:
    """salloc: two steps with nothing in between; the record ends with the allocation."""
    told = cluster.run(
        "salloc", "-Q", "sh", "-c", f"echo job=$SLURM_JOB_ID; {STEP}; sleep 1; {STEP}"
    )
    number, first, second = told.stdout.split()
    assert first == second != host_network(cluster)
    final(cluster, number.removeprefix("job="))
    assert len(of_job(cluster, number.removeprefix("job="))) == 1


def test_the_shell_of_salloc_is_in_the_sandbox(cluster: Cluster) -> None:
    """The interactive step's shell, and an srun that is typed into it."""
    told = cluster.run("salloc", "-Q", stdin=f"{NETWORK}\n{STEP}\n").stdout.split()
    assert len(told) == 2
    assert told[0] == told[1] != host_network(cluster)


def test_overlapping_steps_join_from_outside(cluster: Cluster) -> None:
    """A step that is started with --overlap from the submit host lands where the job is."""
    job = script(cluster, f"{NETWORK}; exec sleep 60")
    until(lambda: output(cluster, job), "a job that runs")
    looked = cluster.run(
        "srun", "-Q", "--overlap", f"--jobid={job}", "readlink", "/proc/self/ns/net"
    )
    assert looked.stdout == output(cluster, job)
    cluster.run("scancel", str(job))
    assert final(cluster, job).final


def test_elements_of_an_array_are_apart(cluster: Cluster) -> None:
    """Each has a sandbox and a record, named ARRAY_ELEMENT."""
    array = script(cluster, f"{NETWORK}; sleep 1", "--array=1-3", "-o", "array-%a.out")
    networks = set()
    for element in (1, 2, 3):
        record = final(cluster, f"{array}_{element}")
        assert (record.job.owner, record.job.accounting_group) == ("alice", "physics")
        networks.add(cluster.lab.path(f"{home('alice')}/array-{element}.out").read_text())
    assert len(networks) == 3
    assert host_network(cluster) + "\n" not in networks


def test_scancel_ends_the_job_and_its_record(cluster: Cluster) -> None:
    """A job that is cancelled gives its sandbox back."""
    job = script(cluster, "exec sleep 300")
    running(cluster, job)
    until(lambda: of_job(cluster, job), "a job in its sandbox")
    cluster.run("scancel", str(job))
    record = final(cluster, job)
    assert ended(cluster, job) == "CANCELLED"
    assert (record.exit_reason, record.exit_status) == (ExitReason.SIGNALED, 15)


def test_a_requeued_job_gets_another_sandbox(cluster: Cluster) -> None:
    """Each run has its record; the first one's network is gone."""
    job = script(cluster, f"{NETWORK}; [ $SLURM_RESTART_COUNT ] || exec sleep 300", "--requeue",
                 "--open-mode=append")  # fmt: skip
    until(lambda: output(cluster, job), "a job that runs")
    cluster.run("scontrol", "requeue", str(job))
    until(lambda: state(cluster, job) == "PENDING", "a job that waits again")
    cluster.run("scontrol", "update", f"jobid={job}", "starttime=now", user="root")
    first, second = [word for word in words(cluster, job) if word.startswith("net:")]
    assert first != second
    final(cluster, job)
    assert len(of_job(cluster, job)) == 2


def test_sattach_reads_a_task(cluster: Cluster) -> None:
    """The output of a task in a sandbox is heard by who attaches to its step."""
    job = script(cluster, "srun sh -c 'while sleep 0.2; do echo tick; done'")
    until(lambda: "tick" in output(cluster, job), "a step that talks")
    listening = cluster.lab.start(["sattach", f"{job}.0"], user="alice", cwd=home("alice"))
    until(lambda: "tick" in listening.stdout, f"words of the task\n{listening.stderr}")
    cluster.run("scancel", str(job))
    listening.wait()
    ended(cluster, job)


def test_a_task_keeps_what_slurm_gives_it(cluster: Cluster) -> None:
    """Standard input, exit status, signals and working directory are as without the plugin."""
    done = cluster.run("srun", "sh", "-c", "cat; pwd; exit 7", stdin="in\n", check=False)
    assert (done.stdout.split(), done.returncode) == (["in", home("alice")], 7)
    killed = cluster.run("srun", "sh", "-c", "kill -9 $$", check=False)
    assert killed.returncode == 137


def test_jobs_are_named_by_slurm_and_not_by_their_environment(cluster: Cluster) -> None:
    """A user who exports another job's name still has the own one, owner and account."""
    forged = {
        "SLURM_JOB_ACCOUNT": "students", "SLURM_CLUSTER_NAME": "elsewhere",
        "SLURM_JOB_USER": "bob", "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "1",
        "_CONDOR_JOB_AD": "/etc/passwd",
    }  # fmt: skip
    before = len(all_records(cluster))
    number = cluster.run("srun", "sh", "-c", "echo $SLURM_JOB_ID", env=forged).stdout.strip()
    job = final(cluster, number).job
    assert (job.owner, job.uid, job.accounting_group, job.verified) == (
        "alice", 1001, "physics", True,
    )  # fmt: skip
    assert len(all_records(cluster)) == before + 1
