"""A hostile job, as its user and as root of a user namespace of its own, in a real sandbox.

`tests.lab.hostile` is what it tries. Most is refused by the kernel, because the sandbox's network
belongs to the worker; what a plain user may do is dropped or rewritten on the worker's side of the
link, and counted for what it is. Frames that would need raw sockets are in tests/datapath, where
they are made with the worker's own rights.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import ONCE, QUICK, Talker, drops, final, python, until
from tests.lab.capture import Capture, flows
from tests.lab.filesystem import ROOT
from tests.lab.topology import CAMPUS, INTERNET, WORKER
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lark_agent.model import Record

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
CONFIG = (
    QUICK.replace("slots = 4", "slots = 16").replace("ready = 1", "ready = 4")
    + """
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
[profiles.campus-only]
reach = ["campus"]
[[rules]]
when = "WantCampusOnly"
profile = "campus-only"
"""
)
REFUSED = (
    "raw_socket", "raw_socket6", "tunnel", "packet_socket", "dhcp_server", "mark", "precedence",
    "transparent", "own_address", "own_mac", "own_route", "own_qdisc", "own_filter", "own_vlan",
    "enter_worker", "source_route",
)  # fmt: skip
"""What the kernel refuses to anybody but the worker's own root."""

CONNTRACK = "/proc/sys/net/netfilter/nf_conntrack_"
# argv: address, number of connections. All of them from one port
FLOOD = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(int(sys.argv[2])):
    sock.sendto(b"x", (sys.argv[1], 20_000 + number))
