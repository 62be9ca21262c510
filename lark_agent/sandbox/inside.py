"""The sandbox's own side of a network of the site: what its kernel speaks, and its addresses.

On the worker's own links a sandbox is silent; here its kernel answers for its addresses by ARP and
neighbour discovery as any host does, and looks for duplicates. IPv6 is on only where the network
gives IPv6 addresses, and never two: the job's plan knows one.

The functions but `prepare` work in the namespace of the calling thread, after it.
"""

from __future__ import annotations

import time
from enum import IntFlag
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from lark_agent.linux import sysctl
from lark_agent.linux.links import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_TENTATIVE,
    Links,
)
from lark_agent.sandbox.addressing import INSIDE, Address

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS_FOR_IPV6 = 10.0
"""How long an IPv6 address may take: three solicitations of 1 s by default, and detection (1 s)."""
_LOOK_SECONDS = 0.05


class Upkeep(IntFlag):
    """What the datapath has to let pass for a network's addresses, besides neighbours."""

    NONE = 0
    ROUTER = 1
    """Router solicitations and advertisements."""
    DHCP = 2


def prepare(*, ipv6: bool, autoconf: bool) -> None:
    """Set what interfaces made in this namespace from now on do by themselves."""
    values = {
        "disable_ipv6": int(not ipv6),
        # 0: the link-local address is EUI-64, which the datapath knows from the MAC
        "addr_gen_mode": 0,
        "accept_ra": int(autoconf),
        "autoconf": int(autoconf),
        "use_tempaddr": 0,
        # the link-local one and one of the network's prefixes
        "max_addresses": 2,
        "router_solicitation_delay": 0,
        "accept_redirects": 0,
        "accept_dad": 1,
    }
    for key, value in values.items():
        sysctl.write_if_present(f"net/ipv6/conf/default/{key}", value)
    for key in ("accept_redirects", "accept_source_route"):
        sysctl.write(f"net/ipv4/conf/default/{key}", 0)


def present() -> set[Address]:
    """Return the addresses of eth0 that can be used now."""
    with Links() as links:
        found = links.addresses(links.index(INSIDE))
    unusable = IFA_F_TENTATIVE | IFA_F_DADFAILED
    return {address.ip for address, flags in found.items() if not flags & unusable}


def wait_for(wanted: Callable[[IPv6Address], bool]) -> IPv6Address | None:
    """Return the first usable IPv6 address that is `wanted`, None if there is none in time.

    One that turned out to be somebody else's ends the wait.
    """
    until = time.monotonic() + SECONDS_FOR_IPV6
    with Links() as links:
        index = links.index(INSIDE)
        while True:
            for address, flags in links.addresses(index).items():
                if not isinstance(address.ip, IPv6Address) or not wanted(address.ip):
                    continue
                if flags & IFA_F_DADFAILED:
                    return None
                if not flags & (IFA_F_TENTATIVE | IFA_F_DEPRECATED):
                    return address.ip
            if time.monotonic() > until:
                return None
            time.sleep(_LOOK_SECONDS)


def is_global(address: IPv4Address | IPv6Address) -> bool:
    """Tell a network's address from the link-local one."""
    return not address.is_link_local
