"""Two jobs of one worker exchange packets if both plans admit the other, and only then."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import pytest

from lark_agent.datapath import Datapath, SlotPlan, load
from lark_agent.datapath.layout import u32
from lark_agent.linux import bpf
from lark_agent.model import JOBS_CLASS, Count, Direction, DropReason, Peers
from tests.datapath.cases import PEER4, PEER6, back
from tests.datapath.frames import arp, ip4, ip6, ipv4, ipv6
from tests.datapath.network import BPFFS, GATEWAYS, JOB4, JOB6, PEERS, PLAN, SLOT
from tests.datapath.testrun import DROPPED, PASSED, Frame, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

PEER_SLOT = 7  # of PEER4 and PEER6
PEER_PLAN = SlotPlan(IPv4Address(PEER4), IPv6Address(PEER6), bytes.fromhex("026c6b000007"))
MODES = (Peers.NONE, Peers.OWNER, Peers.GROUP, Peers.ALL)
# what a pair of modes takes; pairs with `none` never agree
AGREE = {
    (Peers.OWNER, Peers.OWNER): {"owner"},
    (Peers.OWNER, Peers.GROUP): {"owner", "group"},
    (Peers.OWNER, Peers.ALL): {"owner"},
    (Peers.GROUP, Peers.OWNER): {"owner", "group"},
    (Peers.GROUP, Peers.GROUP): {"group"},
    (Peers.GROUP, Peers.ALL): {"group"},
    (Peers.ALL, Peers.OWNER): {"owner"},
    (Peers.ALL, Peers.GROUP): {"group"},
    (Peers.ALL, Peers.ALL): set[str](),
}


class Pair(NamedTuple):
    """What two jobs are to each other, and what they have in common."""

    own: SlotPlan
    peer: SlotPlan
    common: set[str]


FRAMES = {
    "from_job": (
        Frame(ip4(ipv4(destination=PEER4))),
        Frame(ip6(ipv6(destination=PEER6))),
    ),
    "to_job": (
        Frame(back(ip4(ipv4(source=PEER4, destination=JOB4)))),
        Frame(back(ip6(ipv6(source=PEER6, destination=JOB6)))),
    ),
}
DIRECTIONS = {"from_job": Direction.SENT, "to_job": Direction.RECEIVED}
BOTH = Count(2, 84 + 104)


def pairs() -> Iterator[Pair]:
    """Yield every relation of two jobs, in every pair of modes."""
    relations = (
        ("alice", "cms", "alice", "cms", {"owner", "group"}),
        ("alice", "cms", "alice", "atlas", {"owner"}),
        ("alice", "", "alice", "", {"owner"}),
        ("alice", "cms", "bob", "cms", {"group"}),
        ("alice", "cms", "bob", "", set[str]()),
        ("alice", "", "bob", "", set[str]()),
        ("", "", "", "", set[str]()),
    )
    for mode, theirs in product(MODES, MODES):
        for owner, group, other_owner, other_group, common in relations:
            yield Pair(
                replace(PLAN, peers=mode, owner=owner, group=group),
                replace(PEER_PLAN, peers=theirs, owner=other_owner, group=other_group),
                common,
            )


def bind(datapath: Datapath, ifindex: int) -> None:
    """Give the interface to slot 3, and no class to any job."""
    datapath.set_classes({}, PEERS, GATEWAYS)
    datapath._maps["slots"].set(ifindex.to_bytes(4, "little"), SLOT.to_bytes(4, "little"))


def passes(datapath: Datapath, ifindex: int, program: str, own: SlotPlan) -> bool:
    """Say whether the frames pass; then they are in `jobs`, else peer-denied, and nothing else."""
    datapath.deactivate(SLOT)
    datapath.reset(SLOT)
    datapath.activate(SLOT, own)
    outcomes = {run(datapath._programs[program], f, ifindex)[0] for f in FRAMES[program]}
    assert outcomes in ({PASSED}, {DROPPED}), "the families differ"
    counters = datapath.read([SLOT])[SLOT]
    row = datapath.classes.names.index(JOBS_CLASS)
    used, denied = (BOTH, Count()) if outcomes == {PASSED} else (Count(), BOTH)
    assert counters.used_by(row, DIRECTIONS[program]) == used
    assert counters.dropped_for(DropReason.PEER_DENIED) == denied
    assert sum(counters.used) + sum(counters.dropped) == BOTH.packets + BOTH.bytes
    return outcomes == {PASSED}


@pytest.mark.parametrize("loader", ["libbpf", "bcc"])
def test_both_must_agree(bench: int, loader: str, request: pytest.FixtureRequest) -> None:
    """Every pair of modes and of relations, both directions, both families, by each loader."""
    if loader == "bcc":
        request.getfixturevalue("kernel_headers")
    with load(BPFFS, 8, loader) as datapath:
        bind(datapath, bench)
        wrong = []
        for pair, program in product(pairs(), FRAMES):
            datapath.activate(PEER_SLOT, pair.peer)
            wanted = AGREE.get((pair.own.peers, pair.peer.peers), {"never"}) <= pair.common
            if passes(datapath, bench, program, pair.own) != wanted:
                wrong.append(f"{program}: {pair}")
    assert wrong == []


@pytest.mark.parametrize("program", FRAMES)
def test_only_a_living_job_at_that_very_address_is_a_peer(
    datapath: Datapath, bench: int, program: str
) -> None:
    """A slot without a plan, or whose job has another address, lets nobody through."""
    bind(datapath, bench)
    own, peer = replace(PLAN, peers=Peers.ALL), replace(PEER_PLAN, peers=Peers.ALL)
    assert not passes(datapath, bench, program, own)
    datapath.activate(PEER_SLOT, peer)
    assert passes(datapath, bench, program, own)
    elsewhere = replace(peer, addr4=IPv4Address("10.0.0.9"), addr6=IPv6Address("2001:db8:7::9"))
    for other in (elsewhere, replace(peer, addr4=None, addr6=None)):
        datapath.activate(PEER_SLOT, other)
        assert not passes(datapath, bench, program, own)
    datapath._maps["plan"].set(u32(PEER_SLOT), peer.packed(active=False))
    assert not passes(datapath, bench, program, own)
    datapath.activate(PEER_SLOT, peer)
    datapath.deactivate(PEER_SLOT)
    assert not passes(datapath, bench, program, own)


def test_without_the_class_of_jobs_there_are_no_peers(datapath: Datapath, bench: int) -> None:
    """Where old counters hold every number, each address of the ranges is denied, none counted."""
    for number in range(1, 16):
        datapath._maps["class_names"].set(u32(number), f"class{number}".encode().ljust(32, b"\0"))
    everything = b"".join(n.to_bytes(8, "little") for n in [1] * 68)
    datapath._maps["usage"].set(u32(5), everything * bpf.possible_cpus())
    bind(datapath, bench)
    assert JOBS_CLASS not in datapath.classes.names
    for slot, plan in ((SLOT, PLAN), (PEER_SLOT, PEER_PLAN)):
        datapath.activate(slot, replace(plan, peers=Peers.ALL))
    for program, frames in FRAMES.items():
        assert {run(datapath._programs[program], f, bench)[0] for f in frames} == {DROPPED}
    counters = datapath.read([SLOT])[SLOT]
    assert counters.dropped_for(DropReason.PEER_DENIED) == BOTH + BOTH
    datapath.reset(5)
    bind(datapath, bench)
    assert passes(datapath, bench, "from_job", replace(PLAN, peers=Peers.ALL))


def test_addresses_of_no_slot_are_nobody(datapath: Datapath, bench: int) -> None:
    """The range's own address, those after the last slot, those far above, and the job itself."""
    bind(datapath, bench)
    for slot in range(8):
        addresses = IPv4Address("100.98.0.2") + slot, IPv6Address("fd6c:6172:6b00::2") + slot
        datapath.activate(slot, SlotPlan(*addresses, PLAN.mac, peers=Peers.ALL))
    program = datapath._programs["from_job"]
    for address in ("100.98.0.0", "100.98.0.10", "100.98.255.255", "100.99.0.0", JOB4):
        verdict, _ = run(program, Frame(ip4(ipv4(destination=address))), bench)
        assert (verdict == PASSED) == (address == "100.99.0.0"), address
    # the last: slot 7's number in the last word, under another prefix of the same range
    for address in (
        "fd6c:6172:6b00::", "fd6c:6172:6b00::a", "fd6c:6172:6b00:0:ffff::ffff", JOB6,
        "fd6c:6172:6b00::1:0:9",
    ):  # fmt: skip
        assert run(program, Frame(ip6(ipv6(destination=address))), bench)[0] == DROPPED, address
    assert datapath.read([SLOT])[SLOT].dropped_for(DropReason.PEER_DENIED).packets == 9


