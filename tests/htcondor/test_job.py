"""What users rely on, in sandboxed jobs of a real pool: files, words, signals, names, ports."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.htcondor.jobs import EVICTED, EXECUTING

if TYPE_CHECKING:
    from tests.htcondor.pool import Pool

pytestmark = [pytest.mark.root, pytest.mark.htcondor]

RANKS = """
import os, socket, sys, time
rank, port = int(sys.argv[1]), 5000
if rank == 0:
    listener = socket.create_server(("127.0.0.1", port), backlog=8)
    folder = os.environ["SUBMITTED_FROM"]
    open(f"{folder}/listening", "w").close()
    while not os.path.exists(f"{folder}/go"):
        time.sleep(0.05)
    for _ in range(3):
        connection, _ = listener.accept()
        connection.sendall(f"{os.environ['WHOSE']} ".encode() + connection.recv(100))
else:
    connection = socket.create_connection(("127.0.0.1", port), 30)
    connection.sendall(f"rank {rank}".encode())
    print(connection.recv(100).decode())
"""
MPIRUN = """
python3 ranks.py 0 &
until [ -e $SUBMITTED_FROM/go ]; do sleep 0.1; done
for rank in 1 2 3; do python3 ranks.py $rank & done
wait
"""
CERTIFICATE = """
umask 077
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=alice -keyout key -out certificate
cat certificate key > proxy
"""
TOKEN = "eyJhbGciOiJub25lIn0.e30.\n"


def test_a_job_runs_in_a_sandbox_and_has_a_record(pool: Pool) -> None:
    """A job of an unmodified pool downloads through its sandbox, and its record says so."""
    job = pool.submit("curl -sSf -o got http://server.campus.test/bytes/100000 && ip -br address")
    end = job.ended()
    assert end.status == 0, end
    assert "uplink0" not in end.stdout
    record = job.record()
    assert record["owner"] == "alice"
    assert record["received"]["bytes"] > 100000


def test_files_travel_both_ways(pool: Pool) -> None:
    """Input files arrive with the job and what it made goes back to where it was submitted."""
    job = pool.submit("tr a-z A-Z < words > shouted", inputs={"words": "stage me\n"})
    assert job.ended().status == 0
    assert job.file("shouted").read_text() == "STAGE ME\n"


def test_output_streams_while_the_job_runs(pool: Pool) -> None:
    """With stream_output the user reads what the job said before it has ended."""
    job = pool.submit(
        "echo early; until [ -e $SUBMITTED_FROM/enough ]; do sleep 0.2; done; echo late",
        stream_output="true",
    )
    job.await_event(EXECUTING)
    pool.await_true(lambda: job.file("out").exists() and "early" in job.file("out").read_text())
    assert "late" not in job.file("out").read_text()
    job.file("enough").touch()
    assert job.ended().stdout == "early\nlate\n"


def test_exit_statuses_are_the_jobs_own(pool: Pool) -> None:
    """HTCondor reports the status that the job gave, those that the wrapper uses included."""
    jobs = {status: pool.submit(f"exit {status}") for status in (0, 1, 125, 126, 127, 255)}
    assert {status: job.ended().status for status, job in jobs.items()} == {s: s for s in jobs}


def test_an_end_by_signal_is_reported_as_one(pool: Pool) -> None:
    """HTCondor reports the signal that killed the job, though the wrapper was started first."""
    numbers = (signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1)
    jobs = {number: pool.submit(f"kill -{number:d} $$") for number in numbers}
    assert {number: job.ended().status for number, job in jobs.items()} == {n: -n for n in jobs}
    assert all(job.record()["final"] for job in jobs.values())


def test_names_resolve(pool: Pool) -> None:
    """The job's resolver finds names of the campus and of the internet."""
    job = pool.submit("getent ahostsv4 server.campus.test && getent ahostsv6 server.internet.test")
    end = job.ended()
    assert "198.51.100.10" in end.stdout, end
    assert "2001:db8:3::10" in end.stdout, end


