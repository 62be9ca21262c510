"""The seam between the pool and the kinds of connectivity.

A driver wires one sandbox: `set_up` builds one for a slot and undoes its own work if it fails;
`tear_down` dismantles a batch, may be repeated, works when half is already gone, and returns what
went wrong instead of stopping at it. What all sandboxes of a kind share is the driver's own affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lark_agent.sandbox import addressing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv6Address

    from lark_agent.errors import LarkError
    from lark_agent.model import Connectivity


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A network namespace that waits for a job or holds one."""

    slot: int
    connectivity: Connectivity
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    interface: int = 0
    """Index of the host's end, 0 if there is none."""
    first_port: int = 0
    last_port: int = 0

    @property
    def name(self) -> str:
        """Name of the namespace."""
        return addressing.name(self.slot)


class Driver(Protocol):
    """One kind of connectivity."""

    def set_up(self, slot: int) -> Sandbox:
        """Build the sandbox of a slot; raises LarkError and leaves nothing if that fails."""
        ...

    def tear_down(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Dismantle; returns what went wrong."""
        ...
