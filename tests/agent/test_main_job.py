"""The main job, end to end: a wrapped job, its network, its record, and who may ask for it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.bench.start import measure
from tests.lab.demo import final_records
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

AGENT = """
worker = "wn042"
shared_accounts = ["bob"]
[collector]
address = "127.0.0.1:9620"
insecure = true
[accounting]
interval_seconds = 1
[pool]
ready = 8
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
[profiles.offline]
connectivity = "none"
[[rules]]
when = 'AcctGroup == "secret"'
profile = "offline"
"""
AGENT_SOCKET = ["--agent", "/run/lark/agent.sock"]
COLLECTOR_SOCKET = ["--collector", "/run/lark-collector/query.sock"]
DOWNLOAD = ["curl", "-sSf", "-o", "/dev/null", "http://server.campus.test/bytes/50000"]


@pytest.fixture(scope="module")
def system() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces")
    with Lab() as lab:
        lab.collector()
        lab.agent(AGENT)
        yield lab


def ask(lab: Lab, *words: str, user: str = "root", status: int = 0) -> Any:
    done = lab.run(["lark", *words, "--json"], user=user, check=False)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout) if status == 0 else done.stderr


def run(lab: Lab, *command: str, **how: Any) -> dict[str, Any]:
    """Run a job and return its final record from the collector."""
    job = lab.start_job(list(command), **how)
    assert job.result(60).status == 0
    (record,) = final_records(lab, [job.job_id])
    return record


def test_the_record_of_an_htcondor_job_is_complete(system: Lab) -> None:
    """Who, where, what, how it ended, and to the class what it moved."""
    ad = {"Owner": "carla", "AcctGroup": "group_atlas.prod"}
    record = run(system, *DOWNLOAD, user="bob", ad=ad)
    expected = {
        "worker": "wn042", "scheduler": "htcondor", "owner": "carla", "uid": 1002, "verified": True,
        "accounting_group": "group_atlas.prod", "profile": "nat", "connectivity": "nat",
        "state": "ended", "exit_reason": "exited", "exit_status": 0, "final": True, "drops": [],
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert record["started_ns"] < record["ended_ns"] <= record["sampled_ns"]
    assert [one["class"] for one in record["classes"]] == ["campus"]
    assert record["received"]["bytes"] > 50000
    assert record["attachment_id"][14] == "7"
    assert record["last_port"] - record["first_port"] == 351


def test_slurms_environment_names_the_job(system: Lab) -> None:
    """The same wrapper, another batch system."""
    job = system.start_job(["/bin/true"], user="alice", scheduler="slurm")
    assert job.result().status == 0
    (record,) = final_records(system, [f"campus:{job.job_id}"])
    assert (record["scheduler"], record["owner"]) == ("slurm", "alice")
    assert record["verified"]


def test_the_wrappers_arguments_name_a_plain_job(system: Lab) -> None:
    """A user at a prompt names the job; the owner is who the kernel says."""
    wrapped = ["/run/lark-bin/lark-run", "--job-id", "nightly", "--group", "ops", "--", *DOWNLOAD]
    system.run(wrapped, user="alice", env={"SLURM_JOB_USER": "bob", "SLURM_JOB_ID": "1"})
    (listed,) = ask(system, *AGENT_SOCKET, "job", "nightly")["runs"]
    record = listed.get("record", listed)
    assert (record["owner"], record["verified"]) == ("alice", False)
    assert record["accounting_group"] == "ops"


def test_a_rule_takes_the_network_away(system: Lab) -> None:
    """A job of that group has loopback only, and a record all the same."""
    code = "import socket; assert [n for _, n in socket.if_nameindex()] == ['lo']"
    record = run(system, "/usr/bin/python3", "-c", code, ad={"AcctGroup": "secret"})
    assert (record["profile"], record["connectivity"]) == ("offline", "none")
    assert record["sent"] == {"packets": 0, "bytes": 0}


def test_a_request_that_is_not_granted_fails_closed(system: Lab) -> None:
    """The job does not run, and its user reads why."""
    wrapped = ["/run/lark-bin/lark-run", "--profile", "fast", "--", "/bin/echo", "ran"]
    done = system.run(wrapped, user="alice", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert "no network profile 'fast'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_how_a_job_ended_is_recorded(system: Lab) -> None:
    """Exit codes, signals (real-time ones too), and commands that cannot be started."""
    ends = {}
    for command in (
        ["sh", "-c", "exit 7"], ["sh", "-c", "kill -SEGV $$"], ["sh", "-c", "kill -40 $$"],
        ["/no/such/command"],
    ):  # fmt: skip
        job = system.start_job(command)
        status = job.result(60).status
        (record,) = final_records(system, [job.job_id])
        ends[status] = (record["exit_reason"], record["exit_status"])
    assert ends == {
        7: ("exited", 7), -11: ("signaled", 11), -40: ("signaled", 40), 127: ("not-started", 127),
    }  # fmt: skip


@pytest.mark.parametrize("where", [AGENT_SOCKET, COLLECTOR_SOCKET], ids=["agent", "collector"])
def test_people_see_their_own_jobs(system: Lab, where: list[str]) -> None:
    """A person sees theirs; root and the admin group see all; others' jobs do not exist."""
    mine = run(system, "/bin/true", user="alice")["job_id"]
    theirs = run(system, "/bin/true", user="bob", ad={"Owner": "bob"})["job_id"]
    for user, sees in (
        ("alice", {mine}), ("bob", {theirs}), ("carol", {mine, theirs}), ("root", {mine, theirs}),
    ):  # fmt: skip
        listed = {job["job_id"] for job in ask(system, *where, "jobs", user=user)["jobs"]}
        assert listed & {mine, theirs} == sees
    assert "no job" in ask(system, *where, "job", theirs, user="alice", status=7)
    rows = ask(system, *where, "usage", "--by", "owner", user="bob")["totals"]
    assert [row["key"]["owner"] for row in rows] == ["bob"]


