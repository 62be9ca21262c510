"""The way in without a file capability: with no_new_privs a job gets the same plan, held as ever.

`unprivileged` starts lark-run as HTCondor with DISABLE_SETUID does. `tests.lab.impostor` is what a
hostile user would run in its stead: it is root of the namespace that the agent furnishes.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import Connectivity, Count, ExitReason
from tests.agent.worker import (
    ONCE,
    QUICK,
    TALK,
    drops,
    final,
    in_kernel,
    kill,
    python,
    records,
    until,
)
from tests.lab.capture import Capture, flows
from tests.lab.filesystem import ROOT, STATE, WRAPPERS
from tests.lab.topology import CAMPUS, INTERNET, WORKER
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.jobs import AdValue, JobHandle

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
ROUTED4, ROUTED6 = "198.18.7.0/24", "2001:db8:7::/112"
CONFIG = (
    QUICK.replace("ready = 1", "ready = 2")
    + f"""
[addresses]
routed4 = "{ROUTED4}"
routed6 = "{ROUTED6}"
[profiles.public]
connectivity = "routed"
[profiles.nothing]
connectivity = "none"
[profiles.open]
connectivity = "host"
[requests]
profiles = ["public", "nothing", "open", "nat"]
"""
)
NO_NEW_PRIVS = f'#!/bin/sh\nexec setpriv --no-new-privs {WRAPPERS}/lark-run "$@"\n'
FETCH = ["curl", "-sSf", "-o", "/dev/null", f"http://{CAMPUS.ipv4}/bytes/20000000"]
LOOK = (
    "readlink /proc/self/ns/user; ls /sys/class/net; grep -E 'Cap(Prm|Eff|Amb)' /proc/self/status"
)
LOOP = """
import socket
with socket.create_server(("127.0.0.1", 0)) as here:
    socket.create_connection(here.getsockname()).close()
"""


def wrapper(lab: Lab) -> str:
    """Return a wrapper that starts lark-run with no_new_privs."""
    inside = STATE / "bin" / "unprivileged"
    lab.path(inside).write_text(NO_NEW_PRIVS)
    lab.path(inside).chmod(0o755)
    return str(inside)


def start(lab: Lab, command: list[str], profile: str = "nat") -> JobHandle:
    ad: dict[str, AdValue] = {"RequestedProfile": profile}
    return lab.start_job(command, ad=ad, wrapper=wrapper(lab))


def impostor(lab: Lab, order: str, *command: str, user: str = "alice") -> JobHandle:
    """Start a command by a program that is root of its namespace."""
    code = str(ROOT / "tests/lab/impostor.py")
    return lab.start_job(
        ["/usr/bin/python3", "-I", "-S", code, order, *command], wrapper=None, user=user
    )


def hostile(*names: str) -> list[str]:
    code = str(ROOT / "tests/lab/hostile.py")
    far = (CAMPUS.ipv4, CAMPUS.ipv6, INTERNET.ipv4)
    return ["/usr/bin/python3", "-I", "-S", code, *far, *names]


def only_record(lab: Lab, before: set[str]) -> str:
    """Return the id of the one job that came since."""
    (job_id,) = set(records(lab)) - before
    return job_id


def sums(capture: Path, *own: str) -> tuple[Count, Count]:
    """Return what the job sent and received, by its addresses outside."""
    ours = own or (WORKER.ipv4, WORKER.ipv6)
    packets = flows(capture)
    there = [p.ip_len for p in packets if p.src in ours]
    back = [p.ip_len for p in packets if p.dst in ours]
    return Count(len(there), sum(there)), Count(len(back), sum(back))


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab(delegated=(ROUTED4, ROUTED6)) as made:
        made.agent(CONFIG)
        yield made


@pytest.mark.parametrize("profile", ["nat", "public"])
def test_the_record_equals_the_capture(world: Lab, tmp_path: Path, profile: str) -> None:
    """To the packet and the byte, both ways; the job is in its own address or behind NAT."""
    with Capture("eth0", tmp_path / "campus.pcap", world.netns("campus")):
        job = start(world, FETCH, profile)
        done = job.result()
        assert done.status == 0, done.stderr
        record = final(world, job.job_id)
    own = [WORKER.ipv4 if profile == "nat" else record.ipv4]
    sent, received = sums(tmp_path / "campus.pcap", *own)
    assert record.exit_reason is ExitReason.EXITED
    assert (record.usage.sent, record.usage.received) == (sent, received)
    assert record.usage.received.bytes > 20_000_000


def test_the_job_is_a_plain_user_in_its_network(world: Lab) -> None:
    """A user namespace of its own, without a capability; /sys and names are the sandbox's."""
    own = start(world, ["sh", "-c", LOOK]).result()
    assert own.status == 0, own.stderr
    namespace, *links = own.stdout.split("Cap")[0].split()
    assert namespace != world.run(["readlink", "/proc/self/ns/user"]).stdout.strip()
    assert links == ["eth0", "lo"]
    assert {line.split()[1] for line in own.stdout.splitlines() if line.startswith("Cap")} == {
        "0" * 16
    }
    named = start(world, ["getent", "hosts", "server.campus.test"]).result()
    assert named.status == 0, named.stderr


