"""Several processes of one job: who joins its sandbox, who does not, and when it ends."""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import ExitReason
from tests.agent.launching import Launcher, Starter, all_records, pool
from tests.agent.test_gate import ASK, head, part
from tests.agent.worker import (
    ONCE,
    Talker,
    final,
    in_kernel,
    kill,
    python,
    records,
    times,
    until,
)  # fmt: skip

if TYPE_CHECKING:
    from tests.agent.launching import Child
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]

PURPOSE, USER, ENVIRONMENT = 5, 6, 2
REFUSED_BY_POLICY = 2


def slurm(job: int, uid: int, purpose: bytes = b"r") -> bytes:
    """Return what Slurm's plugin says of a task, in hexadecimal."""
    named = part(ENVIRONMENT, b"SLURM_JOB_ID=%d" % job) + part(ENVIRONMENT, b"SLURM_JOB_USER=alice")
    return head() + part(PURPOSE, purpose) + part(USER, struct.pack("<I", uid)) + named


# a task: asks as root, then enters what it was given, becomes the user, and stays until told
TASK = """
import ctypes, os, pathlib, socket, struct, sys, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(30)
s.connect("/run/lark/run.sock")
s.send(bytes.fromhex(sys.argv[1]))
answer, fds, _, _ = socket.recv_fds(s, 2000, 1)
if not fds:
    raise SystemExit(answer[8:].decode())
assert ctypes.CDLL(None).setns(fds[0], 0x40000000) == 0
s.close()
os.setuid(1001)
pathlib.Path(sys.argv[2] + ".net").write_text(os.readlink("/proc/self/ns/net"))
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.01)
raise SystemExit(int(sys.argv[3]))
"""


def test_a_second_process_joins(lab: Lab) -> None:
    """What the starter runs beside the job, as condor_ssh_to_job does, sees the job's network."""
    lab.agent(pool())
    starter = Starter(lab)
    talker = Talker(lab, start=starter.run)
    inside = starter.run(["sh", "-c", "readlink /proc/self/ns/net; ip -o link"]).wait()
    assert inside.stdout.startswith(talker.job.network)
    assert "eth0" in inside.stdout
    talker.end()
    final(lab, starter.job_id)
    assert len(all_records(lab, starter.job_id)) == 1


def test_a_shell_that_cannot_start_says_nothing_of_the_job(lab: Lab) -> None:
    """The record tells how the job ended, whatever became of those that joined."""
    lab.agent(pool())
    starter = Starter(lab)
    job = starter.run(["sleep", "1000"])
    assert job.network
    assert starter.run(["/no/such/program"]).wait().status == 127
    job.signal()
    assert final(lab, starter.job_id).exit_reason == ExitReason.SIGNALED


@pytest.mark.parametrize("prepared", [False, True])
def test_a_rewritten_ad_changes_nothing(lab: Lab, prepared: bool) -> None:
    """A job that gives itself another group, and more network, finds its shell where it was."""
    rule = """
[profiles.offline]
connectivity = "none"
[[rules]]
when = 'AcctGroup == "secret"'
profile = "offline"
"""
    lab.agent(pool() + rule)
    starter = Starter(lab, ad={"AcctGroup": "secret"})
    if prepared:
        assert starter.prepare() is None
    job = starter.run(["sleep", "1000"])
    assert job.network
    starter.rewrite(".job.ad", f'GlobalJobId = "{starter.job_id}"\nAcctGroup = "open"\n')
    shell = starter.run(["ls", "/sys/class/net"]).wait()
    assert (shell.status, shell.stdout.split()) == (0, ["lo"])
    starter.rewrite(".job.ad", "not even an ad")
    assert starter.run(["true"]).wait().status == 0
    job.signal()
    assert final(lab, starter.job_id).profile == "offline"


