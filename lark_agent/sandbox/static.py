"""Static addresses: a range of the site's network that is this worker's alone.

An address is given when a sandbox is built and comes back when it is dismantled; it has nothing to
do with the slot. Addresses go round, so that one rests as long as the range allows. Nothing is
stored: after a restart of the agent, jobs that run say which they have, and what other sandboxes
had is free because they are dismantled.

Before it is used, an address is looked for on the network: somebody else's is logged, put at the
end, and the next one tried. IPv4 by ARP probes (`lark_agent.linux.arp`), IPv6 by the kernel.
"""

from __future__ import annotations

import threading
from collections import deque
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import structlog

from lark_agent.errors import KernelError
from lark_agent.linux import arp, namespaces
from lark_agent.linux.links import Links
from lark_agent.sandbox import inside
from lark_agent.sandbox.addressing import INSIDE, Address

if TYPE_CHECKING:
    from lark_agent.sandbox.connectivity import Sandbox

_TRIES = 4
"""Addresses that are somebody else's before building one sandbox is given up."""

log = structlog.get_logger(__name__)


class StaticRange:
    """The addresses of one family of one network; safe for the threads that build and dismantle."""

    flags = inside.Upkeep.NONE

    def __init__(
        self, network: str, first: Address, last: Address, prefix: int, gateway: Address | None
    ) -> None:
        self._network = network
        self._prefix = prefix
        self._gateway = gateway
        self._text = f"{first}-{last}"
        self.ipv6 = first.version == 6
        self._kind = type(first)
        self._first, self._last = int(first), int(last)
        # a range of IPv6 may be huge: only what was used is listed
        self._next = self._first
        self._returned: deque[int] = deque()
        self._held: dict[int, int] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        """Nothing but the configuration is needed."""

    def obtain(self, sandbox: Sandbox) -> Address:
        """Give the sandbox an address that nobody answers for; raises KernelError."""
        for _ in range(_TRIES):
            address = self.take(sandbox.slot)
            try:
                holder = self._put(sandbox, address)
            except BaseException:
                self.release(sandbox)
                raise
            if not holder:
                return address
            log.warning("address is in use", network=self._network, address=str(address), by=holder)
            self.release(sandbox)
        raise KernelError(
            f"finding an address on network '{self._network}'",
            f"{_TRIES} of {self._text} in a row are in use, the last by {holder}",
            f"keep others off the range, or change it under [networks.{self._network}]",
        )

    def take(self, slot: int) -> Address:
        """Give an address to a slot; raises KernelError if none is left."""
        with self._lock:
            while self._next <= self._last:
                number, self._next = self._next, self._next + 1
                if number not in self._held and self._kind(number) != self._gateway:
                    return self._given(number, slot)
            if self._returned:
                return self._given(self._returned.popleft(), slot)
        raise KernelError(
            f"finding an address on network '{self._network}'", f"all of {self._text} are in use",
            f"give more under [networks.{self._network}], or run fewer jobs there",
        )  # fmt: skip

    def _given(self, number: int, slot: int) -> Address:
        self._held[number] = slot
        return self._kind(number)

    def keep(self, sandbox: Sandbox) -> None:
        """Remember what the sandbox of an earlier agent has."""
        address = sandbox.ipv6 if self.ipv6 else sandbox.ipv4
        if address is not None:
            with self._lock:
                self._held[int(address)] = sandbox.slot

    def release(self, sandbox: Sandbox) -> None:
        """Take back whatever the slot has."""
        with self._lock:
            for number in [n for n, slot in self._held.items() if slot == sandbox.slot]:
                del self._held[number]
                # what an earlier agent gave may lie outside today's range
                if self._first <= number < self._next:
                    self._returned.append(number)

    def _put(self, sandbox: Sandbox, address: Address) -> str:
        """Put an address on the sandbox's interface; returns who has it already."""
        if isinstance(address, IPv6Address):
            return namespaces.run_inside(sandbox.name, lambda: self._put6(address))
        return namespaces.run_inside(sandbox.name, lambda: self._put4(sandbox.mac, address))

    def _put4(self, mac: str, address: IPv4Address) -> str:
        holder = arp.holder(INSIDE, mac, address)
        if not holder:
            with Links() as links:
                self._add(links, address)
                self._add_route(links)
            arp.announce(INSIDE, mac, address)
        return holder

    def _put6(self, address: IPv6Address) -> str:
        with Links() as links:
            self._add(links, address)
            if inside.wait_for(address.__eq__) is None:
                links.remove_address(links.index(INSIDE), address, self._prefix)
                return "a host that the kernel does not name"
            self._add_route(links)
        return ""

    def _add(self, links: Links, address: Address) -> None:
        links.add_address(links.index(INSIDE), address, self._prefix)

    def _add_route(self, links: Links) -> None:
        if self._gateway is not None:
            links.add_route(links.index(INSIDE), self._gateway, default=True)
