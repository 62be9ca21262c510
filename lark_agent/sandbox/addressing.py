"""Everything about a sandbox follows from its slot, by arithmetic.

Names, link-layer addresses, IP addresses and NAT ports are computed, never looked up or stored, so
that what is found in the kernel after a crash says by itself which slot it belongs to, and a port
seen on the outside says which slot used it. One gateway address serves all sandboxes (each has a
point-to-point link of its own). MAC addresses are locally administered and stable for a slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lark_agent.config import AgentSettings

PREFIX = "lark"
"""Start of the names of namespaces and host interfaces."""

INSIDE = "eth0"
"""Name of the interface in the sandbox."""


def name(slot: int) -> str:
    """Name of the slot's namespace and of its host interface."""
    return f"{PREFIX}{slot}"


def slot_of(found: str) -> int | None:
    """Return the slot that a name belongs to, None if the name is not ours."""
    digits = found.removeprefix(PREFIX)
    return int(digits) if found.startswith(PREFIX) and digits.isdecimal() else None


def mac_inside(slot: int) -> str:
    """Link-layer address of the sandbox's interface."""
    return f"02:6c:6b:00:{slot >> 8:02x}:{slot & 0xFF:02x}"


def mac_outside(slot: int) -> str:
    """Link-layer address of the host's end."""
    return f"02:6c:6b:ff:{slot >> 8:02x}:{slot & 0xFF:02x}"


@dataclass(frozen=True, slots=True)
class Addressing:
    """The arithmetic for one configuration."""

    network4: IPv4Network
    network6: IPv6Network
    slots: int
    first_port: int
    ports: int
    """Ports in one slot's block."""

    @classmethod
    def of(cls, settings: AgentSettings) -> Addressing:
        """Take ranges from the configuration."""
        slots = settings.pool.slots
        return cls(
            IPv4Network(settings.addresses.ipv4),
            IPv6Network(settings.addresses.ipv6),
            slots,
            settings.nat.first_port,
            (settings.nat.last_port - settings.nat.first_port + 1) // slots,
        )

    @property
    def gateway4(self) -> IPv4Address:
        """The host's address on every sandbox link."""
        return self.network4[1]

    @property
    def gateway6(self) -> IPv6Address:
        """The host's address on every sandbox link."""
        return self.network6[1]

    def ipv4(self, slot: int) -> IPv4Address:
        """Address of the slot's sandbox."""
        return self.network4[2 + slot]

    def ipv6(self, slot: int) -> IPv6Address:
        """Address of the slot's sandbox."""
        return self.network6[2 + slot]

    def block(self, slot: int) -> tuple[int, int]:
        """First and last port of the slot's NAT block."""
        first = self.first_port + slot * self.ports
        return first, first + self.ports - 1
