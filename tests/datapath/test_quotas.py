"""A quota ends a job's traffic at the very packet that would pass it, and the agent hears of it."""

from __future__ import annotations

import select
import socket
import threading
import time
from dataclasses import replace

import pytest

from lark_agent.datapath import (
    Datapath,
    FirstDrop,
    QuotaAction,
    QuotaExceeded,
    QuotaState,
    QuotaUse,
    SlotPlan,
    load,
)
from lark_agent.linux import bpf
from lark_agent.model import Count, Direction, DropReason
from tests.datapath.cases import back
from tests.datapath.frames import TCP, arp, ip4, ip6, ipv4, ipv6, tcp
from tests.datapath.network import (
    BPFFS,
    FAR4,
    GATEWAYS,
    JOB4,
    PEERS,
    PLAN,
    SLOT,
    Network,
    total,
)
from tests.datapath.test_hostile import until
from tests.datapath.testrun import DROPPED, PASSED, Frame, run

pytestmark = pytest.mark.root

OUT, IN = Frame(ip4(ipv4())), Frame(back(ip4(ipv4(source=FAR4, destination=JOB4))))  # 84 bytes
CUT = (QuotaAction.CUT_CLASS, QuotaAction.CUT_ALL)


def begin(datapath: Datapath, ifindex: int, *uses: QuotaUse, plan: SlotPlan = PLAN) -> None:
    """Give the interface to slot 3, whose job counts against these quotas."""
    datapath.set_classes({"denied": ["203.0.113.0/24"]}, PEERS, GATEWAYS)
    datapath._maps["slots"].set(ifindex.to_bytes(4, "little"), SLOT.to_bytes(4, "little"))
    datapath.activate(SLOT, replace(plan, quotas=uses))


def passed(datapath: Datapath, ifindex: int, frame: Frame, program: str = "from_job") -> bool:
    verdict, _ = run(datapath._programs[program], frame, ifindex)
    assert verdict in {PASSED, DROPPED}
    return verdict == PASSED


@pytest.mark.parametrize("loader", ["libbpf", "bcc"])
def test_the_packet_that_would_pass_the_limit_is_dropped(
    bench: int, loader: str, request: pytest.FixtureRequest
) -> None:
    """Ten packets of 84 bytes fit in 840 and in 923 bytes; the next is dropped and not charged."""
    if loader == "bcc":
        request.getfixturevalue("kernel_headers")
    with load(BPFFS, 8, loader) as datapath:
        for limit in (840, 923):
            datapath.deactivate(SLOT)
            datapath.reset(SLOT)
            datapath.quotas.reset(5)
            datapath.quotas.set(5, limit, QuotaAction.CUT_CLASS)
            begin(datapath, bench, QuotaUse(5))
            outcome = [passed(datapath, bench, OUT) for _ in range(12)]
            assert outcome == [True] * 10 + [False] * 2
            assert datapath.quotas.state([5]) == {5: QuotaState(840, exceeded=True)}
            counters = datapath.read([SLOT])[SLOT]
            assert total(counters, Direction.SENT) == Count(10, 840)
            assert counters.dropped_for(DropReason.QUOTA) == Count(2, 168)
            small = Frame(ip4(ipv4(bytes(20))))
            assert not passed(datapath, bench, small), "what would still fit is cut as well"
            (event,) = [e for e in datapath.events.read() if isinstance(e, QuotaExceeded)]
            assert (event.slot, event.quota) == (SLOT, 5)
            assert event.at_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_a_super_packet_counts_what_it_becomes(datapath: Datapath, bench: int) -> None:
    """Four segments with four headers do not fit where one packet of their payload would."""
    cut = Frame(ip4(ipv4(tcp(bytes(1000)), TCP)), 300)  # 1160 bytes on the wire
    for limit, fits in ((1159, False), (1160, True)):
        datapath.quotas.set(0, limit, QuotaAction.CUT_CLASS)
        begin(datapath, bench, QuotaUse(0))
        assert passed(datapath, bench, cut) == fits


@pytest.mark.parametrize("action", [QuotaAction.NOTIFY, QuotaAction.THROTTLE])
def test_actions_of_the_agent_let_packets_pass(
    datapath: Datapath, bench: int, action: QuotaAction
) -> None:
    """Notify and throttle only tell: once, when the sum passes the limit; counting goes on."""
    datapath.quotas.set(7, 168, action)
    begin(datapath, bench, QuotaUse(7))
    assert all(passed(datapath, bench, OUT) for _ in range(2))
    assert datapath.quotas.state([7]) == {7: QuotaState(168, exceeded=False)}
    assert datapath.events.read() == []
    assert all(passed(datapath, bench, OUT) for _ in range(5))
    assert datapath.quotas.state([7]) == {7: QuotaState(588, exceeded=True)}
    (event,) = datapath.events.read()
    assert isinstance(event, QuotaExceeded)