def test_reach_does_not_touch_peers(datapath: Datapath, bench: int) -> None:
    """A plan without any class still has its peers, and one with all classes has no more."""
    bind(datapath, bench)
    datapath.activate(PEER_SLOT, replace(PEER_PLAN, peers=Peers.ALL))
    for program in FRAMES:
        nothing = replace(PLAN, peers=Peers.ALL, classes=datapath.classes.mask(frozenset()))
        assert passes(datapath, bench, program, nothing)
        everything = replace(PLAN, classes=datapath.classes.mask(None))
        assert not passes(datapath, bench, program, everything)


def test_a_second_range_of_addresses_names_the_same_slots(datapath: Datapath, bench: int) -> None:
    """Sandboxes of a delegated prefix are peers too, of each other and of private ones."""
    bind(datapath, bench)
    routed = [ip_network("198.18.7.0/28"), ip_network("2001:db8:7::/112")]
    datapath.set_classes({"wide": ["198.18.0.0/15"]}, (*PEERS, *routed), GATEWAYS)
    addresses = IPv4Address("198.18.7.9"), IPv6Address("2001:db8:7::9")
    datapath.activate(
        PEER_SLOT, replace(PEER_PLAN, addr4=None, addr6=addresses[1], peers=Peers.ALL)
    )
    datapath.activate(SLOT, replace(PLAN, peers=Peers.ALL))
    program = datapath._programs["from_job"]
    assert run(program, Frame(ip6(ipv6(destination=str(addresses[1])))), bench)[0] == PASSED
    assert run(program, Frame(ip4(ipv4(destination=str(addresses[0])))), bench)[0] == DROPPED
    datapath.activate(PEER_SLOT, SlotPlan(*addresses, PEER_PLAN.mac, peers=Peers.ALL))
    assert run(program, Frame(ip4(ipv4(destination=str(addresses[0])))), bench)[0] == PASSED
    used = datapath.read([SLOT])[SLOT].usage(datapath.classes.names).classes
    assert [(c.traffic_class, c.sent) for c in used] == [(JOBS_CLASS, BOTH)]


def test_a_job_without_ipv4_speaks_no_arp(datapath: Datapath, bench: int) -> None:
    """With no IPv4 address in the plan neither ARP nor packets from 0.0.0.0 pass."""
    bind(datapath, bench)
    datapath.activate(SLOT, replace(PLAN, addr4=None))
    for frame in (arp(address="0.0.0.0"), ip4(ipv4(source="0.0.0.0")), ip4(ipv4())):
        assert run(datapath._programs["from_job"], Frame(frame), bench)[0] == DROPPED
    assert datapath.read([SLOT])[SLOT].dropped_for(DropReason.SPOOFED_ADDRESS).packets == 3
