"""The worker's own connection: which interface leads to the network, and what it can carry."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

from lark_agent.errors import PrerequisiteError
from lark_agent.linux import sysctl

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from lark_agent.linux.links import Links

_DISCARDING = {6, 7, 8}
"""rtnetlink(7): RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT."""


@dataclass(frozen=True, slots=True)
class Uplink:
    """What the sandboxes' networks follow."""

    interface: str
    index: int
    mtu: int
    """Bytes."""
    has_ipv6: bool
    """The worker has an IPv6 default route."""


def find(links: Links, wanted: str) -> Uplink:
    """Look up the interface `wanted`, or that of the default route if `wanted` is empty.

    Raises PrerequisiteError if there is none.
    """
    defaults = {
        family: [m for m in links.routes(family) if m["dst_len"] == 0 and m.get_attr("RTA_OIF")]
        for family in (socket.AF_INET, socket.AF_INET6)
    }
    if wanted:
        index = links.index(wanted)
        if not index:
            raise PrerequisiteError(
                f"uplink.interface: this machine has no interface '{wanted}'; "
                "name one that `ip -br link` shows, or leave it out to follow the default route"
            )
    else:
        routes = defaults[socket.AF_INET] or defaults[socket.AF_INET6]
        if not routes:
            raise PrerequisiteError(
                "no default route, so no uplink to follow; "
                "set uplink.interface in the [uplink] table, or add a default route"
            )
        index = min(routes, key=lambda m: m.get_attr("RTA_PRIORITY") or 0).get_attr("RTA_OIF")
    return Uplink(links.name_of(index), index, links.mtu(index), bool(defaults[socket.AF_INET6]))


def overlapping_route(
    links: Links, network: IPv4Network | IPv6Network, own: str, *, delegated: bool = False
) -> str:
    """Name a route of the host that overlaps `network`, "" if there is none.

    Default routes, those of interfaces that start with `own`, and those that only discard do not
    count; for a delegated network, nor do those by a router to something larger.
    """
    ours = set(links.names(own).values())
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    for message in links.routes(family):
        destination = message.get_attr("RTA_DST")
        if destination is None or message.get_attr("RTA_OIF") in ours:
            continue
        if message["type"] in _DISCARDING:
            continue
        route = ip_network(f"{destination}/{message['dst_len']}", strict=False)
        if delegated and message.get_attr("RTA_GATEWAY") and route.prefixlen < network.prefixlen:
            continue
        if route.version == network.version and route.overlaps(network):
            return str(route)
    return ""


_FORWARDING = {"ipv4": "net/ipv4/ip_forward", "ipv6": "net/ipv6/conf/all/forwarding"}


def not_forwarding(*, ipv6: bool) -> set[str]:
    """Return the families that sandboxes need and the kernel does not forward."""
    wanted = ["ipv4", "ipv6"] if ipv6 else ["ipv4"]
    return {family for family in wanted if sysctl.read(_FORWARDING[family]) == "0"}


def let_forward(uplink: Uplink, families: set[str]) -> None:
    """Let the kernel forward for the sandboxes what it did not before.

    Forwarding makes an interface ignore router advertisements unless accept_ra is 2
    (Documentation/networking/ip-sysctl.rst), so that is set first where they were accepted: the
    worker must not lose its own IPv6 route.
    """
    if "ipv6" in families:
        key = f"net/ipv6/conf/{uplink.interface}/accept_ra"
        if sysctl.read(key) == "1":
            sysctl.write(key, 2)
    for family in families:
        sysctl.write(_FORWARDING[family], 1)


def stop_forwarding(families: set[str]) -> None:
    """Take back what `let_forward` did."""
    for family in families:
        sysctl.write(_FORWARDING[family], 0)