print("flooded", flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab() as made:
        made.agent(CONFIG)
        yield made


def attempt(lab: Lab, *names: str, userns: bool = False) -> tuple[dict[str, str], Record]:
    """Let a job of alice's try; returns how each attempt went and the job's record."""
    code = str(ROOT / "tests/lab/hostile.py")
    command = ["/usr/bin/python3", "-I", "-S", code, CAMPUS.ipv4, CAMPUS.ipv6, INTERNET.ipv4]
    options = ["--userns"] if userns else []
    job = lab.start_job([*command, *options, *names], ad={"WantCampusOnly": True})
    done = job.result(120)
    assert done.status == 0, done.stderr
    told: dict[str, str] = json.loads(done.stdout)
    return told, final(lab, job.job_id)


@pytest.mark.parametrize("userns", [False, True], ids=["user", "root-in-a-user-namespace"])
def test_the_network_of_a_sandbox_is_not_the_jobs(world: Lab, userns: bool) -> None:
    """No socket that forges, no change of interface, address, route, queue or program."""
    told, record = attempt(world, *REFUSED, userns=userns)
    assert set(told.values()) <= {"EPERM", "EACCES"}, told
    assert set(told) == set(REFUSED)
    assert record.usage.sent.packets == 0


def test_own_namespaces_lead_nowhere(world: Lab) -> None:
    """A job may make networks of its own, many of them; none has a way out."""
    told, record = attempt(world, "namespaces")
    assert told == {"namespaces": "ENETUNREACH"}
    assert record.usage.sent.packets == 0


def test_marks_are_the_sites(world: Lab, tmp_path: Path) -> None:
    """Whatever code point or flow label a job sets, the wire has the plan's: none."""
    with Capture("eth0", tmp_path / "campus.pcap", world.netns("campus")):
        told, record = attempt(world, "forged_dscp", "forged_label")
    assert told == {"forged_dscp": "done", "forged_label": "done"}
    sent = [p for p in flows(tmp_path / "campus.pcap") if p.dport == 9]
    assert len(sent) == 3
    assert {(p.traffic_class, p.flow_label) for p in sent} == {(0, 0)}
    assert record.usage.sent.packets == 3


@pytest.mark.parametrize(
    ("name", "reason", "packets"),
    [
        ("forged_source6", "spoofed-address", 1),
        ("denied_fragments", "class-denied", 3),
        ("segment_route6", "class-denied", 1),
        ("neighbours", "peer-denied", 2000),
    ],
)
def test_what_a_user_can_send_is_dropped_for_what_it_is(
    world: Lab, tmp_path: Path, name: str, reason: str, packets: int
) -> None:
    """Nothing arrives, nothing counts as sent, and the reason is the right one."""
    with (
        Capture("eth0", tmp_path / "campus.pcap", world.netns("campus")),
        Capture("eth0", tmp_path / "internet.pcap", world.netns("internet")),
    ):
        told, record = attempt(world, name)
    assert told == {name: "done"}
    assert drops(record) == {reason: packets}
    assert record.usage.sent.packets == 0
    assert [p for f in ("campus", "internet") for p in flows(tmp_path / f"{f}.pcap")] == []


@pytest.mark.parametrize("name", ["ports", "conntrack", "namespaces", "neighbours"])
def test_floods_cost_others_nothing(world: Lab, name: str) -> None:
    """While one job takes all it can get, another's packets pass and count as ever."""
    other = Talker(world, user="bob")
    before = neighbours(world)
    attempt(world, name)
    other.talk()
    fetched = world.job(["curl", "-sS", "-o", "/dev/null", f"http://{CAMPUS.ipv4}/bytes/1000000"])
    assert fetched.status == 0, fetched.stderr
    other.end()
    assert final(world, other.job.job_id).usage.sent == ONCE
    assert neighbours(world) <= before + 4 * 16, "neighbour entries grew beyond the sandboxes' own"


def test_connections_are_shared_out(world: Lab) -> None:
    """A job gets its share of the worker's connections and no more, from however few ports."""
    most = int(world.run(["cat", CONNTRACK + "max"]).stdout)
    share = most // (16 + 1)  # of each sandbox, and the worker
    # on a busy machine the flood takes longer than they are remembered
    world.run(["sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=180"])
    job = world.start_job(python(FLOOD, CAMPUS.ipv4, str(share * 3 // 2)))
    until(lambda: "flooded" in job.starter.stdout, "the flood", 150)
    taken = int(world.run(["cat", CONNTRACK + "count"]).stdout)
    fetched = world.job(["curl", "-sS", "-o", "/dev/null", f"http://{CAMPUS.ipv4}/bytes/1000"])
    assert fetched.status == 0, fetched.stderr
    job.kill(9)
    job.result()
    assert share <= taken < share * 5 // 4


def neighbours(lab: Lab) -> int:
    """Count the worker's neighbour entries."""
    return len(lab.run(["ip", "neighbour", "show", "nud", "all"]).stdout.splitlines())


def test_marks_follow_the_plan(lab: Lab, tmp_path: Path) -> None:
    """A plan's code point and flow label are on every packet, also of what a job marks itself."""
    lab.agent(CONFIG + '[profiles.marked]\ndscp = 46\nflow_label = 74565\n[requests]\n'
              'profiles = ["marked"]\n')  # fmt: skip
    with Capture("eth0", tmp_path / "campus.pcap", lab.netns("campus")):
        code = str(ROOT / "tests/lab/hostile.py")
        command = ["/usr/bin/python3", "-I", "-S", code, CAMPUS.ipv4, CAMPUS.ipv6, INTERNET.ipv4]
        ad = {"RequestedProfile": "marked"}
        job = lab.start_job([*command, "forged_dscp", "forged_label"], ad=ad)
        assert job.result().status == 0
        fetched = lab.job(
            ["curl", "-sS", "-o", "/dev/null", f"http://[{CAMPUS.ipv6}]/bytes/100000"], ad=ad
        )
        assert fetched.status == 0, fetched.stderr
    packets = flows(tmp_path / "campus.pcap")
    sent = [p for p in packets if p.src in {WORKER.ipv4, WORKER.ipv6}]
    assert len(sent) > 10
    assert {p.traffic_class >> 2 for p in sent} == {46}
    assert {p.flow_label for p in sent if ":" in p.dst} == {74565}
