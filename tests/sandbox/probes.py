"""Packets that the firewall keeps off, or lets through: each a claim about one packet.

A probe says something and tells whether it was heard where it would come out. `kept_off` marks what
must not be heard, `let_through` what must; with `router` the worker is one that forwarded before
the agent came, so that no other rule stands behind the one in question. A probe of both families is
two, with 4 or 6 at the end of its name.

Which rule of the firewall each of them needs is in `rows.py`.
"""

# ruff: noqa: D401  the docstring of a probe is its claim, as a test's is

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from lark_agent.datapath.layout import TO_LOOPBACK
from tests.sandbox.wall import ADDRESSING, IPV4, IPV6, JOBS, WORKER

if TYPE_CHECKING:
    from tests.sandbox.wall import Family, Heard, Wall

SHARE = 12
"""Connections that each sandbox may have in these tests."""
LISTED, LOOPBACK, STUB, UNLISTED, MARKED = 3123, 27001, 53, 3124, 40_000
"""Ports of the worker: of a service, of one on its loopback, of its resolver, of nothing that the
site lists, and of a launcher's loopback port, which the datapath would have marked."""
OPEN = 8000
"""A port that a plan opens to the outside, and nobody else."""
FAR = 9
MARKING = f"""
table ip datapath {{
  chain marking {{
    type filter hook prerouting priority raw;
    iifname "lark*" udp dport {MARKED} meta mark set {TO_LOOPBACK:#x}
  }}
}}
"""
"""What stands in for the datapath, which marks what is for a launcher's port."""

Act = Callable[["Wall", "Family"], bool]


class Probe(NamedTuple):
    """One packet of one family."""

    act: Act
    family: Family
    passes: bool
    router: bool

    def heard(self, wall: Wall) -> bool:
        """Say it, and tell whether it came out."""
        return self.act(wall, self.family)


PROBES: dict[str, Probe] = {}


def _probe(*, passes: bool, router: bool, only: int) -> Callable[[Act], Act]:
    def register(act: Act) -> Act:
        for family in (IPV4, IPV6):
            if only in {0, family.version}:
                name = f"{act.__name__}{'' if only else family.version}".replace("_", "-")
                PROBES[name] = Probe(act, family, passes, router)
        return act

    return register


def kept_off(*, router: bool = False, only: int = 0) -> Callable[[Act], Act]:
    """Register what must not be heard."""
    return _probe(passes=False, router=router, only=only)


def let_through(*, router: bool = False, only: int = 0) -> Callable[[Act], Act]:
    """Register what must be heard."""
    return _probe(passes=True, router=router, only=only)


def _block(slot: int, address: str) -> Callable[[Heard], bool]:
    """Tell whether a packet has this address, and a port of the slot's block."""
    first, last = ADDRESSING.block(slot)
    return lambda heard: heard.address == address and first <= heard.port <= last


def _many(wall: Wall, host: str, family: Family, to: str, port: int = 0) -> None:
    """Begin as many connections as a sandbox may have; they are no packet that is listened for.

    To many ports, or from many to one.
    """
    for number in range(SHARE):
        wall.say(
            host, to, port or 20_000 + number, source=family.jobs[JOBS.index(host)],
            sport=30_000 + number, token=b"",
        )  # fmt: skip


# What leaves


@let_through()
def first_job_leaves_by_its_block(wall: Wall, family: Family) -> bool:
    """Whatever port a job binds, the outside sees the worker and a port of the job's block."""
    with wall.wire("far") as ear:
        wall.say("job0", family.far, FAR, source=family.jobs[0], sport=1025)
        return wall.hears(ear, _block(0, family.worker))


@let_through()
def second_job_leaves_by_its_block(wall: Wall, family: Family) -> bool:
    """The other job by its own."""
    with wall.wire("far") as ear:
        wall.say("job1", family.far, FAR, source=family.jobs[1], sport=1025)
        return wall.hears(ear, _block(1, family.worker))


def _pings(wall: Wall, host: str) -> bool:
    """Tell whether an echo request of a job has the worker's address outside."""

    def ping() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            echo = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + wall.token.ljust(32)
            padded = [int.from_bytes(echo[at : at + 2]) for at in range(0, len(echo), 2)]
            total = sum(padded)
            total = (total & 0xFFFF) + (total >> 16)
            total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            sock.sendto(echo[:2] + struct.pack("!H", total) + echo[4:], (IPV4.far, 0))

    with wall.wire("far") as ear:
        wall.inside(host, ping)
        return wall.hears(ear, lambda heard: heard.address == IPV4.worker)


@let_through(only=4)
def first_job_pings_as_the_worker(wall: Wall, family: Family) -> bool:
    """What has no ports leaves with the worker's address."""
    return _pings(wall, "job0")


