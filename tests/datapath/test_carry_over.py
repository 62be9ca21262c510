"""A release with another layout takes over from the one before, with jobs running.

`layout1.bpf.o` and `layout2.bpf.o` are the objects that the last releases of those layouts
installed, without their debug information; the pins here are made with them and with structures
written out by hand.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest
from pyroute2 import IPRoute

from lark_agent import crash
from lark_agent.datapath import Datapath, load, unload
from lark_agent.datapath.attach import attach_programs
from lark_agent.datapath.layout import u32
from lark_agent.errors import PrerequisiteError
from lark_agent.linux import libbpf
from lark_agent.linux.bpf import NO_PREALLOC, Map, MapKind, MapSpec, pin
from lark_agent.model import JOBS_CLASS, Count, Direction, DropReason
from tests.datapath.network import (
    BPFFS,
    FAR4,
    GATEWAYS,
    JOB4,
    JOB6,
    JOB_MAC,
    PEERS,
    PLAN,
    SLOT,
    Network,
    total,
)
from tests.datapath.test_hostile import until
from tests.datapath.test_pins import entries

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.byteorder == "big", reason="the old object is little-endian"),
]
VERSIONS = (1, 2)
PROGRAMS = ("from_job", "to_job")
CAMPUS = 2  # a class that the old release had given this number
_PLAN1 = struct.pack(
    "=II4s6s2x16s",
    *(1, 0xFFFF, socket.inet_aton(JOB4), JOB_MAC, socket.inet_pton(socket.AF_INET6, JOB6)),
)
OLD_PLAN = {1: _PLAN1, 2: _PLAN1 + struct.pack("=I8s8s", 1, b"owner..A", b"group..A")}
NO_PLAN = {1: bytes(36), 2: bytes(56)}
DATAGRAM = 128  # 100 bytes, UDP and IPv4 headers


def old_specs(slots: int, version: int) -> dict[str, MapSpec]:
    destination = {1: 4, 2: 8}[version]
    return {
        "slots": MapSpec(MapKind.HASH, 4, 4, 2 * slots),
        "plan": MapSpec(MapKind.ARRAY, 4, len(NO_PLAN[version]), slots),
        "usage": MapSpec(MapKind.PERCPU_ARRAY, 4, 17 * 2 * 16, slots),
        "dropped": MapSpec(MapKind.PERCPU_ARRAY, 4, 8 * 16, slots),
        "classes4": MapSpec(MapKind.LPM_TRIE, 8, destination, 1 << 16, NO_PREALLOC),
        "classes6": MapSpec(MapKind.LPM_TRIE, 20, destination, 1 << 16, NO_PREALLOC),
        "class_names": MapSpec(MapKind.ARRAY, 4, 32, 16),
    }


class OldRelease:
    """What a release of an older layout leaves in the kernel."""

    def __init__(self, version: int, slots: int = 8) -> None:
        self.version = version
        self.place = place = BPFFS / f"v{version}"
        place.mkdir(parents=True)
        with ExitStack() as close:
            maps = {
                name: close.enter_context(Map.create(name, spec))
                for name, spec in old_specs(slots, version).items()
            }
            maps["class_names"].set(u32(CAMPUS), b"campus".ljust(32, b"\0"))
            used = {name: m.fd for name, m in maps.items() if name != "class_names"}
            path = Path(__file__).with_name(f"layout{version}.bpf.o")
            self.programs = libbpf.load_programs(path, used, PROGRAMS)
            for name, fd in {**{n: m.fd for n, m in maps.items()}, **self.programs}.items():
                pin(fd, place / name)

    def begin_job(self, ifindex: int) -> None:
        """Let the job of slot 3 pass through the interface, to campus."""
        with Map.open(self.place / "slots") as slots:
            slots.set(u32(ifindex), u32(SLOT))
        with Map.open(self.place / "classes4") as classes:
            destination = u32(CAMPUS).ljust(classes.spec.value_size, b"\0")
            classes.set(struct.pack("=I", 32) + socket.inet_aton(FAR4), destination)
        with IPRoute() as netlink:
            attach_programs(netlink, ifindex, self.programs)
        self.plan(OLD_PLAN[self.version])

    def plan(self, value: bytes) -> None:
        """Write the plan of slot 3."""
        with Map.open(self.place / "plan") as plan:
            plan.set(u32(SLOT), value)

    def close(self) -> None:
        for fd in self.programs.values():
            os.close(fd)


@pytest.fixture(params=VERSIONS)
def old_job(network: Network, request: pytest.FixtureRequest) -> Network:
    """Run a job in its sandbox under the old release."""
    network.datapath.deactivate(SLOT)
    network.datapath.close()
    unload(BPFFS)
    release = OldRelease(request.param)
    release.begin_job(network.ifindex)
    release.close()
    return network


@pytest.fixture(params=VERSIONS)
def old_release(fresh_host: Path, request: pytest.FixtureRequest) -> Iterator[OldRelease]:
    """Leave what the old release makes, without a job."""
    release = OldRelease(request.param)
    yield release
    release.close()


def datagrams(network: Network, number: int) -> None:
    with network.sandbox.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(number):
            sender.sendto(bytes(100), (FAR4, 9))


def take_over(network: Network) -> Datapath:
    """Do what an agent does at its start."""
    datapath = load(BPFFS, 8)
    datapath.set_classes({"campus": [f"{FAR4}/32"]}, PEERS, GATEWAYS)
    with IPRoute() as netlink:
        datapath.attach(netlink, network.ifindex, SLOT)
    return datapath


def test_a_running_job_is_carried_over(old_job: Network) -> None:
    """Plan, binding, counters and the names of classes stay; the old set goes."""
    datagrams(old_job, 5)
    datapath = take_over(old_job)
    assert entries(BPFFS) == {"v3"}
    assert datapath.active_slots() == {SLOT}
    assert datapath.bindings() == {old_job.ifindex: SLOT}
    assert datapath.classes.names[CAMPUS] == "campus"
    assert JOBS_CLASS in datapath.classes.names
    datagrams(old_job, 7)
    counters = datapath.read([SLOT])[SLOT]
    assert counters.used_by(CAMPUS, Direction.SENT) == Count(12, 12 * DATAGRAM)
    assert total(counters, Direction.SENT) == Count(12, 12 * DATAGRAM)
    datapath.deactivate(SLOT)
    datapath.settle()
    datagrams(old_job, 1)
    assert datapath.read([SLOT])[SLOT].used == counters.used, "the old programs are gone"
    datapath.close()


def test_no_packet_falls_between_two_layouts(old_job: Network) -> None:
    """While datagrams flow, an old release is taken over; each is counted, and counted once."""
    receiver = old_job.far.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((FAR4, 9))
    sender = old_job.sandbox.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stop, sent = Event(), 0

    def send() -> None:
        nonlocal sent
        while not stop.is_set():
            sender.sendto(bytes(100), (FAR4, 9))
            sent += 1

    traffic = Thread(target=send)
    traffic.start()
    until(lambda: sent > 1000)
    datapath = take_over(old_job)
    taken_at = sent
    until(lambda: sent > taken_at + 1000)
    stop.set()
    traffic.join()
    datapath.settle()
    counters = datapath.read([SLOT])[SLOT]
    assert counters.used_by(CAMPUS, Direction.SENT) == Count(sent, sent * DATAGRAM)
    # the kernel's own multicast reports come at any time, also before the plan; that none of the
    # job's packets was dropped, their number has shown
    dropped = {reason for reason in DropReason if counters.dropped_for(reason)}
    assert dropped <= {DropReason.MARTIAN, DropReason.NO_PLAN}
    datapath.close()


def test_counters_without_a_plan_are_carried_too(old_job: Network) -> None:
    """An agent that ended between the last reading and the final record left counters behind."""
    datagrams(old_job, 3)
    (place,) = (BPFFS / name for name in entries(BPFFS))
    with Map.open(place / "plan") as plan:
        plan.set(u32(SLOT), bytes(plan.entry_size))
    with load(BPFFS, 8) as datapath:
        assert datapath.active_slots() == set()
        assert datapath.bindings() == {old_job.ifindex: SLOT}
        assert total(datapath.read([SLOT])[SLOT], Direction.SENT) == Count(3, 3 * DATAGRAM)


def test_another_size_of_an_older_layout_waits_for_the_jobs(old_release: OldRelease) -> None:
    """As with the present layout: refused while a job runs, replaced when none does."""
    old, version = old_release.place, old_release.version
    old_release.plan(OLD_PLAN[version])
    with pytest.raises(
        PrerequisiteError, match=f"{old.name} was made for 8 slots, not 16, and 1 j"
    ):
        load(BPFFS, 16)
    with pytest.raises(PrerequisiteError, match="1 jobs are counted"):
        unload(BPFFS)
    assert entries(BPFFS) == {old.name}
    assert entries(old) == {*old_specs(8, version), *PROGRAMS}
    old_release.plan(NO_PLAN[version])
    with load(BPFFS, 16) as larger:
        assert larger.slots == 16
    assert entries(BPFFS) == {"v3"}


def test_a_failed_take_over_leaves_the_old_set(old_release: OldRelease) -> None:
    """A loader that fails leaves the older pins in force and nothing beside them."""
    with pytest.raises(PrerequisiteError, match="cannot run bcc"):
        load(BPFFS, 8, "bcc", "/nowhere/python3")
    assert entries(BPFFS) == {old_release.place.name}
    assert entries(old_release.place) == {*old_specs(8, old_release.version), *PROGRAMS}


def test_bcc_takes_over_from_an_older_layout(old_job: Network, kernel_headers: None) -> None:
    """The other loader carries over as well."""
    datagrams(old_job, 2)
    with load(BPFFS, 8, "bcc") as compiled:
        compiled.set_classes({"campus": [f"{FAR4}/32"]}, PEERS, GATEWAYS)
        with IPRoute() as netlink:
            compiled.attach(netlink, old_job.ifindex, SLOT)
        datagrams(old_job, 2)
        assert total(compiled.read([SLOT])[SLOT], Direction.SENT) == Count(4, 4 * DATAGRAM)


def test_a_crash_after_the_take_over(old_release: OldRelease) -> None:
    """Both sets found: the newer one is in force, and the older one is removed."""
    with load(BPFFS, 8) as datapath:
        datapath.activate(SLOT, PLAN)
    with ExitStack() as close:
        old_release.place.mkdir()
        for name, spec in old_specs(8, old_release.version).items():
            pin(close.enter_context(Map.create(name, spec)).fd, old_release.place / name)
    with load(BPFFS, 8) as again:
        assert again.active_slots() == {SLOT}
    assert entries(BPFFS) == {"v3"}


def test_an_upgrade_that_is_killed_at_any_point(old_job: Network) -> None:
    """The job's packets are counted by the old set or the new one, each once, however often."""
    sent = 0
    for point in ("one-map", "maps", "programs", "older-gone", "renamed"):
        command = (
            "from pathlib import Path; from lark_agent.datapath import load; "
            f"load(Path('{BPFFS}'), 8)"
        )
        environment = {**os.environ, crash.VARIABLE: f"upgrade.{point}"}
        killed = subprocess.run([sys.executable, "-c", command], env=environment, check=False)
        assert killed.returncode == -signal.SIGKILL, point
        datagrams(old_job, 5)
        sent += 5
    datapath = take_over(old_job)
    datagrams(old_job, 7)
    counters = datapath.read([SLOT])[SLOT]
    assert counters.used_by(CAMPUS, Direction.SENT) == Count(sent + 7, (sent + 7) * DATAGRAM)
    assert entries(BPFFS) == {"v3"}
    datapath.close()
