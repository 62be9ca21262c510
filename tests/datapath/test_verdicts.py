"""Every frame of the table comes to what the table says, whichever loader made the program."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lark_agent.datapath import Datapath, load
from lark_agent.linux import bpf
from lark_agent.model import MAX_CLASSES, Count, Direction, DropReason
from tests.datapath.cases import DENIED4, DENIED6, HOSTILE, INBOUND, SIZES, Case
from tests.datapath.frames import ip4, ipv4
from tests.datapath.network import (
    BPFFS,
    GATEWAYS,
    PEERS,
    PLAN,
    SLOT,
    total,
)  # fmt: skip
from tests.datapath.testrun import DROPPED, PASSED, Frame, run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lark_agent.datapath import Counters

pytestmark = pytest.mark.root


def prepare(datapath: Datapath, ifindex: int) -> None:
    table = datapath.set_classes({"denied": [f"{DENIED4}/32", f"{DENIED6}/128"]}, PEERS, GATEWAYS)
    datapath._maps["slots"].set(ifindex.to_bytes(4, "little"), SLOT.to_bytes(4, "little"))
    datapath.deactivate(SLOT)
    datapath.reset(SLOT)
    datapath.activate(SLOT, replace(PLAN, classes=table.mask({"other"})))


def outcome(datapath: Datapath, ifindex: int, program: str, frame: Frame) -> tuple[int, Counters]:
    datapath.deactivate(SLOT)
    datapath.reset(SLOT)
    datapath.activate(SLOT, replace(PLAN, classes=datapath.classes.mask({"other"})))
    verdict, _ = run(datapath._programs[program], frame, ifindex)
    return verdict, datapath.read([SLOT])[SLOT]


def misjudged(datapath: Datapath, ifindex: int, program: str, cases: Iterable[Case]) -> list[str]:
    """Return what differs from the table."""
    direction = Direction.SENT if program == "from_job" else Direction.RECEIVED
    wrong = []
    for case in cases:
        verdict, counters = outcome(datapath, ifindex, program, case.frame)
        row = MAX_CLASSES if case.non_ip else 0
        got = {reason: c for reason in DropReason if (c := counters.dropped_for(reason))}
        used = counters.used_by(row, direction)
        expected_drops = {} if case.reason is None else {case.reason: case.counted}
        expected_used = case.counted if case.reason is None else Count()
        expected = PASSED if case.reason is None else DROPPED
        everything = sum(counters.used[::2])
        if (verdict, got, used, everything) != (
            expected, expected_drops, expected_used, expected_used.packets,
        ):  # fmt: skip
            wrong.append(f"{case}: verdict {verdict}, dropped {got}, used {used} of {everything}")
    return wrong


@pytest.mark.parametrize("loader", ["libbpf", "bcc"])
def test_every_frame_comes_to_what_the_table_says(
    bench: int, loader: str, request: pytest.FixtureRequest
) -> None:
    """Sizes, hostile and inbound frames: verdict, reason, packets and bytes, by each loader."""
    if loader == "bcc":
        request.getfixturevalue("kernel_headers")
    with load(BPFFS, 8, loader) as datapath:
        prepare(datapath, bench)
        assert misjudged(datapath, bench, "from_job", SIZES + HOSTILE) == []
        assert misjudged(datapath, bench, "to_job", INBOUND) == []


def test_no_slot_passes_nothing(datapath: Datapath, bench: int) -> None:
    """An interface that no slot knows is closed, in both directions."""
    for program in ("from_job", "to_job"):
        assert run(datapath._programs[program], Frame(ip4(ipv4())), bench)[0] == DROPPED


def test_no_plan_passes_nothing(datapath: Datapath, bench: int) -> None:
    """A slot without a plan drops everything, and counts the drop as large as it was."""
    prepare(datapath, bench)
    datapath.deactivate(SLOT)
    for case in SIZES + HOSTILE:
        datapath.reset(SLOT)
        assert run(datapath._programs["from_job"], case.frame, bench)[0] == DROPPED
        counters = datapath.read([SLOT])[SLOT]
        assert counters.dropped_for(DropReason.NO_PLAN) == case.counted, case
        assert sum(counters.used) == 0
        assert sum(counters.dropped) == case.counted.packets + case.counted.bytes


def test_a_job_without_ipv6_has_no_ipv6(datapath: Datapath, bench: int) -> None:
    """No IPv6 address in the plan: not even packets from :: pass."""
    prepare(datapath, bench)
    datapath.activate(SLOT, replace(PLAN, addr6=None))
    six = [case for case in SIZES + HOSTILE if case.frame.data[12:14] == b"\x86\xdd"]
    for case in six:
        assert run(datapath._programs["from_job"], case.frame, bench)[0] == DROPPED
    assert total(datapath.read([SLOT])[SLOT], Direction.SENT) == Count()


def test_counters_of_slots_are_apart(datapath: Datapath, bench: int) -> None:
    """What one slot counts, no other slot has, whichever slots are read together."""
    prepare(datapath, bench)
    run(datapath._programs["from_job"], Frame(ip4(ipv4())), bench, repeat=7)
    everything = datapath.read(range(8))
    assert {slot for slot, counters in everything.items() if any(counters.used)} == {SLOT}
    assert total(everything[SLOT], Direction.SENT) == Count(7, 7 * 84)
    assert datapath.read([7, SLOT, 0]) == {slot: everything[slot] for slot in (0, SLOT, 7)}


def test_reading_without_batches_gives_the_same(datapath: Datapath, bench: int) -> None:
    """A kernel that cannot read per-CPU arrays in batches gives the same counters, one by one."""
    prepare(datapath, bench)
    run(datapath._programs["from_job"], Frame(ip4(ipv4())), bench, repeat=5)
    in_batches = datapath.read(range(8))
    kernel = tuple(int(number) for number in os.uname().release.split(".")[:2])
    assert datapath._maps["usage"].batches == (kernel >= (5, 13))
    for name in ("usage", "dropped", "dropped2"):
        datapath._maps[name].batches = False
    assert datapath.read(range(8)) == in_batches


def test_per_cpu_values_are_all_there(datapath: Datapath) -> None:
    """The entry of a per-CPU map is as long as the kernel's possible CPUs demand."""
    usage = datapath._maps["usage"]
    assert usage.entry_size == 544 * bpf.possible_cpus()
