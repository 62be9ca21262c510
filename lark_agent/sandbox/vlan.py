"""Connectivity `vlan`: an 802.1Q network of the site, on this worker only while a job needs it.

With the first sandbox come a VLAN interface on the parent (`lkv<id>.<parent>`) and a bridge with it
as a port (`lkb<id>.<parent>`), both without addresses: the worker itself is not on that network.
Sandboxes are ports of the bridge as in `lark_agent.sandbox.bridge`. With the last one both go.
Names say everything, so what a crash left behind is found and swept, or used again.

A bridge instead of one VLAN interface in each sandbox because the kernel has one for each id and
parent, and several jobs may be on one network; and the datapath sees untagged frames, so a tag is
always the job's own and dropped.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from lark_agent.errors import KernelError, LarkError
from lark_agent.linux import sysctl
from lark_agent.linux.links import Links
from lark_agent.sandbox.bridge import BridgePort
from lark_agent.sandbox.firewall import VLAN_BRIDGES
from lark_agent.sandbox.macvlan import parent_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.sandbox.connectivity import Sandbox

_BRIDGE, _VLAN = VLAN_BRIDGES, "lkv"
_OURS = re.compile(rf"{_BRIDGE}(\d+\.\d+)")
_GROUP = 0x6C620000
_building = threading.Lock()
"""Between the look whether a bridge is empty and its end, nobody may join it."""


class VlanPort:
    """Ports of one 802.1Q network."""

    inside = False

    def __init__(self, parent: str, identifier: int) -> None:
        self._parent = parent
        self._identifier = identifier

    def check(self) -> None:
        """Check that the parent is there; raises PrerequisiteError."""
        with Links() as links:
            parent_index(links, self._parent)

    def plug(self, sandbox: Sandbox) -> int:
        """Make the network if it is not there, and join its bridge."""
        with _building:
            with Links() as links:
                name = self._make(links)
            return BridgePort(name).plug(sandbox)

    def switch_on(self, sandbox: Sandbox) -> None:
        """Bring the host end up."""
        BridgePort("").switch_on(sandbox)

    def unplug(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Delete the veth pairs, and the networks that nobody is on any more."""
        return [*BridgePort("").unplug(sandboxes), *sweep()]

    def _make(self, links: Links) -> str:
        parent = parent_index(links, self._parent)
        suffix = f"{self._identifier}.{parent}"
        bridge, vlan = _BRIDGE + suffix, _VLAN + suffix
        try:
            if not links.index(bridge):
                links.add_bridge(bridge)
            if not links.index(vlan):
                links.add_vlan(vlan, parent, self._identifier)
            links.join_bridge(links.index(vlan), links.index(bridge))
            for name in (vlan, bridge):
                sysctl.write_if_present(f"net/ipv6/conf/{name}/disable_ipv6", 1)
                links.up(links.index(name))
        except KernelError as error:
            _delete(links, suffix)
            raise KernelError(
                f"making the VLAN {self._identifier} on {self._parent}", str(error),
                "the kernel needs 802.1Q (CONFIG_VLAN_8021Q; `modprobe 8021q`)",
            ) from error  # fmt: skip
        return bridge


def sweep() -> list[LarkError]:
    """Delete the bridges of ours that have no sandbox, with their VLAN interfaces."""
    with _building:
        try:
            with Links() as links:
                for name, index in links.names(_BRIDGE).items():
                    ours = _OURS.fullmatch(name)
                    if ours and not set(links.ports(index)) - {_VLAN + ours[1]}:
                        _delete(links, ours[1])
        except KernelError as error:
            return [error]
    return []


def _delete(links: Links, suffix: str) -> None:
    indices = [index for kind in (_VLAN, _BRIDGE) if (index := links.index(kind + suffix))]
    if indices:
        links.delete(indices, _GROUP)
