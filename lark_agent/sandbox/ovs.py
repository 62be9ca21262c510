"""Connectivity `ovs`: the sandbox is a port of an Open vSwitch bridge, in the VLAN of its tag.

A veth pair, and on its host end a macvlan interface in mode passthru, which is the port::

    eth0 ═ lport<slot> (programs, rates) ─ lkbs<slot> ─ port of the site's bridge

The host end itself cannot be the port. The userspace datapath (`datapath_type=netdev`) reads its
ports as raw frames, before programs could drop or hold any, and Open vSwitch removes the clsact
qdisc, with all programs, of an interface that becomes a port. The macvlan interface takes each
frame that came through, and gives back what the switch sends; a bridge would do the same, with more
to configure and an IP stack that hears everything.

The host end hears broadcasts, and the port, of which the userspace datapath only has a copy, all
that the job sends. Neither answers: no ARP, no IPv6, and the firewall drops the rest by its name.
The userspace datapath takes frames as they are: for it, eth0 has to finish checksums and segments
itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.errors import KernelError
from lark_agent.linux import namespaces, offloads, ovs, sysctl
from lark_agent.linux.links import Links
from lark_agent.sandbox import addressing
from lark_agent.sandbox.addressing import INSIDE
from lark_agent.sandbox.bridge import make_veth, switch_on
from lark_agent.sandbox.layer2 import delete_host_ends

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.errors import LarkError
    from lark_agent.sandbox.connectivity import Sandbox

_USERSPACE = "netdev"
_NEVER_ANSWER = 8
"""arp_ignore: for no address of the worker."""
_USUAL_MTU = 1500


class OvsPort:
    """Ports of one Open vSwitch bridge."""

    inside = False

    def __init__(self, bridge: str, tag: int) -> None:
        self._bridge = bridge
        self._tag = tag

    def check(self) -> None:
        """Check that the bridge is there; raises PrerequisiteError."""
        ovs.datapath_type(self._bridge)

    def plug(self, sandbox: Sandbox) -> int:
        """Make the veth pair and the port."""
        name, port = addressing.port_name(sandbox.slot), addressing.switch_name(sandbox.slot)
        with Links() as links:
            own = links.index(self._bridge)
            index = make_veth(links, sandbox, links.mtu(own) if own else _USUAL_MTU)
            links.add_passthru(port, index)
        sysctl.write_if_present(f"net/ipv6/conf/{port}/disable_ipv6", 1)
        for silent in (name, port):
            sysctl.write(f"net/ipv4/conf/{silent}/arp_ignore", _NEVER_ANSWER)
        if ovs.datapath_type(self._bridge) == _USERSPACE:
            namespaces.run_inside(sandbox.name, lambda: offloads.switch_off(INSIDE))
        ovs.add_port(self._bridge, port, self._tag)
        return index

    def switch_on(self, sandbox: Sandbox) -> None:
        """Bring the host end and the port up."""
        switch_on(sandbox)
        with Links() as links:
            links.up(links.index(addressing.switch_name(sandbox.slot)))

    def unplug(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Remove the ports, then the veth pairs."""
        return [*remove_ports(sandboxes), *delete_host_ends(sandboxes)]


def remove_ports(sandboxes: Sequence[Sandbox]) -> list[LarkError]:
    """Take the sandboxes' ports off whatever Open vSwitch bridge they are on."""
    try:
        ovs.delete_ports([addressing.switch_name(sandbox.slot) for sandbox in sandboxes])
    except KernelError as error:
        return [error]
    return []