@let_through(only=4)
def second_job_pings_as_the_worker(wall: Wall, family: Family) -> bool:
    """The other job's too."""
    return _pings(wall, "job1")


@kept_off()
def more_connections_than_a_share(wall: Wall, family: Family) -> bool:
    """A job that has its share of the worker's connections begins no other."""
    _many(wall, "job0", family, family.far)
    with wall.wire("far") as ear:
        wall.say("job0", family.far, FAR, source=family.jobs[0])
        return wall.hears(ear)


@let_through()
def connections_of_another_job(wall: Wall, family: Family) -> bool:
    """One job's flood takes nothing of another's share."""
    _many(wall, "job0", family, family.far)
    with wall.wire("far") as ear:
        wall.say("job1", family.far, FAR)
        return wall.hears(ear)


@kept_off(only=4)
def what_cannot_be_translated(wall: Wall, family: Family) -> bool:
    """A segment that is of no connection does not leave with a private address."""

    def impossible() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
            segment = struct.pack("!HHIIBBHHH", 33000, FAR, 1, 1, 5 << 4, 3, 100, 0, 0)
            sock.sendto(segment, (family.far, 0))

    with wall.wire("far", of_tcp=FAR) as ear:
        wall.inside("job0", impossible)
        return wall.hears(ear)


@kept_off(router=True)
def packets_in_circles(wall: Wall, family: Family) -> bool:
    """For an address of the delegated prefix that no sandbox has: not back to the router."""
    with wall.wire("far") as ear:
        wall.say("far", family.unused, FAR)
        return wall.hears(ear, lambda heard: heard.address == family.far)


@let_through()
def one_job_to_another(wall: Wall, family: Family) -> bool:
    """Which job may have which, the datapath says."""
    with wall.wire("job1") as ear:
        wall.say("job0", family.jobs[1], FAR)
        return wall.hears(ear)


# What comes in


@let_through()
def answers(wall: Wall, family: Family) -> bool:
    """To what a job began."""
    with (
        wall.bound("far", family.far, 99) as far,
        wall.bound("job0", family.jobs[0], 1025) as job,
        wall.wire("job0") as ear,
    ):
        job.sendto(b"question", (family.far, 99))
        origin = far.recvfrom(100)[1]
        far.sendto(wall.token, origin)
        return wall.hears(ear)


@kept_off(router=True)
def calls_from_outside(wall: Wall, family: Family) -> bool:
    """A neighbour that sends to a job's own address, by way of the worker."""
    with wall.wire("job1") as ear:
        wall.say("far", family.jobs[1], FAR)
        return wall.hears(ear)


@let_through()
def calls_to_a_port_of_the_worker_that_is_a_jobs(wall: Wall, family: Family) -> bool:
    """What a plan opens with nat."""
    with wall.wire("job0") as ear:
        wall.say("far", family.worker, OPEN)
        return wall.hears(ear)


@let_through()
def calls_to_an_open_job(wall: Wall, family: Family) -> bool:
    """Inbound all, with an address of its own."""
    with wall.wire("job0") as ear:
        wall.say("far", family.routed[0], FAR)
        return wall.hears(ear)


@let_through()
def calls_to_an_open_port(wall: Wall, family: Family) -> bool:
    """Inbound ports, with an address of its own."""
    with wall.wire("job1") as ear:
        wall.say("far", family.routed[1], OPEN)
        return wall.hears(ear)


@let_through()
def calls_of_the_pools_jobs(wall: Wall, family: Family) -> bool:
    """Jobs of other workers: which of them, the datapath says."""
    with wall.wire("job1") as ear:
        wall.say("far", family.routed[1], FAR, source=family.pool)
        return wall.hears(ear)


@kept_off()
def neighbour_in_the_name_of_a_job(wall: Wall, family: Family) -> bool:
    """A source of the sandboxes' range, from elsewhere, also where a job is open to all."""
    with wall.wire("job0") as ear:
        wall.say("far", family.routed[0], FAR, source=family.jobs[1])
        return wall.hears(ear)


@kept_off()
def neighbour_in_the_name_of_a_routed_job(wall: Wall, family: Family) -> bool:
    """The same, of the delegated prefix."""
    with wall.wire("job0") as ear:
        wall.say("far", family.routed[0], FAR, source=family.routed[1])
        return wall.hears(ear)


# The worker itself


@let_through()
def a_listed_service(wall: Wall, family: Family) -> bool:
    """By the gateway's address."""
    with wall.listen(WORKER, family.gateway, LISTED) as ear:
        wall.say("job0", family.gateway, LISTED)
        return wall.hears(ear)


