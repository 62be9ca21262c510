"""The programs of jobs without a sandbox, on a real control group, socket by socket.

The test's network is a veth to a second namespace, because what goes by the loopback is nobody's.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent import datapath
from lark_agent.datapath import Datapath, QuotaAction, QuotaUse, SlotPlan, host
from lark_agent.linux import cgroups, namespaces
from lark_agent.model import Count, Direction, DropReason
from tests.agent.worker import until
from tests.conftest import mount
from tests.datapath.frames import ethernet, ipv6

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
PINS = Path("/sys/fs/bpf/lark")
SLOT = 1
FAR4, FAR6 = "192.0.2.2", "2001:db8::2"
PLAN = SlotPlan(host.THIS4, host.THIS6, bytes(6))
SEND = """
import socket, sys
address, number, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
if len(sys.argv) > 4:
    sock.setsockopt(socket.IPPROTO_IPV6, 57, bytes.fromhex(sys.argv[4]))  # IPV6_RTHDR
passed = 0
for _ in range(number):
    try:
        passed += sock.sendto(bytes(size), (address, 9)) == size
    except PermissionError:
        pass
print(passed)
"""
# argv: descriptor of a program, frame, interface; prints the program's word
RUN = """
import sys
from tests.datapath.testrun import Frame, run
print(run(int(sys.argv[1]), Frame(bytes.fromhex(sys.argv[2])), int(sys.argv[3]))[0])
"""


class World:
    """A datapath, its host programs, and a group that they are on."""

    def __init__(self, maps: Datapath, programs: host.HostPrograms, group: Path) -> None:
        self.maps, self.programs, self.group = maps, programs, group
        self.number = programs.bind(group, SLOT)

    def send(
        self, address: str, number: int = 10, size: int = 100, below: str = "", way: bytes = b""
    ) -> int:  # fmt: skip
        """Send datagrams from a process in the group; returns how many the kernel took."""
        place = self.group / below
        more = [way.hex()] if way else []
        done = subprocess.run(
            [sys.executable, "-S", "-c", SEND, address, str(number), str(size), *more],
            preexec_fn=lambda: cgroups.move(os.getpid(), place),
            stdout=subprocess.PIPE,
            check=True,
        )
        return int(done.stdout)

    def judge(self, frame: bytes) -> int:
        """Give a frame to the program for what is sent, in the group; returns its word."""
        program = self.programs._programs["host_sent"]
        command = [sys.executable, "-c", RUN, str(program), frame.hex()]
        done = subprocess.run(
            [*command, str(socket.if_nametoindex("near"))],
            preexec_fn=lambda: cgroups.move(os.getpid(), self.group),
            pass_fds=[program],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            check=True,
        )
        return int(done.stdout)

    def receive(self, address: str, number: int = 10) -> int:
        """Have the far host send to a socket of the group; returns how many came in."""
        script = (
            "import socket, sys\n"
            "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"sock.bind(({address!r}, 9))\n"
            "print(flush=True)\n"
            "sys.stdin.read()\n"
            "came = 0\n"
            "sock.setblocking(False)\n"
            "try:\n"
            "    while sock.recv(2000):\n"
            "        came += 1\n"
            "except BlockingIOError:\n"
            "    print(came)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-S", "-c", script],
            preexec_fn=lambda: cgroups.move(os.getpid(), self.group),  # noqa: PLW1509  no threads here
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as listener:  # fmt: skip
            assert listener.stdout is not None
            listener.stdout.readline()

            def send() -> None:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    for _ in range(number):
                        sock.sendto(bytes(100), (address, 9))

            namespaces.run_inside("far", send)
            until(lambda: self.seen >= number, "what was sent", 5)
            return int(listener.communicate()[0])

    @property
    def seen(self) -> int:
        """Return how many packets came, whether they were let in or not."""
        counters = self.maps.read([SLOT])[SLOT]
        came = counters.used_by(0, Direction.RECEIVED).packets
        return came + sum(counters.dropped_for(reason).packets for reason in DropReason)

    def counted(self) -> Count:
        """Return what the slot has sent."""
        counters = self.maps.read([SLOT])[SLOT]
        return counters.used_by(0, Direction.SENT)

    def dropped(self, reason: DropReason) -> int:
        """Return the packets that were dropped for a reason."""
        return self.maps.read([SLOT])[SLOT].dropped_for(reason).packets


@pytest.fixture
def world(fresh_host: Path) -> Iterator[World]:
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
    namespaces.create("far", lambda: None)
    for command in (
        "link add near type veth peer name far netns far",
        "addr add 192.0.2.1/24 dev near", "addr add 2001:db8::1/64 dev near nodad",
        "link set near up",
        "-n far addr add 192.0.2.2/24 dev far", "-n far addr add 2001:db8::2/64 dev far nodad",
        "-n far link set far up",
    ):  # fmt: skip
        subprocess.run(["ip", *command.split()], check=True)
    group = cgroups.mount() / f"lark-test-{os.getpid()}"
    group.mkdir()
    try:
        with datapath.load(PINS, 4) as maps, host.load(PINS, 4) as programs:
            yield World(maps, programs, group)
    finally:
        for left in cgroups.processes(group):
            os.kill(left, signal.SIGKILL)  # of a test that failed
        until(lambda: cgroups.remove(group), "a group that gets empty")
        namespaces.delete("far")


def test_no_plan_no_packet(world: World) -> None:
    """Before the claim and after the end."""
    assert world.send(FAR4) == 0
    assert world.dropped(DropReason.NO_PLAN) == 10
    assert world.counted() == Count()


@pytest.mark.parametrize(("address", "header"), [(FAR4, 28), (FAR6, 48)])
def test_datagrams_count_as_ip_packets(world: World, address: str, header: int) -> None:
    """With their headers, without a link header."""
    world.maps.activate(SLOT, PLAN)
    assert world.send(address) == 10
    assert world.counted() == Count(10, 10 * (100 + header))


def test_groups_below_belong_to_the_job(world: World) -> None:
    """However deep somebody makes them."""
    (world.group / "one" / "two").mkdir(parents=True)
    world.maps.activate(SLOT, PLAN)
    assert world.send(FAR4, below="one/two") == 10
    assert world.counted().packets == 10


def test_a_group_without_a_slot_passes_nothing(world: World) -> None:
    """What is left of an ended job is closed, and counts for nobody."""
    world.maps.activate(SLOT, PLAN)
    world.programs.unbind(world.number)
    assert world.send(FAR4) == 0
    assert world.counted() == Count()
    assert world.dropped(DropReason.NO_PLAN) == 0


def test_a_quota_cuts_to_the_packet(world: World) -> None:
    """Ten packets fit, the eleventh does not, and the slot's own agent is told."""
    world.maps.quotas.set(0, 10 * 128, QuotaAction.CUT_CLASS)
    world.maps.activate(SLOT, SlotPlan(host.THIS4, host.THIS6, bytes(6), quotas=(QuotaUse(0),)))
    assert world.send(FAR4, number=15) == 10
    assert world.counted() == Count(10, 1280)
    assert world.dropped(DropReason.QUOTA) == 5


