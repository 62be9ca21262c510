"""Classes keep their numbers while in use, and their networks can change under traffic."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lark_agent.datapath.classes import assign, build_table
from lark_agent.datapath.layout import ALL_CLASSES, NOBODY, WORKER, Destination
from lark_agent.errors import ConfigurationError, PrerequisiteError
from lark_agent.model import (
    BUILT_IN_CLASSES,
    DEFAULT_CLASS,
    JOBS_CLASS,
    MAX_CLASSES,
    WORKER_CLASS,
    Count,
    Direction,
    DropReason,
)
from tests.datapath.network import FAR4, FAR6, GATEWAYS, PEERS, PLAN, SLOT, Network, total

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

NAMES = [f"class{n}" for n in range(20)]


@given(st.lists(st.tuples(st.lists(st.sampled_from(NAMES), max_size=13, unique=True),
                          st.sets(st.integers(0, 15)))))  # fmt: skip
def test_numbers_never_wander(steps: list[tuple[list[str], set[int]]]) -> None:
    """Whatever the site does, a number that stays wanted or in use keeps its name."""
    before: tuple[str, ...] = (DEFAULT_CLASS,)
    for wanted, in_use in steps:
        try:
            after = assign(before, in_use, wanted)
        except PrerequisiteError:
            held = {n for n, name in enumerate(before) if n in in_use and name}
            assert len(set(wanted) | {before[n] for n in held if n}) > MAX_CLASSES - len(
                BUILT_IN_CLASSES
            )
            continue
        assert after[0] == DEFAULT_CLASS
        assert JOBS_CLASS in after
        assert len(after) == MAX_CLASSES
        assert set(wanted) <= set(after)
        named = [name for name in after if name]
        assert len(named) == len(set(named))
        for number, name in enumerate(before):
            if name in wanted or (name and number in in_use):
                assert after[number] == name
        before = after


def test_a_network_among_the_sandboxes_is_refused() -> None:
    """A class inside the sandboxes' ranges would let jobs reach each other; the error says so."""
    names = assign((), (), ["campus"])
    for text in ("100.98.4.0/24", "100.98.0.0/16", "fd6c:6172:6b00::5/128"):
        with pytest.raises(ConfigurationError, match="where the sandboxes are"):
            build_table(names, {"campus": [text]}, PEERS, GATEWAYS)


def test_wider_networks_leave_sandboxes_apart() -> None:
    """A class around the sandboxes' ranges is allowed; the ranges stay jobs, the gateway worker."""
    networks: dict[IPv4Network | IPv6Network, Destination] = dict(
        build_table(
            assign((), (), ["shared"]), {"shared": ["100.64.0.0/10"]}, PEERS, GATEWAYS
        ).prefixes
    )
    jobs = MAX_CLASSES - 1
    assert networks[ip_network("100.64.0.0/10")] == Destination(1)
    assert networks[ip_network("100.98.0.0/16")] == Destination(jobs, 0x64620002)
    assert networks[ip_network("fd6c:6172:6b00::/64")] == Destination(jobs, 2)
    assert networks[ip_network("100.98.0.1/32")] == Destination(14, WORKER)


def test_without_a_number_for_jobs_nobody_is_a_peer() -> None:
    """Classes that a release without `jobs` left in use keep their numbers; it takes the first."""
    names = [DEFAULT_CLASS, *NAMES[:15]]
    after = assign(names, range(16), NAMES[:13])
    assert after == tuple(names)
    table = build_table(after, {name: [] for name in NAMES[:13]}, PEERS, GATEWAYS)
    assert table.prefixes[PEERS[0]] == Destination(0, NOBODY)
    later = assign(names, range(14), NAMES[:13])
    assert later[14:] == (WORKER_CLASS, JOBS_CLASS)


def test_mask_of_unknown_class_is_refused() -> None:
    """A plan for a class that the site no longer has is an error, not a job without a network."""
    table = build_table(assign((), (), ["campus"]), {"campus": ["10.0.0.0/8"]})
    assert table.mask(None) == ALL_CLASSES
    assert table.mask({"campus"}) == 0b10
    assert table.mask(frozenset()) == 0
    for unknown in ("cloud", JOBS_CLASS):
        with pytest.raises(ConfigurationError, match=f"no class '{unknown}'; known: campus, other"):
            table.mask({unknown})


def test_jobs_and_worker_are_counted_and_not_reached() -> None:
    """Quotas count by every class; by one that has no number yet they cannot, and say so."""
    table = build_table(assign((), (), ["campus"]), {"campus": []})
    numbers = {name: table.names.index(name) for name in (JOBS_CLASS, WORKER_CLASS, "campus")}
    assert table.counted(None) == ALL_CLASSES
    assert table.counted(numbers) == sum(1 << number for number in numbers.values())
    assert table.counted({WORKER_CLASS}) == 1 << numbers[WORKER_CLASS]
    with pytest.raises(ConfigurationError, match="no class 'cloud'"):
        table.counted({JOBS_CLASS, "cloud"})
    full = assign([DEFAULT_CLASS, *NAMES[:15]], range(16), [])
    with pytest.raises(ConfigurationError, match="class 'jobs' is not counted yet: jobs of an"):
        build_table(full, {}).counted({JOBS_CLASS})


