"""Connectivity `ovs`: the sandbox is a port of an Open vSwitch bridge, in the VLAN of its tag.

A veth pair whose host end is a port of the site's bridge, with either of Open vSwitch's datapaths.
The userspace one (`datapath_type=netdev`) reads the host end as raw frames, past everything that
could stand there, so the datapath hangs on the sandbox's own eth0 (as in
`lark_agent.sandbox.macvlan`), with both alike. And it takes frames as they are: for it, eth0 has
to finish checksums and segments itself, which the kernel's own leaves to the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.errors import KernelError
from lark_agent.linux import namespaces, offloads, ovs
from lark_agent.linux.links import Links
from lark_agent.sandbox import addressing
from lark_agent.sandbox.addressing import INSIDE
from lark_agent.sandbox.bridge import make_veth, switch_on
from lark_agent.sandbox.layer2 import delete_host_ends, inside_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.errors import LarkError
    from lark_agent.sandbox.connectivity import Sandbox

_USERSPACE = "netdev"
_USUAL_MTU = 1500


class OvsPort:
    """Ports of one Open vSwitch bridge."""

    inside = True

    def __init__(self, bridge: str, tag: int) -> None:
        self._bridge = bridge
        self._tag = tag

    def check(self) -> None:
        """Check that the bridge is there; raises PrerequisiteError."""
        ovs.datapath_type(self._bridge)

    def plug(self, sandbox: Sandbox) -> int:
        """Make the veth pair and the port."""
        with Links() as links:
            own = links.index(self._bridge)
            make_veth(links, sandbox, links.mtu(own) if own else _USUAL_MTU)
        if ovs.datapath_type(self._bridge) == _USERSPACE:
            namespaces.run_inside(sandbox.name, lambda: offloads.switch_off(INSIDE))
        ovs.add_port(self._bridge, addressing.port_name(sandbox.slot), self._tag)
        return inside_index(sandbox)

    def switch_on(self, sandbox: Sandbox) -> None:
        """Bring the host end up."""
        switch_on(sandbox)

    def unplug(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Remove the ports, then the veth pairs."""
        return [*remove_ports(sandboxes), *delete_host_ends(sandboxes)]


def remove_ports(sandboxes: Sequence[Sandbox]) -> list[LarkError]:
    """Take the sandboxes' host ends off whatever Open vSwitch bridge they are on."""
    try:
        ovs.delete_ports([addressing.port_name(sandbox.slot) for sandbox in sandboxes])
    except KernelError as error:
        return [error]
    return []