def test_nothing_comes_in_without_a_plan(world: World) -> None:
    """What others send to a group's socket is dropped, and counted when there is a plan."""
    assert world.receive("192.0.2.1") == 0
    assert world.dropped(DropReason.NO_PLAN) == 10
    world.maps.activate(SLOT, PLAN)
    assert world.receive("192.0.2.1", number=11) == 11
    counters = world.maps.read([SLOT])[SLOT]
    assert counters.used_by(0, Direction.RECEIVED) == Count(11, 11 * 128)


@pytest.mark.parametrize(("given", "lacking"), [(FAR4, FAR6), (FAR6, FAR4)])
def test_a_family_that_the_plan_lacks(world: World, given: str, lacking: str) -> None:
    """A job for IPv4 alone does not use the worker's IPv6, nor the other way round."""
    one = replace(PLAN, addr6=None) if given == FAR4 else replace(PLAN, addr4=None)
    world.maps.activate(SLOT, one)
    assert world.send(lacking) == 0
    assert world.dropped(DropReason.SPOOFED_ADDRESS) == 10
    assert world.send(given) == 10


def test_a_denied_class_is_not_reached(world: World) -> None:
    """Neither family, while the rest is."""
    table = world.maps.set_classes({"denied": [f"{FAR4}/32"]})
    world.maps.activate(SLOT, replace(PLAN, classes=table.mask({"other"})))
    assert world.send(FAR4) == 0
    assert world.dropped(DropReason.CLASS_DENIED) == 10
    assert world.maps.read([SLOT])[SLOT].refused[table.names.index("denied")] == 10
    assert world.send(FAR6) == 10


