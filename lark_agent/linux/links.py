"""Interfaces, addresses, routes and neighbours, through one netlink socket (pyroute2).

A `Links` belongs to the network namespace of the thread that opens it and must be used by one
thread at a time. Kernel refusals become KernelError naming the interface.
"""

from __future__ import annotations

import errno
import os
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

from pyroute2.iproute import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from lark_agent.errors import KernelError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
    from types import TracebackType
    from typing import Self

SCOPE_LINK = 253
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NTF_MASTER = 0x04
IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x02, 0x08, 0x20, 0x40
IFF_UP, IFF_NOARP, IFF_MULTICAST = 0x1, 0x80, 0x1000
_DUMP_ATTEMPTS = 5


class Links:
    """A door to rtnetlink in one network namespace."""

    def __init__(self) -> None:
        self._ip = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._ip.close()

    @property
    def netlink(self) -> Any:
        """The pyroute2 socket, for traffic control (`lark_agent.datapath`)."""
        return self._ip

    def index(self, name: str) -> int:
        """Return the index of an interface, 0 if there is none of that name."""
        try:
            return int(self._ip.link("get", ifname=name)[0]["index"])
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return 0
            raise _refused(f"looking up interface {name}", error) from error

    def names(self, prefix: str) -> dict[str, int]:
        """Return name → index of the interfaces that start with `prefix`."""
        found = {}
        for message in self._dump(self._ip.get_links):
            name = message.get_attr("IFLA_IFNAME")
            if name.startswith(prefix):
                found[name] = int(message["index"])
        return found

    def add_veth(
        self, name: str, mac: str, peer: str, peer_mac: str, peer_netns: int, mtu: int
    ) -> None:
        """Make a veth pair: `name` here, `peer` in the namespace behind `peer_netns`."""
        there = {"ifname": peer, "address": peer_mac, "mtu": mtu, "net_ns_fd": peer_netns}
        self._do(
            f"making the veth pair {name} and {peer}",
            self._ip.link, "add", kind="veth", ifname=name, address=mac, mtu=mtu, peer=there,
        )  # fmt: skip

    def add_macvlan(
        self, name: str, mac: str, parent: int, netns: int, mtu: int, index: int
    ) -> None:
        """Make a macvlan interface of `parent` in the namespace behind `netns`.

        Mode bridge: those of one parent reach each other without leaving the worker.
        """
        self._do(
            f"making a macvlan interface {mac} on interface {parent}",
            self._ip.link, "add", kind="macvlan", ifname=name, address=mac, mtu=mtu, link=parent,
            macvlan_mode="bridge", net_ns_fd=netns, index=index,
        )  # fmt: skip

    def add_passthru(self, name: str, parent: int) -> None:
        """Make a macvlan interface that has all of its parent's traffic, whatever its addresses."""
        self._do(
            f"making the macvlan interface {name} on interface {parent}",
            self._ip.link, "add", kind="macvlan", ifname=name, link=parent,
            macvlan_mode="passthru",
        )  # fmt: skip

    def add_vlan(self, name: str, parent: int, identifier: int) -> None:
        """Make an 802.1Q interface on `parent`."""
        self._do(
            f"making the 802.1Q interface {name}, id {identifier}",
            self._ip.link, "add", kind="vlan", ifname=name, link=parent, vlan_id=identifier,
        )  # fmt: skip

    def add_bridge(self, name: str) -> None:
        """Make a Linux bridge that forwards at once: it can have no loop with one way out."""
        self._do(
            f"making the bridge {name}",
            self._ip.link, "add", kind="bridge", ifname=name, br_stp_state=0, br_forward_delay=0,
        )  # fmt: skip

    def join_bridge(self, index: int, bridge: int) -> None:
        """Make an interface a port of a bridge."""
        tried = f"making interface {index} a port of bridge {bridge}"
        self._do(tried, self._ip.link, "set", index=index, master=bridge)

    def fix_port(self, index: int, mac: str) -> None:
        """Let a bridge's port be the place of this one address, whatever is sent by it.

        It learns nothing there and floods no unknown unicast to it. Multicast it always gets: with
        a querier on the network, snooping would else keep neighbour solicitations from it, because
        the port tells of no groups.
        """
        self._do(
            f"setting up bridge port {index}",
            self._ip.brport, "set", index=index, learning=0, unicast_flood=0, multicast_router=2,
        )  # fmt: skip
        self._do(
            f"telling the bridge that {mac} is at port {index}",
            self._ip.fdb, "add", ifindex=index, lladdr=mac, state=NUD_NOARP, flags=NTF_MASTER,
        )  # fmt: skip

    def ports(self, bridge: int) -> dict[str, int]:
        """Return name → index of the ports of a bridge."""
        return {
            message.get_attr("IFLA_IFNAME"): int(message["index"])
            for message in self._dump(self._ip.get_links)
            if message.get_attr("IFLA_MASTER") == bridge
        }

    def kind(self, index: int) -> str:
        """Return what an interface is (bridge, veth, openvswitch, ...), "" for hardware."""
        try:
            message = self._ip.link("get", index=index)[0]
        except NetlinkError as error:
            raise _refused(f"reading the kind of interface {index}", error) from error
        return str(message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "")

    def addresses(self, index: int) -> dict[IPv4Interface | IPv6Interface, int]:
        """Return address → flags (IFA_F_...) of an interface."""
        found = {}
        for message in self._dump(self._ip.get_addr, index=index):
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            flags = message.get_attr("IFA_FLAGS")
            found[ip_interface(f"{text}/{message['prefixlen']}")] = int(
                message["flags"] if flags is None else flags
            )
        return found

    def up(self, index: int, *, silent: bool = False) -> None:
        """Bring an interface up; a silent one resolves no neighbours and joins no groups."""
        change, flags = IFF_UP, IFF_UP
        if silent:
            change, flags = IFF_UP | IFF_NOARP | IFF_MULTICAST, IFF_UP | IFF_NOARP
        tried = f"bringing up interface {index}"
        self._do(tried, self._ip.link, "set", index=index, flags=flags, change=change)

    def move(self, index: int, netns: int) -> None:
        """Move an interface to the namespace behind `netns`: down, without addresses and routes."""
        tried = f"moving interface {index} to another network namespace"
        self._do(tried, self._ip.link, "set", index=index, net_ns_fd=netns)

    def set_mtu(self, index: int, mtu: int) -> None:
        """Set the MTU, in bytes."""
        tried = f"setting MTU {mtu} on interface {index}"
        self._do(tried, self._ip.link, "set", index=index, mtu=mtu)

    def add_address(self, index: int, address: IPv4Address | IPv6Address, prefix: int = 0) -> None:
        """Give an interface one address.

        Without a prefix it is the whole of a range that is ours, and no duplicate is looked for;
        with one it is on a network with others, and IPv6 looks.
        """
        extra = {"flags": IFA_F_NODAD} if address.version == 6 and not prefix else {}
        self._do(
            f"adding address {address} to interface {index}",
            self._ip.addr, "add", index=index, address=str(address),
            prefixlen=prefix or address.max_prefixlen, **extra,
        )  # fmt: skip

    def remove_address(self, index: int, address: IPv4Address | IPv6Address, prefix: int) -> None:
        """Take an address from an interface."""
        tried = f"removing address {address} from interface {index}"
        self._do(
            tried, self._ip.addr, "delete", index=index, address=str(address), prefixlen=prefix
        )

    def add_route(
        self, index: int, destination: IPv4Address | IPv6Address, *, default: bool = False
    ) -> None:
        """Route to one on-link address, or by way of it to everything (`default`)."""
        family = 2 if destination.version == 4 else 10
        if default:
            route: dict[str, Any] = {"dst": "default", "gateway": str(destination)}
        else:
            route = {"dst": f"{destination}/{destination.max_prefixlen}"}
            if family == 2:
                route["scope"] = SCOPE_LINK
        tried = f"adding a route by {destination}"
        self._do(tried, self._ip.route, "add", oif=index, family=family, **route)

    def add_neighbour(self, index: int, address: IPv4Address | IPv6Address, mac: str) -> None:
        """Tell the kernel for good which link-layer address an on-link address has."""
        self._do(
            f"adding neighbour {address}",
            self._ip.neigh, "add", ifindex=index, dst=str(address), lladdr=mac,
            state=NUD_PERMANENT, family=2 if address.version == 4 else 10,
        )  # fmt: skip

    def delete(self, indices: list[int], group: int) -> None:
        """Delete interfaces, in one kernel operation if there are several.

        One deletion waits 25 to 40 ms for a grace period; a group of a hundred waits once
        (`group` must be a link group that only this program uses). Missing ones are ignored.
        """
        present = []
        for index in indices:
            try:
                self._ip.link("set", index=index, group=group)
                present.append(index)
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise _refused(f"condemning interface {index}", error) from error
        if present:
            self._do("deleting condemned interfaces", self._ip.link, "del", group=group)

    def routes(self, family: int) -> list[Any]:
        """Return the main table's routes of a family (socket.AF_INET, AF_INET6), as messages."""
        return [m for m in self._dump(self._ip.get_routes, family=family) if m["table"] == 254]

    def mtu(self, index: int) -> int:
        """Return the MTU of an interface, in bytes."""
        try:
            return int(self._ip.link("get", index=index)[0].get_attr("IFLA_MTU"))
        except NetlinkError as error:
            raise _refused(f"reading the MTU of interface {index}", error) from error

    def name_of(self, index: int) -> str:
        """Return the name of an interface."""
        try:
            return str(self._ip.link("get", index=index)[0].get_attr("IFLA_IFNAME"))
        except NetlinkError as error:
            raise _refused(f"reading the name of interface {index}", error) from error

    def _dump(self, method: Any, **filters: Any) -> list[Any]:
        for _ in range(_DUMP_ATTEMPTS):
            try:
                return list(method(**filters))
            except NetlinkDumpInterrupted:
                continue
            except NetlinkError as error:
                raise _refused("listing interfaces or routes", error) from error
        raise KernelError("listing interfaces or routes", "the table changed during every reading")

    def _do(self, tried: str, method: Any, *arguments: Any, **keywords: Any) -> None:
        try:
            method(*arguments, **keywords)
        except NetlinkError as error:
            raise _refused(tried, error) from error


def _refused(tried: str, error: NetlinkError) -> KernelError:
    remedy = "run as root (CAP_NET_ADMIN)" if error.code == errno.EPERM else ""
    return KernelError(tried, os.strerror(error.code or 0), remedy)