def test_classes_and_directions_choose_what_counts(datapath: Datapath, bench: int) -> None:
    """A quota on what is sent to one class leaves the other direction and other classes alone."""
    away = Frame(ip4(ipv4(destination="203.0.113.7")))
    datapath.quotas.set(1, 84, QuotaAction.CUT_CLASS)
    use = QuotaUse(1, classes=1 << 0, directions=1 << Direction.SENT)
    begin(datapath, bench, use)
    assert passed(datapath, bench, OUT)
    assert not passed(datapath, bench, OUT)
    assert passed(datapath, bench, away)
    assert passed(datapath, bench, IN, "to_job")
    begin(datapath, bench, replace(use, directions=1 << Direction.RECEIVED))
    assert passed(datapath, bench, OUT)
    assert not passed(datapath, bench, IN, "to_job")
    assert datapath.quotas.state([1])[1].used == 84


def test_cutting_all_cuts_every_class_and_every_job_of_the_quota(
    datapath: Datapath, bench: int
) -> None:
    """With cut-all one job's last byte ends every packet, ARP too, of both jobs of an owner."""
    datapath.quotas.set(1, 84, QuotaAction.CUT_ALL)
    begin(datapath, bench, QuotaUse(1, classes=1))
    assert passed(datapath, bench, OUT)
    assert passed(datapath, bench, Frame(arp()))
    assert not passed(datapath, bench, OUT)
    away, six = Frame(ip4(ipv4(destination="203.0.113.7"))), Frame(ip6(ipv6()))
    for frame in (away, six, Frame(arp())):
        assert not passed(datapath, bench, frame)
    assert not passed(datapath, bench, IN, "to_job")
    other = 4
    datapath._maps["slots"].set(bench.to_bytes(4, "little"), other.to_bytes(4, "little"))
    datapath.activate(other, replace(PLAN, quotas=(QuotaUse(1, classes=1),)))
    assert not passed(datapath, bench, away)
    datapath.activate(other, PLAN)
    assert passed(datapath, bench, away)


def test_a_packet_refused_by_one_quota_is_charged_to_none(datapath: Datapath, bench: int) -> None:
    """With several quotas the fullest decides, and the others are not charged for what it drops."""
    limits = {10: 10_000, 11: 5_000, 12: 170, 13: 9_000}
    for index, limit in limits.items():
        datapath.quotas.set(index, limit, QuotaAction.CUT_CLASS)
    begin(datapath, bench, *(QuotaUse(index) for index in limits))
    assert [passed(datapath, bench, OUT) for _ in range(5)] == [True] * 2 + [False] * 3
    assert {s.used for s in datapath.quotas.state(limits).values()} == {168}


def test_all_eight_quotas_count(datapath: Datapath, bench: int) -> None:
    """A plan has room for eight, the last counts like the first, and a ninth is refused."""
    for index in range(8):
        datapath.quotas.set(index, 100 if index == 7 else 1000, QuotaAction.CUT_CLASS)
    uses = tuple(QuotaUse(index) for index in range(8))
    begin(datapath, bench, *uses)
    assert [passed(datapath, bench, OUT) for _ in range(2)] == [True, False]
    with pytest.raises(ValueError, match="9 quotas for one job"):
        datapath.activate(SLOT, replace(PLAN, quotas=(*uses, QuotaUse(9))))


def test_a_raised_limit_lets_packets_pass_again(datapath: Datapath, bench: int) -> None:
    """More is granted while the job runs: what was used stays used, and its end is told again."""
    datapath.quotas.set(2, 84, QuotaAction.CUT_CLASS)
    begin(datapath, bench, QuotaUse(2))
    assert [passed(datapath, bench, OUT) for _ in range(2)] == [True, False]
    assert len([e for e in datapath.events.read() if isinstance(e, QuotaExceeded)]) == 1
    datapath.quotas.set(2, 168, QuotaAction.CUT_CLASS)
    assert datapath.quotas.state([2]) == {2: QuotaState(84, exceeded=False)}
    assert [passed(datapath, bench, OUT) for _ in range(2)] == [True, False]
    assert len(datapath.events.read()) == 1


def test_a_quota_that_nobody_set_lets_nothing_pass(datapath: Datapath, bench: int) -> None:
    """A plan that refers to a quota before it has a limit, or to none of the map's, is closed."""
    for index in (3, datapath.quotas.size):
        begin(datapath, bench, QuotaUse(index))
        assert passed(datapath, bench, OUT) == (index == 3)
    datapath.quotas.set(3, 0, QuotaAction.CUT_CLASS)
    begin(datapath, bench, QuotaUse(3))
    assert not passed(datapath, bench, OUT)


