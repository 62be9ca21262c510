"""Everything follows from the slot, and nothing of two slots coincides."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from lark_agent.config import Addresses, AgentSettings, Nat, Pool
from lark_agent.sandbox import addressing
from lark_agent.sandbox.addressing import Addressing, Delegated

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


PREFIXES4 = st.integers(8, 30).flatmap(
    lambda bits: st.integers(0, 2**bits - 1).map(
        lambda number: IPv4Network((number << (32 - bits), bits))
    )
)
PREFIXES6 = st.integers(8, 126).flatmap(
    lambda bits: st.integers(0, 2**bits - 1).map(
        lambda number: IPv6Network((number << (128 - bits), bits))
    )
)


@given(st.none() | PREFIXES4, st.none() | PREFIXES6, st.data())
def test_delegated_addresses_say_their_slot(
    network4: IPv4Network | None, network6: IPv6Network | None, data: st.DataObject
) -> None:
    """Whatever the prefixes, an address lies in one, is no gateway, and gives back its slot."""
    routed = Delegated(network4, network6)
    least = min((n.num_addresses for n in routed.networks), default=4096)
    slot = data.draw(st.integers(0, min(least - 3, 4095)))
    for network, address in ((network4, routed.ipv4(slot)), (network6, routed.ipv6(slot))):
        assert (address is None) == (network is None)
        if address is not None and network is not None:
            assert address in network
            assert address not in routed.gateways
            assert int(address) - int(network.network_address) == 2 + slot
    assert routed.pairs(slot) == list(
        zip(filter(None, (routed.ipv4(slot), routed.ipv6(slot))), routed.gateways, strict=True)
    )


def test_a_slot_above_the_pool_has_no_delegated_address() -> None:
    """A leftover of a larger pool can be dismantled though the prefix does not reach so far."""
    settings = AgentSettings(addresses=Addresses(routed4="198.18.7.0/24"), pool=Pool(slots=200))
    numbers = Addressing.of(settings)
    assert str(numbers.addresses_of(199)[-1]) == "198.18.7.201"
    assert numbers.addresses_of(4095) == (numbers.ipv4(4095), numbers.ipv6(4095))


def test_a_prefix_is_no_other_numbering() -> None:
    """What recovery compares is as before routed was there, and the same with any prefix."""
    plain = Addressing.of(AgentSettings())
    routed = Addressing.of(AgentSettings(addresses=Addresses(routed6="2001:db8:7::/112")))
    assert (
        repr(plain)
        == repr(routed)
        == (
            "Addressing(network4=IPv4Network('100.98.0.0/16'), "
            "network6=IPv6Network('fd6c:6172:6b00::/64'), slots=64, first_port=10240, ports=352)"
        )
    )


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