@kept_off()
def a_service_that_is_not_listed(wall: Wall, family: Family) -> bool:
    """By an address that the worker got this very moment."""
    with wall.listen(WORKER, family.worker, UNLISTED) as ear:
        wall.say("job0", family.worker, UNLISTED)
        return wall.hears(ear)


@let_through()
def answers_to_the_worker(wall: Wall, family: Family) -> bool:
    """What the worker asks a job."""
    with (
        wall.listen(WORKER, family.gateway, UNLISTED) as ear,
        wall.bound("job0", family.jobs[0], 1025) as job,
    ):
        wall.say_by(ear, family.jobs[0], 1025)
        origin = job.recvfrom(100)[1]
        job.sendto(wall.token, origin)
        return wall.hears(ear)


@kept_off()
def more_calls_of_the_worker_than_a_share(wall: Wall, family: Family) -> bool:
    """A listed service is no way around the share."""
    with wall.listen(WORKER, family.gateway, LISTED) as ear:
        _many(wall, "job0", family, family.gateway, LISTED)
        wall.say("job0", family.gateway, LISTED, source=family.jobs[0])
        return wall.hears(ear)


@let_through()
def others_call_the_worker(wall: Wall, family: Family) -> bool:
    """Who is no job is none of this table's business."""
    with wall.listen(WORKER, family.worker, UNLISTED) as ear:
        wall.say("far", family.worker, UNLISTED)
        return wall.hears(ear)


def _is_local(heard: Heard) -> bool:
    return heard.address == "127.0.0.1"


@let_through(only=4)
def a_service_of_the_loopback(wall: Wall, family: Family) -> bool:
    """It takes the job for a local client."""
    with wall.listen(WORKER, "127.0.0.1", LOOPBACK) as ear:
        wall.say("job0", family.gateway, LOOPBACK)
        return wall.hears(ear, _is_local)


@let_through(only=4)
def the_resolver(wall: Wall, family: Family) -> bool:
    """The worker's stub, by the gateway."""
    with wall.listen(WORKER, "127.0.0.53", STUB) as ear:
        wall.say("job0", family.gateway, STUB)
        return wall.hears(ear, _is_local)


@let_through(only=4)
def the_resolver_by_tcp(wall: Wall, family: Family) -> bool:
    """For long answers."""

    def call() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(max(wall.patience, 0.2))
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                sock.connect((family.gateway, STUB))

    with wall.accept(WORKER, "127.0.0.53", STUB) as ear:
        wall.inside("job0", call)
        return wall.hears(ear, _is_local)


@let_through(only=4)
def the_port_of_a_launcher(wall: Wall, family: Family) -> bool:
    """What the datapath has marked goes to the loopback, whatever port that is."""
    with wall.listen(WORKER, "127.0.0.1", MARKED) as ear:
        wall.say("job0", family.gateway, MARKED)
        return wall.hears(ear, _is_local)


@let_through(only=4)
def the_port_of_a_launcher_elsewhere(wall: Wall, family: Family) -> bool:
    """What the datapath has marked may be at an address of the worker's, too."""
    with wall.listen(WORKER, family.worker, MARKED) as ear:
        wall.say("job0", family.worker, MARKED)
        return wall.hears(ear)


@kept_off()
def the_workers_own_multicast(wall: Wall, family: Family) -> bool:
    """It would be counted as dropped for a job that has nothing to do with it."""
    with wall.wire("job0") as ear:
        with contextlib.suppress(PermissionError):  # so a sender is told of a drop
            wall.say(WORKER, family.group, 5353, link="lark0")
        return wall.hears(ear)


# The worker as a router of others


@kept_off()
def hosts_of_others_through_the_worker(wall: Wall, family: Family) -> bool:
    """Forwarding is on for the jobs only."""
    with wall.wire("far") as ear:
        wall.say("other", family.far, FAR)
        return wall.hears(ear)


@kept_off(router=True, only=4)
def hosts_of_a_vlan_through_the_worker(wall: Wall, family: Family) -> bool:
    """Not even where the worker is a router: the network's hosts are not to know of it."""
    with wall.wire("far") as ear:
        wall.say("beside", family.far, FAR)
        return wall.hears(ear)


@kept_off(only=4)
def hosts_of_a_vlan_to_the_worker(wall: Wall, family: Family) -> bool:
    """Its bridge has a link-layer address, and would take what is sent there."""
    with wall.listen(WORKER, family.worker, UNLISTED) as ear:
        wall.say("beside", family.worker, UNLISTED)
        return wall.hears(ear)


@let_through(only=4)
def from_bridge_to_bridge(wall: Wall, family: Family) -> bool:
    """With br_netfilter, frames of one bridge look like this."""
    with wall.wire("b2") as ear:
        wall.say("b1", "10.82.0.2", FAR)
        return wall.hears(ear)