def test_senders_on_every_cpu_never_pass_the_limit(network: Network) -> None:
    """Eight senders at once: what arrives is at most the limit, and misses it by a few packets."""
    limit, size, senders = 2_000_000, 128, 8
    network.datapath.quotas.set(0, limit, QuotaAction.CUT_CLASS)
    network.datapath.change(
        SLOT, replace(PLAN, quotas=(QuotaUse(0, directions=1 << Direction.SENT),))
    )

    def send() -> None:
        with network.sandbox.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not network.datapath.quotas.state([0])[0].exceeded:
                for _ in range(100):
                    sender.sendto(bytes(100), (FAR4, 9))

    threads = [threading.Thread(target=send) for _ in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    network.datapath.settle()
    used = network.datapath.quotas.state([0])[0].used
    assert used == network.sent.bytes
    assert limit - senders * size <= used <= limit
    assert network.drops[DropReason.QUOTA]


def test_charges_are_not_lost_while_limits_change(network: Network) -> None:
    """The agent sets the limit over and over while packets flow; every byte is charged."""
    datapath = network.datapath
    datapath.quotas.set(0, 1 << 40, QuotaAction.CUT_CLASS)
    datapath.change(SLOT, replace(PLAN, quotas=(QuotaUse(0),)))
    sender = network.sandbox.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send() -> None:
        for _ in range(20_000):
            sender.sendto(bytes(100), (FAR4, 9))

    traffic = threading.Thread(target=send)
    traffic.start()
    turns = 0
    while traffic.is_alive():
        turns += 1
        datapath.quotas.set(0, (1 << 40) + turns, QuotaAction.CUT_CLASS)
    traffic.join()
    datapath.settle()
    assert turns > 10
    exchanged = network.sent + network.received
    assert datapath.quotas.state([0]) == {0: QuotaState(exchanged.bytes, exceeded=False)}


def test_first_drops_are_told_and_floods_are_not(network: Network) -> None:
    """The agent's descriptor turns readable at a first drop; a thousand more tell nothing."""
    events = network.datapath.events
    events.read()
    poll = select.poll()
    poll.register(events, select.POLLIN)
    assert poll.poll(0) == []
    wire = network.sandbox.wire()
    for _ in range(1000):
        wire.send(ip4(ipv4(source="10.9.9.9")))
    assert poll.poll(10_000)
    until(lambda: network.drops[DropReason.SPOOFED_ADDRESS].packets == 1000)
    told = [e for e in events.read() if isinstance(e, FirstDrop)]
    spoofed = [e for e in told if e.reason is DropReason.SPOOFED_ADDRESS]
    assert 1 <= len(spoofed) <= bpf.possible_cpus(), "once a CPU"
    assert {e.slot for e in spoofed} == {SLOT}
    assert poll.poll(0) == []


def test_events_outlive_the_agent(datapath: Datapath, bench: int) -> None:
    """What happened while no agent ran is told to the next one, once."""
    datapath.quotas.set(0, 84, QuotaAction.CUT_CLASS)
    begin(datapath, bench, QuotaUse(0))
    for _ in range(2):
        passed(datapath, bench, OUT)
    with load(BPFFS, 8) as following:
        assert [type(e) for e in following.events.read()] == [QuotaExceeded, FirstDrop]
        assert following.events.read() == []


def test_a_full_ring_loses_events_and_nothing_else(datapath: Datapath, bench: int) -> None:
    """Nobody reads: verdicts and counters go on; when it is read, the ring works again."""
    begin(datapath, bench, QuotaUse(0))
    for _ in range(3000):  # a ring of 64 KiB has room for one less than 2048 records of 32
        datapath.quotas.set(0, 0, QuotaAction.CUT_CLASS)
        assert not passed(datapath, bench, OUT)
    assert len(datapath.events.read()) == 2047
    datapath.quotas.set(0, 0, QuotaAction.CUT_CLASS)
    passed(datapath, bench, OUT)
    assert len(datapath.events.read()) == 1


def test_settings_change_while_a_job_runs(network: Network) -> None:
    """A living plan changes from the next packet on, its counters stay; no job is an error."""
    network.sandbox.run("ping", "-c", "2", FAR4)
    network.datapath.change(SLOT, replace(PLAN, classes=0))
    with network.sandbox.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(bytes(100), (FAR4, 9))
    until(lambda: DropReason.CLASS_DENIED in network.drops)
    assert network.sent == Count(2, 168)
    network.datapath.change(SLOT, PLAN)
    network.sandbox.run("ping", "-c", "1", FAR4)
    assert network.sent == Count(3, 252)
    network.datapath.deactivate(SLOT)
    with pytest.raises(ValueError, match="slot 3 has no job"):
        network.datapath.change(SLOT, PLAN)