def test_agent_and_collector_tell_the_same(system: Lab) -> None:
    """Jobs and totals of the worker are equal at both, to the byte."""
    run(system, *DOWNLOAD)
    final = {r["attachment_id"]: r for r in ask(system, *COLLECTOR_SOCKET, "jobs")["jobs"]}
    here = {r["attachment_id"]: r for r in ask(system, *AGENT_SOCKET, "jobs")["jobs"]}
    assert here == final
    for by in ("owner", "group", "worker", "class", "day"):
        rows = [
            sorted(ask(system, *where, "usage", "--by", by)["totals"], key=str)
            for where in (AGENT_SOCKET, COLLECTOR_SOCKET)
        ]
        assert rows[0] == rows[1], by


def test_lark_run_adds_little(system: Lab) -> None:
    """The wrapper costs a start no more than three plain ones (`make bench` has the milliseconds).

    A ratio, and of the quickest starts, because other tests share the machine.
    """
    ratios = []
    for _ in range(8):
        starts = measure(system, 60)
        ratios.append(min(starts.wrapped_start) / min(starts.plain_start) - 1)
        if ratios[-1] <= 3:
            return
    pytest.fail(f"lark-run added {ratios} plain starts")


@pytest.mark.parametrize("loader", ["libbpf", "bcc"])
def test_both_loaders_carry_the_main_job(lab: Lab, loader: str) -> None:
    """The same bytes are counted, whichever program put the programs into the kernel."""
    if loader == "bcc":
        provide_headers(lab)
    lab.collector()
    lab.agent(f'{AGENT}\n[datapath]\nloader = "{loader}"\n')
    record = run(lab, "curl", "-sSf", "-o", "/dev/null", "http://198.51.100.10/bytes/100000")
    assert record["received"]["bytes"] > 100_000
    status = lab.run(["lark", "doctor", "--json"], check=False).stdout
    assert f"{loader} datapath" in status


def provide_headers(lab: Lab) -> None:
    """Show kernel headers where bcc looks for them, in the lab's own mounts."""
    script = """
set -e
release=$(uname -r)
[ -e /lib/modules/$release/build ] && exit 0
build=$(ls -d /usr/src/linux-headers-*-amd64 2>/dev/null | tail -1)
[ -n "$build" ] || exit 77
common=$(ls -d /usr/src/linux-headers-*-common | tail -1)
mount -t tmpfs modules /lib/modules
mkdir -p /lib/modules/$release
ln -s $build /lib/modules/$release/build
ln -s $common /lib/modules/$release/source
"""
    if lab.run(["sh", "-c", script], check=False).returncode == 77:
        pytest.skip("bcc needs kernel headers (package linux-headers-amd64)")
