"""Connectivity `bridge`: the sandbox is a port of a Linux bridge that the site has made.

A veth pair with one end in the bridge, which usually has the worker's uplink as another port. The
datapath hangs on the worker's end, before the bridge for what the job sends and after it for what
it receives, so two jobs on one bridge meet each other's rules like anybody else's.

The bridge itself is told where the sandbox's address is and learns nothing at its port: nothing
that a job makes up moves other hosts' addresses there, whatever the datapath thinks of it. Unknown
unicast is not flooded to the port; jobs do not see what is for others.

With the module `br_netfilter` loaded and `net.bridge.bridge-nf-call-iptables` on, the worker's
firewall sees bridged packets too; leave it off on such workers.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.linux import namespaces, sysctl
from lark_agent.linux.links import Links
from lark_agent.sandbox import addressing
from lark_agent.sandbox.addressing import INSIDE
from lark_agent.sandbox.layer2 import delete_host_ends

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.errors import LarkError
    from lark_agent.sandbox.connectivity import Sandbox


class BridgePort:
    """Ports of one Linux bridge."""

    inside = False

    def __init__(self, bridge: str) -> None:
        self._bridge = bridge

    def check(self) -> None:
        """Check that the bridge is there and is one; raises PrerequisiteError."""
        with Links() as links:
            index = links.index(self._bridge)
            if not index or links.kind(index) != "bridge":
                raise PrerequisiteError(
                    f"there is no Linux bridge '{self._bridge}' here; make it "
                    f"(`ip link add {self._bridge} type bridge`) and its port towards the "
                    "network, or change `bridge` under [networks]"
                )

    def plug(self, sandbox: Sandbox) -> int:
        """Make the veth pair, its host end in the bridge."""
        with Links() as links:
            bridge = links.index(self._bridge)
            if not bridge:
                raise KernelError(f"looking up the bridge {self._bridge}", "it is gone", "make it")
            index = make_veth(links, sandbox, links.mtu(bridge))
            links.join_bridge(index, bridge)
            links.fix_port(index, sandbox.mac)
        return index

    def switch_on(self, sandbox: Sandbox) -> None:
        """Bring the host end up."""
        switch_on(sandbox)

    def unplug(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Delete the veth pairs."""
        return delete_host_ends(sandboxes)


def make_veth(links: Links, sandbox: Sandbox, mtu: int) -> int:
    """Make eth0 and a host end that has no addresses; returns the index of the host end."""
    host = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    name = addressing.port_name(sandbox.slot)

    def inside() -> None:
        with Links() as there:
            there.add_veth(INSIDE, sandbox.mac, name, addressing.port_mac(sandbox.mac), host, mtu)

    try:
        namespaces.run_inside(sandbox.name, inside)
    finally:
        os.close(host)
    sysctl.write_if_present(f"net/ipv6/conf/{name}/disable_ipv6", 1)
    return links.index(name)


def switch_on(sandbox: Sandbox) -> None:
    """Bring the host end up."""
    with Links() as links:
        links.up(links.index(addressing.port_name(sandbox.slot)))
