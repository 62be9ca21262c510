"""From [networks] to drivers, and what is left of networks that this agent does not know.

Each network of the site is a kind of its own: sandboxes of one cannot stand in for another's, so
the pool builds and keeps them apart.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.config.resources import AddressMode, pool_of
from lark_agent.errors import LarkError
from lark_agent.linux import namespaces, ovs
from lark_agent.linux.links import Links
from lark_agent.model import Connectivity
from lark_agent.sandbox import addressing, leases, resolver
from lark_agent.sandbox.addressing import INSIDE, INSIDE_BASE
from lark_agent.sandbox.bridge import BridgePort
from lark_agent.sandbox.connectivity import Kind, Sandbox
from lark_agent.sandbox.layer2 import Layer2Driver, delete_host_ends, delete_inside
from lark_agent.sandbox.leases import Leases
from lark_agent.sandbox.macvlan import MacvlanPort
from lark_agent.sandbox.ovs import OvsPort, remove_ports
from lark_agent.sandbox.slaac import Slaac
from lark_agent.sandbox.static import StaticRange
from lark_agent.sandbox.vlan import VlanPort, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lark_agent.config import Network
    from lark_agent.sandbox.guard import Guard
    from lark_agent.sandbox.layer2 import Port, Source

_WITH_DHCP = {AddressMode.DHCP, AddressMode.DHCP_SLAAC}
_WITH_SLAAC = {AddressMode.SLAAC, AddressMode.DHCP_SLAAC}


def drivers(
    networks: Mapping[str, Network],
    worker: str,
    uplink: str,
    guard: Guard,
    run_directory: Path,
    state_directory: Path,
) -> dict[Kind, Layer2Driver]:
    """Return a driver for each network; `uplink` is the parent of those that name none."""
    return {
        Kind(network.connectivity, name): Layer2Driver(
            Kind(network.connectivity, name), worker, _port(network, uplink),
            tuple(_sources(name, network, run_directory, state_directory)),
            tuple(map(ip_address, network.dns)), guard, run_directory,
        )
        for name, network in networks.items()
    }  # fmt: skip


def lacking(name: str, network: Network, uplink: str) -> list[LarkError]:
    """Return why no sandbox could be built on a network as this machine is; changes nothing."""
    nowhere = Path("/nonexistent")
    problems: list[LarkError] = []
    parts: list[Port | Source] = [_port(network, uplink)]
    parts += _sources(name, network, nowhere, nowhere)
    for part in parts:
        try:
            part.check()
        except LarkError as error:
            problems.append(error)
    return problems


def _port(network: Network, uplink: str) -> Port:
    parent = network.parent or uplink
    match network.connectivity:
        case Connectivity.BRIDGE:
            return BridgePort(network.bridge)
        case Connectivity.MACVLAN:
            return MacvlanPort(parent)
        case Connectivity.VLAN:
            return VlanPort(parent, network.vlan)
        case _:
            return OvsPort(network.bridge, network.vlan)


def _sources(
    name: str, network: Network, run_directory: Path, state_directory: Path
) -> Iterator[Source]:
    if network.addresses is AddressMode.STATIC:
        for pool, gateway, family in (
            (network.pool4, network.gateway4, IPv4Address),
            (network.pool6, network.gateway6, IPv6Address),
        ):
            if pool:
                router = ip_address(gateway) if gateway else None
                yield StaticRange(name, *pool_of(pool, family), router)
    if network.addresses in _WITH_DHCP:
        yield Leases(name, run_directory, state_directory)
    if network.addresses in _WITH_SLAAC:
        yield Slaac(name)


class Remains:
    """Dismantles sandboxes on networks that are not configured, or nobody knows which.

    They come from an earlier agent: of its idle sandboxes only the namespace and the interfaces
    tell, and the network of a job that ran on may have left the configuration meanwhile.
    """

    def __init__(self, guard: Guard, run_directory: Path) -> None:
        self._guard = guard
        self._run_directory = run_directory

    def tear_down(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Dismantle whatever of all kinds is there; returns what went wrong."""
        problems: list[LarkError] = []
        for sandbox in sandboxes:
            self._guard.forget(sandbox)
            leases.stop(self._run_directory, sandbox.name)
            resolver.own_file(self._run_directory, sandbox.slot).unlink(missing_ok=True)
        if ovs.installed() and any(s.connectivity is Connectivity.OVS for s in sandboxes):
            problems += remove_ports(sandboxes)
        problems += [*delete_inside(sandboxes), *delete_host_ends(sandboxes), *sweep()]
        for sandbox in sandboxes:
            namespaces.delete(sandbox.name)
        return problems


def found_on_network(slot: int) -> Sandbox | None:
    """Tell from what the kernel has of a slot whether its sandbox was on a network, and how."""
    with Links() as links:
        host_end = links.index(addressing.port_name(slot))
        kind = Connectivity.BRIDGE
        if links.index(addressing.switch_name(slot)):
            kind = Connectivity.OVS
    own = 0
    if namespaces.exists(addressing.name(slot)):
        own = namespaces.run_inside(addressing.name(slot), _own_index)
    if own >= INSIDE_BASE:
        return Sandbox(slot, Connectivity.MACVLAN, interface=own, inside=True)
    return Sandbox(slot, kind, interface=host_end) if host_end else None


def returned(sandbox: Sandbox, network: str, worker: str) -> Sandbox:
    """Complete what a record tells of a job's sandbox on a network."""
    inside = sandbox.connectivity is Connectivity.MACVLAN
    with Links() as links:
        host_end = links.index(addressing.port_name(sandbox.slot))
    return replace(
        sandbox,
        interface=INSIDE_BASE + sandbox.slot if inside else host_end,
        network=network,
        mac=addressing.mac_on_network(worker, sandbox.slot),
        inside=inside,
    )


def _own_index() -> int:
    with Links() as links:
        return links.index(INSIDE)
