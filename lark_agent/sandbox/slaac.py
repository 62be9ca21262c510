"""IPv6 addresses by router advertisements (SLAAC, RFC 4862): the sandbox's kernel does it.

The address is the first advertised prefix and the EUI-64 of the sandbox's MAC address, so a slot
has the same one whenever it is built. Advertisements go on arriving while the job runs and prolong
it; when they cease, it ends with its lifetime, as the router said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.errors import KernelError
from lark_agent.linux import namespaces
from lark_agent.sandbox import inside

if TYPE_CHECKING:
    from ipaddress import IPv6Address

    from lark_agent.sandbox.connectivity import Sandbox


class Slaac:
    """Addresses that routers of one network advertise."""

    flags = inside.Upkeep.ROUTER
    ipv6 = True

    def __init__(self, network: str) -> None:
        self._network = network

    def check(self) -> None:
        """Nothing is needed but the kernel."""

    def obtain(self, sandbox: Sandbox) -> IPv6Address:
        """Wait for the address; raises KernelError if none comes."""
        found = namespaces.run_inside(sandbox.name, lambda: inside.wait_for(inside.is_global))
        if found is None:
            raise KernelError(
                f"getting an IPv6 address on network '{self._network}'",
                f"no router advertised a prefix within {inside.SECONDS_FOR_IPV6:g} s, or the "
                f"address of {sandbox.mac} is another host's",
                'see `rdisc6` or the router\'s log; or give pool6 and addresses = "static"',
            )
        return found

    def keep(self, sandbox: Sandbox) -> None:
        """Leave it to the kernel, which kept it."""

    def release(self, sandbox: Sandbox) -> None:
        """Leave it to end with the interface."""
