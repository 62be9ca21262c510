"""Everything follows from the slot, and nothing of two slots coincides."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lark_agent.config import AgentSettings, Nat, Pool
from lark_agent.sandbox import addressing
from lark_agent.sandbox.addressing import Addressing

SLOTS = st.integers(0, 4095)


@given(SLOTS, SLOTS)
def test_slots_share_nothing(one: int, other: int) -> None:
    """Names, link-layer and IP addresses of two slots differ."""
    numbers = Addressing.of(AgentSettings())
    for what in (
        addressing.name, addressing.mac_inside, addressing.mac_outside, numbers.ipv4, numbers.ipv6,
    ):  # fmt: skip
        assert (what(one) == what(other)) == (one == other)
    assert addressing.mac_inside(one) != addressing.mac_outside(other)
    assert numbers.ipv4(one) not in {numbers.gateway4, numbers.network4.broadcast_address}
    assert numbers.ipv6(one) in numbers.network6


@given(SLOTS)
def test_a_name_says_its_slot(slot: int) -> None:
    """What is found in the kernel leads back to the slot; other names do not."""
    assert addressing.slot_of(addressing.name(slot)) == slot


def test_names_of_others_are_nobodys() -> None:
    """Interfaces that only resemble ours are left alone."""
    for name in ("lark", "lark-bridge", "larkx1", "eth0", "lark1.100", "lark\u00b2"):
        assert addressing.slot_of(name) is None


@given(st.integers(1, 1400), st.integers(10000, 12000), st.integers(0, 1399))
def test_port_blocks_fill_the_range_without_touching(slots: int, first: int, slot: int) -> None:
    """Blocks are equal, disjoint, and inside the configured range."""
    settings = AgentSettings(pool=Pool(slots=slots, ready=0), nat=Nat(first_port=first))
    numbers = Addressing.of(settings)
    slot %= slots
    begin, end = numbers.block(slot)
    assert first <= begin <= end <= settings.nat.last_port
    assert end - begin + 1 == numbers.ports
    if slot + 1 < slots:
        assert numbers.block(slot + 1)[0] == end + 1