def test_a_job_that_is_started_again_gets_the_same_plan(lab: Lab) -> None:
    """After a checkpoint the starter runs the job once more; its ad is the job's by then."""
    rule = '[profiles.offline]\nconnectivity = "none"\n[[rules]]\n'
    rule += 'when = \'AcctGroup == "secret"\'\nprofile = "offline"\n'
    lab.agent(pool() + rule)
    starter = Starter(lab, ad={"AcctGroup": "secret"})
    assert starter.run(["true"]).wait().status == 0
    final(lab, starter.job_id)
    starter.rewrite(".job.ad", f'GlobalJobId = "{starter.job_id}"\nAcctGroup = "open"\n')
    again = starter.run(["ls", "/sys/class/net"]).wait()
    assert (again.status, again.stdout.split()) == (0, ["lo"])


def test_the_job_ends_when_its_last_process_has(lab: Lab) -> None:
    """A shell that outlives the job is counted to its end; the job's own status is the record's."""
    agent = lab.agent(pool())
    starter = Starter(lab)
    go = f"{starter.scratch}/go"
    job = starter.run(["sh", "-c", f"until [ -e {go} ]; do sleep 0.05; done; exit 7"])
    assert job.network
    shell = Talker(lab, start=starter.run)
    starter.rewrite("go", "")
    assert job.wait().status == 7
    shell.talk()
    assert not records(lab)[starter.job_id].final
    shell.talk()
    shell.end()
    record = final(lab, starter.job_id)
    assert (record.exit_reason, record.exit_status) == (ExitReason.EXITED, 7)
    assert record.usage.sent == times(ONCE, 2)
    assert len(all_records(lab, starter.job_id)) == 1
    agent.terminate()
    assert in_kernel(lab) == set()


def test_a_shell_that_ends_first_takes_nothing_with_it(lab: Lab) -> None:
    """The job talks on after it, and its end is the job's."""
    lab.agent(pool())
    starter = Starter(lab)
    talker = Talker(lab, start=starter.run)
    assert starter.run(["sh", "-c", "exit 3"]).wait().status == 3
    talker.talk()
    talker.end()
    record = final(lab, starter.job_id)
    assert (record.exit_reason, record.exit_status) == (ExitReason.EXITED, 0)
    assert record.usage.sent == ONCE


def test_a_job_ends_with_its_process_and_not_with_its_starter(lab: Lab) -> None:
    """The starter still moves files; the sandbox serves the next job meanwhile."""
    lab.agent(pool(slots=1))
    starter = Starter(lab)
    assert starter.run(["true"]).wait().status == 0
    final(lab, starter.job_id)
    assert Starter(lab).run(["true"]).wait().status == 0


@pytest.mark.parametrize("first", ["job", "shell"])
def test_a_restarted_agent_knows_both(lab: Lab, first: str) -> None:
    """After a crash of the agent both are watched: one end is not the other's."""
    agent = lab.agent(pool())
    starter = Starter(lab)
    job, shell = Talker(lab, start=starter.run), Talker(lab, start=starter.run)
    kill(agent)
    lab.agent(pool())
    ends, stays = (job, shell) if first == "job" else (shell, job)
    ends.talk()
    ends.end()
    stays.talk()
    assert not records(lab)[starter.job_id].final
    stays.end()
    record = final(lab, starter.job_id)
    assert (record.exit_reason, record.usage.sent) == (ExitReason.EXITED, times(ONCE, 2))


def test_what_ends_while_no_agent_runs_is_not_waited_for(lab: Lab) -> None:
    """One of two ended in the agent's absence: the other still holds the sandbox."""
    agent = lab.agent(pool())
    starter = Starter(lab)
    job, shell = Talker(lab, start=starter.run), Talker(lab, start=starter.run)
    kill(agent)
    job.end()
    lab.agent(pool())
    shell.talk()
    shell.end()
    assert final(lab, starter.job_id).usage.sent == ONCE


def test_another_user_cannot_join(lab: Lab) -> None:
    """Whoever the starter runs under another account does not get into this job's network."""
    lab.agent(pool())
    starter = Starter(lab)
    job = starter.run(["sleep", "1000"])
    assert job.network
    done = starter.start(["/run/lark-bin/lark-run", "echo", "ran"], user="bob")
    told = done.wait()
    assert (told.status, told.stdout) == (125, "")
    assert "another user's" in told.stderr
    job.signal()


def test_two_starters_are_two_jobs(lab: Lab) -> None:
    """Jobs of one user are as far apart as ever."""
    lab.agent(pool())
    jobs = [Starter(lab).run(["sleep", "1000"]) for _ in range(2)]
    assert jobs[0].network != jobs[1].network
    for job in jobs:
        job.signal()