def test_processes_of_a_job_talk_over_loopback_and_jobs_do_not_meet(pool: Pool) -> None:
    """Ranks of two jobs use the same port at the same time, each job on a loopback of its own."""
    jobs = [
        pool.submit(f"export WHOSE={user}\n{MPIRUN}", inputs={"ranks.py": RANKS}, user=user)
        for user in ("alice", "bob")
    ]
    pool.await_true(lambda: all(job.file("listening").exists() for job in jobs))
    for job in jobs:
        job.file("go").touch()
    for job in jobs:
        end = job.ended()
        assert sorted(end.stdout.splitlines()) == [f"{job.user} rank {n}" for n in (1, 2, 3)], end


def test_a_job_has_a_tmp_of_its_own(pool: Pool) -> None:
    """The private /tmp that HTCondor mounts for a job is still there behind the wrapper."""
    job = pool.submit("touch /tmp/mine; ls tmp")
    assert job.ended().stdout == "mine\n"
    assert not pool.machine.path("/tmp/mine").exists()


def test_a_vacated_job_gets_its_signal_and_runs_again(pool: Pool) -> None:
    """condor_vacate_job sends SIGTERM; what the job leaves comes back when it runs again."""
    job = pool.submit(
        "[ -e left ] && exec cat left\n"
        "trap 'echo vacated in time > left; exit 0' TERM\n"
        "touch $SUBMITTED_FROM/ready; while :; do sleep 0.1; done",
        when_to_transfer_output="ON_EXIT_OR_EVICT",
    )
    pool.await_true(job.file("ready").exists)
    pool.run(["condor_vacate_job", job.number], user="alice")
    job.await_event(EVICTED)
    assert job.ended().stdout == "vacated in time\n"
    assert len(pool.records(job.number)) == 2


def test_a_job_checkpoints_itself(pool: Pool) -> None:
    """A job that ends with its checkpoint status is started again, with its files."""
    job = pool.submit(
        "[ -e state ] && { echo resumed from $(cat state); exit 0; }\necho one > state; exit 85",
        checkpoint_exit_code=85,
        transfer_checkpoint_files="state",
    )
    end = job.ended()
    assert (end.status, end.stdout) == (0, "resumed from one\n")


def test_a_removed_job_leaves_nothing(pool: Pool) -> None:
    """condor_rm ends every process of the job; its record is final and its sandbox gone."""
    job = pool.submit("sleep 1000 & echo $! > $SUBMITTED_FROM/pid; sleep 1000")
    pool.await_true(job.file("pid").exists)
    assert not pool.records(job.number)[0]["final"]
    pool.run(["condor_rm", job.number], user="alice")
    record = job.record()
    assert record["final"]
    assert not pool.machine.path(f"/proc/{int(job.file('pid').read_text())}").exists()


def test_a_proxy_comes_with_the_job(pool: Pool) -> None:
    """An X.509 proxy named in the submit file is there, and X509_USER_PROXY says where."""
    pool.run(["sh", "-c", CERTIFICATE], user="alice", cwd="/home/alice")
    job = pool.submit(
        'cmp "$X509_USER_PROXY" $SUBMITTED_FROM/../proxy && echo $X509_USER_PROXY',
        x509userproxy="/home/alice/proxy",
    )
    end = job.ended()
    assert end.status == 0, end
    assert "/execute/" in end.stdout


def test_a_token_comes_with_the_job(pool: Pool) -> None:
    """A token that the credd keeps for its user is there, and _CONDOR_CREDS says where."""
    pool.machine.path("/home/alice/token").write_text(TOKEN)
    store = ["condor_store_cred", "add-oauth", "-s", "grid", "-i", "/home/alice/token"]
    pool.run(store, user="alice")
    kept = pool.machine.path("/var/lib/condor/oauth/alice")
    (kept / "grid.use").write_text(TOKEN)  # what a credmon makes of grid.top
    (kept / "grid.use").chmod(0o600)
    job = pool.submit("cat $_CONDOR_CREDS/grid.use", use_oauth_services="grid")
    assert job.ended().stdout == TOKEN
