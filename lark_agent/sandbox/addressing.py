"""Everything about a sandbox follows from its slot, by arithmetic.

Names, link-layer addresses, IP addresses and NAT ports are computed, never looked up or stored, so
that what is found in the kernel after a crash says by itself which slot it belongs to, and a port
(`nat`) or an address (`routed`) seen on the outside says which slot used it. One gateway address
serves all sandboxes of a kind (each has a point-to-point link of its own). MAC addresses are
locally administered and stable for a slot.

On a network of the site (`lark_agent.sandbox.layer2`) a MAC address meets those of other workers,
so there it is 34 bits of the worker's name and the slot: of a thousand workers, two share those
bits with a probability of 3e-5. The host's end of such a link has a name of its own, because the
firewall, the MTU and the stub resolver follow everything that is called `lark...`, and it is none
of their business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lark_agent.config import AgentSettings

PREFIX = "lark"
"""Start of the names of namespaces and host interfaces."""

INSIDE = "eth0"
"""Name of the interface in the sandbox."""

PORT_PREFIX = "lport"
SWITCH_PREFIX = "lkbs"
"""Of ports of Open vSwitch; as of our own bridges, the firewall lets nothing from them in."""
"""Start of the names of host interfaces that are ports of a bridge."""

INSIDE_BASE = 0x4000_0000
"""Index of a sandbox's own interface, less the slot, where the datapath hangs inside."""

_SLOT_BITS = 12

Address = IPv4Address | IPv6Address
_GATEWAY, _FIRST = 1, 2


def name(slot: int) -> str:
    """Name of the slot's namespace and of its host interface."""
    return f"{PREFIX}{slot}"


def port_name(slot: int) -> str:
    """Name of the slot's host interface on a network of the site."""
    return f"{PORT_PREFIX}{slot}"


def switch_name(slot: int) -> str:
    """Name of the slot's port of an Open vSwitch bridge; it goes with the host interface."""
    return f"{SWITCH_PREFIX}{slot}"


def slot_of(found: str) -> int | None:
    """Return the slot that a name belongs to, None if the name is not ours."""
    for prefix in (PREFIX, PORT_PREFIX):
        digits = found.removeprefix(prefix)
        if found.startswith(prefix) and digits.isdecimal():
            return int(digits)
    return None


def mac_inside(slot: int) -> str:
    """Link-layer address of the sandbox's interface."""
    return f"02:6c:6b:00:{slot >> 8:02x}:{slot & 0xFF:02x}"


def mac_outside(slot: int) -> str:
    """Link-layer address of the host's end."""
    return f"02:6c:6b:ff:{slot >> 8:02x}:{slot & 0xFF:02x}"


def mac_on_network(worker: str, slot: int) -> str:
    """Link-layer address of the sandbox's interface on a network of the site.

    Locally administered, unicast, the same whenever this worker uses the slot: a DHCP server knows
    its client again.
    """
    of_worker = int.from_bytes(blake2b(worker.encode(), digest_size=8).digest()) >> 30
    number = (of_worker << _SLOT_BITS | slot).to_bytes(6)
    # the 34 bits of the worker leave the two lowest bits of the first byte to IEEE 802
    return bytes([(number[0] << 2 | 0x02) & 0xFF, *number[1:]]).hex(":")


def port_mac(mac: str) -> str:
    """Link-layer address of the host's end of such a link.

    A bridge that was given no address of its own takes the lowest of its ports': starting with fe,
    ours is never that, and the worker's own address does not change with its first job.
    """
    return "fe" + mac[2:]


@dataclass(frozen=True, slots=True)
class Delegated:
    """The arithmetic of the prefixes that are routed to this worker; either may be missing."""

    network4: IPv4Network | None = None
    network6: IPv6Network | None = None

    @property
    def networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The prefixes that there are."""
        return tuple(n for n in (self.network4, self.network6) if n is not None)

    @property
    def gateways(self) -> tuple[Address, ...]:
        """The host's address on every routed sandbox's link, for each prefix."""
        return tuple(network[_GATEWAY] for network in self.networks)

    def ipv4(self, slot: int) -> IPv4Address | None:
        """Address of the slot's sandbox, None without a prefix."""
        return self.network4[_FIRST + slot] if self.network4 else None

    def ipv6(self, slot: int) -> IPv6Address | None:
        """Address of the slot's sandbox, None without a prefix."""
        return self.network6[_FIRST + slot] if self.network6 else None

    def pairs(self, slot: int) -> list[tuple[Address, Address]]:
        """Return (address, gateway) of the slot's sandbox, for each prefix."""
        return [(network[_FIRST + slot], network[_GATEWAY]) for network in self.networks]


@dataclass(frozen=True, slots=True)
class Addressing:
    """The arithmetic for one configuration; without more words, that of `nat`."""

    network4: IPv4Network
    network6: IPv6Network
    slots: int
    first_port: int
    ports: int
    """Ports in one slot's block."""
    routed: Delegated = field(default=Delegated(), repr=False)
    """Not in the repr, by which recovery compares: records carry the addresses of routed jobs."""

    @classmethod
    def of(cls, settings: AgentSettings) -> Addressing:
        """Take ranges from the configuration."""
        slots, ranges = settings.pool.slots, settings.addresses
        return cls(
            IPv4Network(ranges.ipv4),
            IPv6Network(ranges.ipv6),
            slots,
            settings.nat.first_port,
            (settings.nat.last_port - settings.nat.first_port + 1) // slots,
            Delegated(
                IPv4Network(ranges.routed4) if ranges.routed4 else None,
                IPv6Network(ranges.routed6) if ranges.routed6 else None,
            ),
        )

    @property
    def networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """Every range that sandboxes have addresses of."""
        return (self.network4, self.network6, *self.routed.networks)

    @property
    def gateways(self) -> tuple[Address, ...]:
        """The worker's own addresses in those ranges."""
        return (self.gateway4, self.gateway6, *self.routed.gateways)

    @property
    def gateway4(self) -> IPv4Address:
        """The host's address on every sandbox link."""
        return self.network4[_GATEWAY]

    @property
    def gateway6(self) -> IPv6Address:
        """The host's address on every sandbox link."""
        return self.network6[_GATEWAY]

    def ipv4(self, slot: int) -> IPv4Address:
        """Address of the slot's sandbox."""
        return self.network4[_FIRST + slot]

    def ipv6(self, slot: int) -> IPv6Address:
        """Address of the slot's sandbox."""
        return self.network6[_FIRST + slot]

    def addresses_of(self, slot: int) -> tuple[Address, ...]:
        """Every address that a sandbox of this slot can have, whatever its kind.

        A leftover's slot may lie above `slots`, where delegated prefixes need not reach.
        """
        routed = self.routed.pairs(slot) if slot < self.slots else []
        return (self.ipv4(slot), self.ipv6(slot), *(address for address, _ in routed))

    def block(self, slot: int) -> tuple[int, int]:
        """First and last port of the slot's NAT block."""
        first = self.first_port + slot * self.ports
        return first, first + self.ports - 1
