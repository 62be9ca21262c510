"""Connectivity `nat`: private addresses, masquerading behind the uplink.

A sandbox has one IPv4 and, where the worker has IPv6, one IPv6 address on a veth
(`lark_agent.sandbox.veth`); the firewall translates them to the worker's own. The sandbox's
ephemeral ports *are* its NAT block: sockets that find no free port fail with EADDRNOTAVAIL before
anything is sent, so nothing is counted that the translation would refuse, and connections keep
their port numbers on the outside.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lark_agent.errors import LarkError, PrerequisiteError
from lark_agent.linux import sysctl
from lark_agent.model import Connectivity
from lark_agent.sandbox.connectivity import Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.sandbox.addressing import Address, Addressing
    from lark_agent.sandbox.veth import Veths


class NatDriver:
    """Builds sandboxes behind the worker's address."""

    def __init__(self, numbers: Addressing, veths: Veths) -> None:
        self._numbers = numbers
        self._veths = veths

    def check(self) -> None:
        """Check that address ranges are free and ports can be kept; raises PrerequisiteError.

        The blocks may lie within the worker's ephemeral ports, as they do where HTCondor's master
        has widened these to 1024-65535: `prepare` reserves the blocks, and the rest must do.
        """
        self._veths.check_free((self._numbers.network4, self._numbers.network6))
        first, last = self._ports()
        low, high = map(int, sysctl.read("net/ipv4/ip_local_port_range").split())
        if first <= low and high <= last:
            raise PrerequisiteError(
                f"the NAT blocks {first}-{last} leave none of the worker's ephemeral ports "
                f"{low}-{high}; "
                "move [nat] first_port/last_port or the sysctl net.ipv4.ip_local_port_range"
            )

    def prepare(self) -> None:
        """Keep a program of the worker which asks for any port from getting one of a job's."""
        reserved = sysctl.read("net/ipv4/ip_local_reserved_ports")
        ours = "{}-{}".format(*self._ports())
        if ours not in reserved.split(","):
            sysctl.write(
                "net/ipv4/ip_local_reserved_ports", ",".join(filter(None, [reserved, ours]))
            )

    def set_up(self, slot: int) -> Sandbox:
        """Build the sandbox of a slot."""
        numbers = self._numbers
        ipv6 = numbers.ipv6(slot) if self._veths.uplink.has_ipv6 else None
        first, last = numbers.block(slot)
        sandbox = Sandbox(
            slot, Connectivity.NAT, numbers.ipv4(slot), ipv6, first_port=first, last_port=last
        )
        return self._veths.build(sandbox, self._pairs(sandbox), partial(_limit_ports, first, last))

    def hand_over(self, sandbox: Sandbox, namespace: int) -> None:
        """Move the sandbox into a namespace that its job made."""
        limit = partial(_limit_ports, sandbox.first_port, sandbox.last_port)
        self._veths.hand_over(sandbox, self._pairs(sandbox), namespace, limit)

    def renew(self, sandbox: Sandbox) -> None:
        """Take over a sandbox of an earlier agent."""
        self._veths.renew(sandbox)

    def fit(self, sandbox: Sandbox) -> bool:  # noqa: ARG002  of the protocol
        """Nothing wears off: the addresses are the worker's own affair."""
        return True

    def tear_down(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Dismantle; leftovers of an earlier agent, whatever kind they were of, come here too."""
        addresses = {a for s in sandboxes for a in self._numbers.addresses_of(s.slot)}
        return self._veths.dismantle(sandboxes, addresses)

    def _pairs(self, sandbox: Sandbox) -> list[tuple[Address, Address]]:
        gateways: tuple[Address, Address] = self._numbers.gateway4, self._numbers.gateway6
        addresses = sandbox.ipv4, sandbox.ipv6
        return [
            (address, gateway)
            for address, gateway in zip(addresses, gateways, strict=True)
            if address is not None
        ]

    def _ports(self) -> tuple[int, int]:
        return self._numbers.block(0)[0], self._numbers.block(self._numbers.slots - 1)[1]


def _limit_ports(first: int, last: int) -> None:
    sysctl.write("net/ipv4/ip_local_port_range", f"{first} {last}")
    # A block is small: let connections to one server reuse ports that only wait out TIME_WAIT,
    # at once where the kernel can (6.14), else after a second. Timestamps make that safe.
    sysctl.write("net/ipv4/tcp_tw_reuse", 1)
    sysctl.write_if_present("net/ipv4/tcp_tw_reuse_delay", 1)
