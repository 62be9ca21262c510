"""Hang the programs on the host side of a veth.

clsact and two direct-action filters: every kernel since EL8 has them, and attaching takes about a
millisecond. tcx links would be the newer way but cost a grace period each (8 ms), and they would be
held by pins or this process instead of going away with their interface.

Fixed handles make it repeatable: attaching again replaces the filters, which is how interfaces that
survived an agent get the programs of the next one. Privilege: CAP_NET_ADMIN over the interface.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pyroute2 import NetlinkError

from lark_agent.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Mapping

_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_CLSACT with TC_H_MIN_INGRESS, TC_H_MIN_EGRESS
_HOOKS = {"from_job": _INGRESS, "to_job": _EGRESS}
_PRIORITY, _HANDLE = 1, 1
_ALL_PROTOCOLS = 0x0003
_EEXIST = 17


class TrafficControl(Protocol):
    """The one call that is needed of pyroute2's IPRoute."""

    def tc(self, command: str, kind: str = ..., index: int = ..., **kwargs: Any) -> Any:
        """Send one traffic control message."""
        ...


def attach_programs(netlink: TrafficControl, ifindex: int, programs: Mapping[str, int]) -> None:
    """Attach or replace both programs (name → descriptor); raises KernelError."""
    try:
        try:
            netlink.tc("add", "clsact", ifindex)
        except NetlinkError as error:
            if error.code != _EEXIST:
                raise
        for name, hook in _HOOKS.items():
            netlink.tc(
                "replace-filter",
                "bpf",
                ifindex,
                handle=_HANDLE,
                parent=hook,
                prio=_PRIORITY,
                protocol=_ALL_PROTOCOLS,
                fd=programs[name],
                name=name,
                direct_action=True,
            )
    except NetlinkError as error:
        raise KernelError(
            f"attach the datapath to interface {ifindex}",
            str(error),
            "the kernel needs CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS",
        ) from error