@pytest.mark.parametrize(
    "words", [slurm(1, 0), slurm(1, 1002), slurm(1, 1001), slurm(1, 1001, b"e")],
    ids=["root", "bob", "herself", "end"],
)  # fmt: skip
def test_a_user_speaks_for_no_account(lab: Lab, words: bytes) -> None:
    """Only root may name an account, and only root may end a job."""
    lab.agent(pool())
    status, _, text = lab.run(python(ASK, words.hex()), user="alice").stdout.partition(" ")
    assert int(status) == REFUSED_BY_POLICY
    assert "only root may" in text


@pytest.mark.parametrize("purpose", [b"p", b"e"])
def test_a_user_announces_and_ends_nothing(lab: Lab, purpose: bytes) -> None:
    """Who was not started by the batch system has no key to a sandbox of others."""
    lab.agent(pool())
    words = head() + part(PURPOSE, purpose)
    status, _, text = lab.run(python(ASK, words.hex()), user="alice").stdout.partition(" ")
    assert int(status) == REFUSED_BY_POLICY
    assert "only what the batch system starts" in text


def start_task(daemon: Launcher, job: int, name: str, status: int = 0) -> Child:
    """Start a task of a Slurm job as root, and wait until it has its network."""
    file = f"/run/lab/home/alice/{name}"
    task = daemon.start(python(TASK, slurm(job, 1001).hex(), file, str(status)))
    until(daemon.lab.path(f"{file}.net").exists, "a task in its sandbox")
    return task


def end_task(lab: Lab, task: Child, name: str) -> int:
    lab.path(f"/run/lab/home/alice/{name}").touch()
    return task.wait().status


def network(lab: Lab, name: str) -> str:
    return lab.path(f"/run/lab/home/alice/{name}.net").read_text()


def test_steps_of_a_job_share_what_other_jobs_do_not(lab: Lab) -> None:
    """Tasks, and steps after a pause, have one sandbox until the batch system ends the job."""
    lab.agent(pool(slots=4))
    daemon = Launcher(lab, "slurmstepd")
    task, peer = start_task(daemon, 41, "a"), start_task(daemon, 41, "b")
    stranger = start_task(daemon, 42, "c")
    assert network(lab, "a") == network(lab, "b") != network(lab, "c")
    assert (end_task(lab, task, "a"), end_task(lab, peer, "b")) == (0, 0)
    later = start_task(Launcher(lab, "slurmstepd"), 41, "d", 5)
    assert network(lab, "d") == network(lab, "a")
    assert end_task(lab, later, "d") == 5
    assert not records(lab)["41"].final
    done = json.dumps(lab.run(python(ASK, slurm(41, 1001, b"e").hex())).stdout)
    assert done.startswith('"0 ')
    record = final(lab, "41")
    assert (record.exit_reason, record.exit_status) == (ExitReason.EXITED, 0)
    assert len(all_records(lab, "41")) == 1
    assert end_task(lab, stranger, "c") == 0


def test_a_job_between_steps_survives_the_agent(lab: Lab) -> None:
    """With no task running and the agent restarted, the next step finds the job's sandbox."""
    agent = lab.agent(pool())
    daemon = Launcher(lab, "slurmstepd")
    end_task(lab, start_task(daemon, 43, "e"), "e")
    kill(agent)
    lab.agent(pool())
    later = start_task(daemon, 43, "f")
    assert network(lab, "e") == network(lab, "f")
    end_task(lab, later, "f")
    lab.run(python(ASK, slurm(43, 1001, b"e").hex()))
    final(lab, "43")
    assert len(all_records(lab, "43")) == 1


def test_a_job_without_steps_is_not_held_for_ever(lab: Lab) -> None:
    """Where nobody says that the job has ended, its time does."""
    config = pool(slots=1).replace("reserve_seconds", "hold_seconds = 1\nreserve_seconds")
    lab.agent(config)
    end_task(lab, start_task(Launcher(lab, "slurmstepd"), 44, "g"), "g")
    final(lab, "44")
    assert lab.job(["true"]).status == 0