def test_connectivity_none_has_a_loopback_and_no_more(world: Lab) -> None:
    """As with the file capability; the record says so."""
    job = start(
        world, ["sh", "-c", '/usr/bin/python3 -c "$0" && ls /sys/class/net', LOOP], "nothing"
    )
    done = job.result()
    assert (done.status, done.stdout.split()[-1]) == (0, "lo"), done.stderr
    assert final(world, job.job_id).connectivity is Connectivity.NONE


@pytest.mark.parametrize(
    ("command", "status", "reason", "recorded"),
    [
        (["sh", "-c", "exit 42"], 42, ExitReason.EXITED, 42),
        (["sh", "-c", "kill -9 $$"], -9, ExitReason.SIGNALED, 9),
        (["/nowhere/at-all"], 127, ExitReason.NOT_STARTED, 127),
        (["/etc/passwd"], 126, ExitReason.NOT_STARTED, 126),
    ],
    ids=["status", "signal", "missing", "not-executable"],
)
def test_the_end_is_the_jobs(
    world: Lab, command: list[str], status: int, reason: ExitReason, recorded: int
) -> None:
    """Batch system and record learn the same as with the file capability."""
    job = start(world, command)
    assert job.result().status == status
    record = final(world, job.job_id)
    assert (record.exit_reason, record.exit_status) == (reason, recorded)


def test_connectivity_host_is_refused(world: Lab) -> None:
    """With the reason, in the error file as well."""
    done = start(world, ["true"], "open").result()
    assert done.status == 125
    assert "something would rest on what is in there" in done.stderr
    assert done.wrapper_error == done.stderr


def test_a_job_cannot_make_its_way_to_a_second_sandbox(world: Lab) -> None:
    """Neither as a job of either way in, nor in a namespace made before asking."""
    code = str(ROOT / "tests/lab/impostor.py")
    orders = ("asks-first", "makes-first")
    tries = [["/usr/bin/python3", "-I", "-S", code, order, "true"] for order in orders]
    again = ["setpriv", "--no-new-privs", f"{WRAPPERS}/lark-run", "true"]
    capable = f"{WRAPPERS}/lark-run"
    for way, commands in ((capable, [again, *tries]), (wrapper(world), tries), (None, tries[1:])):
        for command in commands:
            done = world.job(command, wrapper=way)
            assert done.status == 125, done.stderr
            assert "it is in a sandbox already" in done.stderr


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sends_from_other_mac", "spoofed-mac"),
        ("sends_from_other_address", "spoofed-address"),
        ("sends_from_neighbour", "spoofed-address"),
        ("sends_tagged", "link-layer"),
        ("sends_frames", "link-layer"),
    ],
)
def test_root_of_the_namespace_is_held_to_the_plan(
    world: Lab, tmp_path: Path, name: str, reason: str
) -> None:
    """What it forges reaches nobody and is counted as dropped, for what it is."""
    with Capture("eth0", tmp_path / "campus.pcap", world.netns("campus")):
        before = set(records(world))
        done = impostor(world, "asks-first", *hostile(name)).result()
        assert (done.status, done.stdout) == (0, f'{{"{name}": "done"}}\n'), done.stderr
        record = final(world, only_record(world, before))
    assert drops(record).get(reason, 0) >= 1, record.usage.drops
    assert record.usage.sent.packets == 0
    assert flows(tmp_path / "campus.pcap") == []


def test_root_of_the_namespace_counts_what_it_sends(world: Lab, tmp_path: Path) -> None:
    """Also in packets larger than IPv4 can say: the record equals the capture."""
    with Capture("eth0", tmp_path / "campus.pcap", world.netns("campus")):
        before = set(records(world))
        done = impostor(world, "asks-first", *hostile("sends_giants")).result()
        assert done.stdout == '{"sends_giants": "done"}\n', done.stderr
        record = final(world, only_record(world, before))
    sent, received = sums(tmp_path / "campus.pcap")
    assert sent.bytes > 50_000_000
    assert (record.usage.sent, record.usage.received) == (sent, received)


