"""Connectivity `routed`: addresses of a prefix delegated to the worker, no translation.

The site's router routes the prefix to the worker, which routes each sandbox's address (/32, /128)
to its veth (`lark_agent.sandbox.veth`). The far end sees the job's own address, so the address
names the job: slot n has the n-th address after the gateway's, and the job's record has it too.
There is no port block; sockets use the kernel's usual ephemeral range. Without an IPv4 prefix a
sandbox has the address of a `nat` one for the worker's own services, and no route beyond.

Inbound is as with `nat`: the firewall lets answers in and drops what is unsolicited before it
comes to the job's link, so it counts for nobody. What comes for an address that no sandbox has is
dropped there as well; the worker's default route would send it back to the router, round and round
until its TTL ends (RFC 7084, WPD-5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.model import Connectivity
from lark_agent.sandbox.connectivity import Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.errors import LarkError
    from lark_agent.sandbox.addressing import Addressing
    from lark_agent.sandbox.veth import Veths


class RoutedDriver:
    """Builds sandboxes with addresses of the delegated prefixes."""

    def __init__(self, numbers: Addressing, veths: Veths) -> None:
        self._numbers = numbers
        self._veths = veths

    def check(self) -> None:
        """Check that the prefixes are nobody else's; raises PrerequisiteError."""
        self._veths.check_free(self._numbers.routed.networks, delegated=True)

    def set_up(self, slot: int) -> Sandbox:
        """Build the sandbox of a slot."""
        routed = self._numbers.routed
        ipv4, ipv6 = routed.ipv4(slot), routed.ipv6(slot)
        local4 = self._numbers.ipv4(slot) if ipv4 is None else None
        sandbox = Sandbox(slot, Connectivity.ROUTED, ipv4, ipv6, local4=local4)
        return self._veths.build(sandbox, routed.pairs(slot))

    def hand_over(self, sandbox: Sandbox, namespace: int) -> None:
        """Move the sandbox into a namespace that its job made."""
        self._veths.hand_over(sandbox, self._numbers.routed.pairs(sandbox.slot), namespace)

    def renew(self, sandbox: Sandbox) -> None:
        """Take over a sandbox of an earlier agent."""
        self._veths.renew(sandbox)

    def fit(self, sandbox: Sandbox) -> bool:  # noqa: ARG002  of the protocol
        """Nothing wears off: the prefix is the worker's."""
        return True

    def tear_down(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Dismantle."""
        addresses = {a for s in sandboxes for a in self._numbers.addresses_of(s.slot)}
        return self._veths.dismantle(sandboxes, addresses)
