"""Rates, guarantees and queues hold for real traffic, in both directions."""

from __future__ import annotations

import contextlib
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from lark_agent.errors import KernelError, PolicyRefusal, Unavailable
from lark_agent.linux.traffic import Traffic
from lark_agent.model import Connectivity, Direction, Rates
from lark_agent.shaping.shaping import DEVICES, Shaping
from lark_agent.shaping.tree import CAPACITY, Share, frames, leaf_minor
from tests.datapath.conftest import datapath  # noqa: F401  a fixture
from tests.datapath.network import FAR4, Network, sh
from tests.lab.capture import Capture, sum_ip
from tests.shaping.network import Seat, rates_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from socket import socket as Socket  # noqa: N812  as in tests.datapath.network

    from lark_agent.datapath import Datapath

SENT, RECEIVED = Direction.SENT, Direction.RECEIVED
M = 10**6


@pytest.fixture
def seats(datapath: Datapath) -> list[Seat]:  # noqa: F811  the fixture
    """Three sandboxes in slots 4 to 6."""
    network = Network(datapath)
    return [Seat(network, slot) for slot in (4, 5, 6)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def shaper(stack: ExitStack, uplink: int = 0, **queues: Share) -> Shaping:
    shaping = Shaping(Rates(uplink, uplink), queues)
    stack.callback(shaping.close)
    return shaping


def take(receiving: Socket, size: int) -> None:
    while size:
        size -= len(receiving.recv(size))


def both(rate: int) -> Rates:
    return Rates(rate, rate)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("rate", [M, 20 * M, 300 * M])
def test_a_job_gets_the_rate_that_it_is_given(
    seats: list[Seat], stack: ExitStack, direction: Direction, rate: int
) -> None:
    """A bulk transfer runs at the configured rate, no more and hardly less, from 1 Mbit/s up."""
    shaping = shaper(stack)
    seats[0].begin(shaping, rate=both(rate))
    with seats[0].bulk(direction):
        time.sleep(1)
        began, before = time.monotonic(), shaping.states(direction)[CAPACITY].bytes
        time.sleep(4)
        left = shaping.states(direction)[CAPACITY].bytes - before
        elapsed = time.monotonic() - began
    assert left / elapsed == pytest.approx(frames(rate), rel=0.05)
    if direction is SENT:
        assert shaping.states(direction)[leaf_minor(4)].drops == 0


@pytest.mark.parametrize("direction", Direction)
def test_guarantees_are_kept_when_all_want_more(
    seats: list[Seat], stack: ExitStack, direction: Direction
) -> None:
    """Three jobs with 10, 30 and 60 of 100 Mbit/s get those shares of a full uplink."""
    shaping = shaper(stack, 100 * M)
    for seat, share in zip(seats, (10, 30, 60), strict=True):
        seat.begin(shaping, guarantee=both(share * M))
        stack.enter_context(seat.bulk(direction))
    achieved = rates_of(seats, direction, 5)
    assert [round(rate / M) for rate in achieved] == pytest.approx([10, 30, 60], rel=0.1)


def test_what_one_leaves_others_borrow(seats: list[Seat], stack: ExitStack) -> None:
    """With the others idle, a job with a small guarantee gets the whole uplink."""
    shaping = shaper(stack, 100 * M)
    seats[0].begin(shaping, guarantee=both(10 * M))
    seats[1].begin(shaping, guarantee=both(90 * M))
    stack.enter_context(seats[0].bulk(SENT))
    assert rates_of(seats[:1], SENT, 3)[0] == pytest.approx(100 * M, rel=0.1)


def test_a_queue_is_shared_by_its_jobs_alone(seats: list[Seat], stack: ExitStack) -> None:
    """Two jobs of a queue of 40 Mbit/s get 20 each, and the job outside it the rest."""
    shaping = shaper(stack, 100 * M, cms=Share(both(40 * M), both(40 * M)))
    for seat, queue in zip(seats, ("cms", "cms", ""), strict=True):
        seat.begin(shaping, queue=queue)
        stack.enter_context(seat.bulk(SENT))
    achieved = rates_of(seats, SENT, 5)
    assert [round(rate / M) for rate in achieved] == pytest.approx([20, 20, 60], rel=0.12)


def test_priority_borrows_first(seats: list[Seat], stack: ExitStack) -> None:
    """Of two jobs without a guarantee, the one of higher priority gets nearly all."""
    shaping = shaper(stack, 50 * M)
    seats[0].begin(shaping, priority=1)
    seats[1].begin(shaping, priority=5)
    for seat in seats[:2]:
        stack.enter_context(seat.bulk(SENT))
    first, second = rates_of(seats[:2], SENT, 3)
    assert first > 0.85 * 50 * M
    assert second < 0.15 * 50 * M


def test_a_changed_rate_holds_at_once(seats: list[Seat], stack: ExitStack) -> None:
    """A running transfer slows down and speeds up with its job's plan, without a packet lost."""
    shaping = shaper(stack)
    holding = seats[0].begin(shaping)
    stack.enter_context(seats[0].bulk(SENT))
    for rate in (10 * M, 250 * M, 5 * M):
        holding = seats[0].change(shaping, holding, rate=Rates(rate, 0))
        # never more; how near it comes depends on who else wants the processors
        assert rate / 2 < rates_of(seats[:1], SENT, 3)[0] < rate * 1.15
    assert shaping.states(SENT)[leaf_minor(4)].drops == 0


def test_a_udp_sender_is_stopped_by_its_own_buffer(seats: list[Seat], stack: ExitStack) -> None:
    """A job that sends faster than its rate waits; nothing of what it has sent is dropped."""
    shaping = shaper(stack)
    holding = seats[0].begin(shaping, rate=Rates(M, 0))
    with seats[0].side.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.setblocking(False)
        accepted = 0
        with contextlib.suppress(BlockingIOError):
            while accepted < 10_000:
                accepted += sending.sendto(bytes(1000), (FAR4, 9)) == 1000
        assert 0 < accepted < 1000
        assert shaping.states(SENT)[leaf_minor(4)].drops == 0
        assert shaping.waiting(holding) > 0


def test_shaped_packets_count_once_and_as_captured(
    seats: list[Seat], stack: ExitStack, tmp_path: Path
) -> None:
    """A shaped job's counters equal a capture at the far host, though packets pass twice."""
    shaping = shaper(stack)
    seats[0].begin(shaping, rate=both(50 * M))
    far, file = seats[0].network.far, tmp_path / "far.pcap"
    with (
        Capture("eth0", file, far.netns),
        far.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
    ):
        listener.bind((FAR4, 0))
        listener.listen()
        with seats[0].side.socket(socket.AF_INET, socket.SOCK_STREAM) as sending:
            sending.connect(listener.getsockname())
            receiving, _ = listener.accept()
            with receiving:
                sending.sendall(bytes(300_000))
                take(receiving, 300_000)
                receiving.sendall(bytes(300_000))
                take(sending, 300_000)
                sending.shutdown(socket.SHUT_WR)
                assert receiving.recv(1) == b""
            assert sending.recv(1) == b""
    own = seats[0].address
    assert seats[0].moved(SENT) == sum_ip(file, lambda p: p.src == own).bytes
    assert seats[0].moved(RECEIVED) == sum_ip(file, lambda p: p.dst == own).bytes


def test_what_the_worker_itself_sends_is_shaped_too(seats: list[Seat], stack: ExitStack) -> None:
    """Packets that come in by no interface are not lost on the way through the shaper."""
    shaper_ = shaper(stack)
    seats[0].begin(shaper_, rate=both(50 * M))
    with seats[0].side.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiving:
        receiving.bind((seats[0].address, 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.sendto(b"hello", receiving.getsockname())
        assert receiving.recv(10) == b"hello"
    assert shaper_.states(RECEIVED)[leaf_minor(4)].packets == 1


def test_nothing_is_left_when_the_last_job_ended(seats: list[Seat], stack: ExitStack) -> None:
    """Ending is repeatable; no class, filter or device stays, and the booking is free again."""
    shaping = Shaping(both(100 * M), {})
    holding = seats[0].begin(shaping, guarantee=both(60 * M))
    assert set(shaping.states(SENT)) == {1, leaf_minor(4)}
    for _ in range(2):
        shaping.end(holding)
        assert set(shaping.states(SENT)) == set(shaping.states(RECEIVED)) == {1}
        assert shaping.booking.free() == both(100 * M)
    assert "mirred" not in sh("tc filter show dev lark4 ingress") + sh(
        "tc filter show dev lark4 egress"
    )
    shaping.close()
    present = {name for _, name in socket.if_nameindex()}
    assert not present & {name for name, _ in DEVICES.values()}


def test_an_unshaped_job_costs_nothing(seats: list[Seat], stack: ExitStack) -> None:
    """Without rates there is no device, class or filter."""
    shaping = shaper(stack)
    holding = seats[0].holding(seats[0].begin(shaping).plan)
    assert not shaping.concerns(holding)
    present = {name for _, name in socket.if_nameindex()}
    assert not present & {name for name, _ in DEVICES.values()}


def test_jobs_are_shaped_while_the_agent_is_away(seats: list[Seat], stack: ExitStack) -> None:
    """The next agent adopts them: it makes what is missing, books, and forgets who ended."""
    before = Shaping(both(100 * M), {})
    stays = seats[0].begin(before, rate=Rates(10 * M, 0), guarantee=Rates(5 * M, 0))
    seats[1].begin(before)
    before.close()
    with Traffic() as traffic:
        assert leaf_minor(4) in traffic.classes(DEVICES[SENT][1])
        traffic.stop_redirecting(seats[0].interface, 0xFFFFFFF2)
        traffic.delete_class(DEVICES[SENT][1], leaf_minor(4))
    after = shaper(stack, 100 * M, cms=Share(both(10 * M), both(10 * M)))
    for _ in range(2):
        after.adopt(stays)
    assert after.booking.free() == Rates(85 * M, 90 * M)
    seats[2].begin(after, queue="cms")
    assert set(after.states(SENT)) == {1, 0x11, leaf_minor(4), leaf_minor(6)}
    stack.enter_context(seats[0].bulk(SENT))
    assert rates_of(seats[:1], SENT, 3)[0] == pytest.approx(10 * M, rel=0.15)


def test_a_refused_job_leaves_nothing(seats: list[Seat], stack: ExitStack) -> None:
    """Neither a booking nor a class, whatever the job was refused for."""
    shaping = shaper(stack, 100 * M)
    with pytest.raises(Unavailable, match="100 Mbit/s are left"):
        seats[0].begin(shaping, guarantee=both(101 * M))
    with pytest.raises(PolicyRefusal, match=r"\[queues.cms\]"):
        seats[0].begin(shaping, queue="cms")
    with pytest.raises(PolicyRefusal, match="macvlan"):
        seats[0].begin(shaping, rate=both(M), connectivity=Connectivity.MACVLAN)
    sh("ip link delete lark5")
    with pytest.raises(KernelError, match=f"MTU of interface {seats[1].interface}"):
        seats[1].begin(shaping, guarantee=both(10 * M))
    assert shaping.booking.free() == both(100 * M)
    assert leaf_minor(5) not in shaping.states(SENT)
    seats[0].begin(shaping, guarantee=both(100 * M))