def test_the_worker_stays_out_of_reach(world: Lab) -> None:
    """Root of a namespace is nobody to the worker's network and to those of other jobs."""
    before = set(records(world))
    done = impostor(world, "asks-first", *hostile("enter_worker")).result()
    assert done.stdout in {'{"enter_worker": "EPERM"}\n', '{"enter_worker": "EACCES"}\n'}
    final(world, only_record(world, before))


def test_a_link_that_the_job_deletes_loses_no_count(lab: Lab, tmp_path: Path) -> None:
    """What it sent before stays recorded; the slot serves the next jobs; nothing is left."""
    agent = lab.agent(CONFIG.split("[addresses]")[0].replace("slots = 4", "slots = 1")
                      .replace("ready = 2", "ready = 1"))  # fmt: skip
    there = lab.path("/run/lab/home/alice/there")
    there.mkdir()
    there.chmod(0o777)
    for name in ("talk1", "end"):
        (there / name).touch()
    talk = python(TALK, "/run/lab/home/alice/there", CAMPUS.ipv4, "9")
    script = 'eval "$0"; ip link delete eth0; ping -c1 -w1 -q 198.51.100.10; true'
    for _ in range(3):
        before = set(records(lab))
        done = impostor(lab, "asks-first", "sh", "-c", script, shlex.join(talk)).result()
        assert done.status == 0, done.stderr
        assert final(lab, only_record(lab, before)).usage.sent == ONCE
    before = set(records(lab))
    assert lab.job(FETCH).status == 0
    final(lab, only_record(lab, before))
    assert agent.terminate() == 0
    assert "level=error" not in agent.stderr
    assert in_kernel(lab) == set()


def test_jobs_outlive_the_agent(lab: Lab, tmp_path: Path) -> None:
    """A download goes on under a killed agent; the next one adopts the job: exact totals."""
    agent = lab.agent(QUICK)
    slow = [*FETCH[:1], "--limit-rate", "4M", *FETCH[1:]]
    with Capture("eth0", tmp_path / "campus.pcap", lab.netns("campus")) as capture:
        job = lab.start_job(slow, wrapper=wrapper(lab))
        until(lambda: capture.path.stat().st_size > 100_000, "a transfer")
        kill(agent)
        agent = lab.agent(QUICK)
        done = job.result()
        assert done.status == 0, done.stderr
        record = final(lab, job.job_id)
    sent, received = sums(tmp_path / "campus.pcap")
    assert record.exit_reason is ExitReason.EXITED
    assert (record.usage.sent, record.usage.received) == (sent, received)
    assert agent.terminate() == 0
    assert in_kernel(lab) == set()


def test_a_caller_that_makes_nothing_holds_nothing(lab: Lab) -> None:
    """It is told to make a namespace before a sandbox is taken: the last one goes to another."""
    lab.agent(QUICK.replace("slots = 4", "slots = 1"))
    silent = impostor(lab, "says-nothing", "true")
    until(lambda: "silent" in silent.starter.stdout, "a caller that says nothing")
    assert lab.job(FETCH, wrapper=wrapper(lab), user="bob").status == 0
    silent.kill(9)
    silent.result()


def test_what_is_in_the_namespace_is_looked_at_before_anything_is_taken(lab: Lab) -> None:
    """A caller whose namespace is not new is refused, and spoils no sandbox that was ready."""
    agent = lab.agent(QUICK.replace("slots = 4", "slots = 1"))
    place = lab.path("/run/netns/lark0")
    # an empty file first, on which the namespace is mounted
    until(
        lambda: place.exists() and place.stat().st_dev != place.parent.stat().st_dev,
        "a sandbox that is ready",
    )
    ready = place.stat().st_ino
    done = impostor(lab, "asks-first:eth7", "true").result()
    assert done.status == 125
    assert "has an interface 'eth7' already" in done.stderr
    assert place.stat().st_ino == ready
    # what tunnels' modules put into every new namespace is nobody's doing
    before = set(records(lab))
    assert impostor(lab, "asks-first:tunl0", "true").result().status == 0
    final(lab, only_record(lab, before))
    assert agent.terminate() == 0
    assert in_kernel(lab) == set()


def test_a_site_may_forbid_it(lab: Lab) -> None:
    """Then the job is refused, with the setting's name."""
    lab.agent(QUICK.replace("[pool]", "[pool]\nown_namespaces = false"))
    done = lab.job(["true"], wrapper=wrapper(lab))
    assert done.status == 125
    assert "[pool] own_namespaces" in done.stderr
    assert lab.job(["true"]).status == 0