def test_what_is_not_ip_does_not_pass(world: World) -> None:
    """The kernel shows the programs nothing but IP; one that did would get nothing past them."""
    world.maps.activate(SLOT, PLAN)
    assert world.judge(ethernet(ipv6(destination=FAR6), 0x86DD)) == 1
    assert world.judge(ethernet(ipv6(destination=FAR6), 0x88B5)) == 0
    assert world.dropped(DropReason.LINK_LAYER) == 1


def test_sandboxes_are_not_reached(world: World) -> None:
    """A job with the worker's addresses is nobody's peer."""
    world.maps.set_classes({}, peers=[IPv4Network("192.0.2.0/24")])
    world.maps.activate(SLOT, PLAN)
    assert world.send(FAR4) == 0
    assert world.dropped(DropReason.PEER_DENIED) == 10


def test_source_routes_do_not_leave(world: World) -> None:
    """A segment routing header would have a host that is allowed pass packets on."""
    world.maps.activate(SLOT, PLAN)
    segments = [socket.inet_pton(socket.AF_INET6, a) for a in ("2001:db8:3::10", FAR6)]
    way = bytes([0, 4, 4, 1, 1, 0, 0, 0]) + b"".join(segments)
    assert world.send(FAR6, way=way) == 0
    assert world.dropped(DropReason.CLASS_DENIED) == 10


def test_the_next_agents_programs_take_over(world: World) -> None:
    """Each packet is seen once, by the new ones, and what was counted goes on."""
    world.maps.activate(SLOT, PLAN)
    world.send(FAR4)
    with host.load(PINS, 4) as newer:
        newer.bind(world.group, SLOT)
        world.programs.unbind(world.number)  # of no effect: that map left with its programs
        assert world.send(FAR4) == 10
    assert world.counted().packets == 20


def test_what_several_processes_send_adds_up(world: World) -> None:
    """At once, on whatever CPU: each packet is counted."""
    world.maps.activate(SLOT, PLAN)
    senders = [
        subprocess.Popen(
            [sys.executable, "-S", "-c", SEND, FAR4, "5000", "10"],
            preexec_fn=lambda: cgroups.move(os.getpid(), world.group),  # noqa: PLW1509  no threads here
            stdout=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    passed = sum(int(sender.communicate()[0]) for sender in senders)
    assert passed == 20_000
    assert world.counted() == Count(20_000, 20_000 * 38)


def test_sockets_keep_the_group_they_were_made_in(world: World) -> None:
    """One that a job was given belongs to whom it was made by: docs/host.md states it."""
    world.maps.activate(SLOT, PLAN)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as given:
        given.connect((FAR4, 9))
        code = f"import socket; socket.socket(fileno={given.fileno()}).send(b'x')"
        subprocess.run(
            [sys.executable, "-S", "-c", code],
            preexec_fn=lambda: cgroups.move(os.getpid(), world.group),
            pass_fds=[given.fileno()],
            check=True,
        )
    assert world.counted() == Count()