def exchange(network: Network, family: int, address: str) -> None:
    """Send one datagram of 100 bytes and get one of 50."""
    with (
        network.far.socket(family, socket.SOCK_DGRAM) as receiver,
        network.sandbox.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((address, 0))
        sender.sendto(bytes(100), receiver.getsockname())
        _, origin = receiver.recvfrom(200)
        receiver.sendto(bytes(50), origin)
        sender.recv(200)


@pytest.mark.root
def test_longest_prefix_names_the_class(network: Network) -> None:
    """Of overlapping networks the longest counts, in both families and directions."""
    table = network.datapath.set_classes(
        {"wide": ["198.51.0.0/16", "2001:db8::/32"], "exact": [f"{FAR4}/32", f"{FAR6}/128"]},
        PEERS,
        GATEWAYS,
    )
    exchange(network, socket.AF_INET, FAR4)
    exchange(network, socket.AF_INET6, FAR6)
    (used,) = network.counters.usage(table.names).classes
    assert used.traffic_class == "exact"
    assert (used.sent, used.received) == (Count(2, 128 + 148), Count(2, 78 + 98))


@pytest.mark.root
def test_removed_class_keeps_its_bytes_and_number(network: Network) -> None:
    """Bytes counted for a class that is removed stay its own; its number is not given away."""
    datapath = network.datapath
    datapath.set_classes({"old": [f"{FAR4}/32"]}, PEERS, GATEWAYS)
    exchange(network, socket.AF_INET, FAR4)
    table = datapath.set_classes({"new": [f"{FAR4}/32"]}, PEERS, GATEWAYS)
    exchange(network, socket.AF_INET, FAR4)
    assert table.names[:3] == ("other", "old", "new")
    used = {c.traffic_class: c.sent for c in network.counters.usage(table.names).classes}
    assert used == {"old": Count(1, 128), "new": Count(1, 128)}
    with pytest.raises(ConfigurationError, match="no class 'old'"):
        table.mask({"old"})

    datapath.deactivate(SLOT)
    datapath.reset(SLOT)
    assert datapath.set_classes({"new": []}, PEERS, GATEWAYS).names[:3] == ("other", "", "new")


@pytest.mark.root
def test_what_a_plan_refuses_is_told_by_class(network: Network) -> None:
    """Packets of each refused class, both ways, under a name that stays while they are told."""
    datapath = network.datapath
    far = {"near": [f"{FAR4}/32"], "far": [f"{FAR6}/128"], "free": ["192.0.2.1/32"]}
    table = datapath.set_classes(far, PEERS, GATEWAYS)
    datapath.activate(SLOT, replace(PLAN, classes=table.mask({"free", "other"})))
    with (
        network.sandbox.socket(socket.AF_INET, socket.SOCK_DGRAM) as four,
        network.sandbox.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six,
    ):
        for number in range(5):
            four.sendto(b"x", (FAR4, 9))
            if number < 2:
                six.sendto(b"x", (FAR6, 9))
    table = datapath.set_classes({"new": [f"{FAR4}/32"]}, PEERS, GATEWAYS)
    (drop,) = (d for d in network.counters.usage(table.names).drops if d.reason == "class-denied")
    assert drop.classes == (("near", 5), ("far", 2))
    assert drop.count.packets == 7
    datapath.deactivate(SLOT)
    datapath.reset(SLOT)
    assert network.counters.refused == (0,) * MAX_CLASSES


@pytest.mark.root
def test_a_plan_keeps_the_number_it_was_allowed(network: Network) -> None:
    """A job allowed a class that is removed does not get the class that is added next."""
    datapath = network.datapath
    table = datapath.set_classes({"campus": ["10.0.0.0/8"]}, PEERS, GATEWAYS)
    datapath.activate(SLOT, replace(PLAN, classes=table.mask({"campus"})))
    datapath.set_classes({"secret": [f"{FAR4}/32"]}, PEERS, GATEWAYS)
    with network.sandbox.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (FAR4, 9))
        sender.sendto(b"x", (FAR4, 9))
    assert network.drops[DropReason.CLASS_DENIED] == Count(2, 58)


@pytest.mark.root
def test_classes_change_under_traffic(network: Network) -> None:
    """The site changes its classes while datagrams flow; each is counted once, in one class."""
    receiver = network.far.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((FAR4, 0))
    sender = network.sandbox.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sent = 20_000

    def send() -> None:
        for _ in range(sent):
            sender.sendto(bytes(100), receiver.getsockname())

    network.datapath.set_classes({"a": [f"{FAR4}/32"]}, PEERS, GATEWAYS)
    traffic = threading.Thread(target=send)
    traffic.start()
    turn = 0
    while traffic.is_alive():
        turn += 1
        prefixes = [f"{FAR4}/32"] if turn % 2 else ["198.51.100.0/24"]
        table = network.datapath.set_classes({"ab"[turn % 2]: prefixes}, PEERS, GATEWAYS)
    traffic.join()
    network.datapath.settle()
    assert turn > 3
    assert total(network.counters, Direction.SENT) == Count(sent, sent * 128)
    used = {c.traffic_class: c.sent for c in network.counters.usage(table.names).classes}
    assert used.keys() == {"a", "b"}, "no packet fell between two tables"
