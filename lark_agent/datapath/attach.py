"""Hang the programs on a job's link.

clsact and two direct-action filters: every kernel since EL8 has them, and attaching takes about a
millisecond. tcx links would be the newer way but cost a grace period each (8 ms), and they would be
held by pins or this process instead of going away with their interface.

Normally they hang at the host's end of a veth, where the job's packets come in. A macvlan device
has no such end: it lies in the sandbox itself. There they hang on the sandbox's own device, where
the job's packets go out. The job cannot remove them: its sandbox belongs to the initial user
namespace, in which it has no capability.

Fixed handles make it repeatable: attaching again replaces the filters, which is how interfaces that
survived an agent get the programs of the next one. Privilege: CAP_NET_ADMIN over the interface.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from pyroute2.netlink.exceptions import NetlinkError

from lark_agent.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Mapping

_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_CLSACT with TC_H_MIN_INGRESS, TC_H_MIN_EGRESS
_PRIORITY, _HANDLE = 1, 1
_ALL_PROTOCOLS = 0x0003
_EEXIST = 17


class Hooks(Enum):
    """Which end of a link an interface is, and so which way a job's packets cross it."""

    HOST = "host"
    SANDBOX = "sandbox"


_PARENTS = {
    Hooks.HOST: {"from_job": _INGRESS, "to_job": _EGRESS},
    Hooks.SANDBOX: {"from_job": _EGRESS, "to_job": _INGRESS},
}


class TrafficControl(Protocol):
    """The one call that is needed of pyroute2's IPRoute."""

    def tc(self, command: str, kind: str = ..., index: int = ..., **kwargs: Any) -> Any:
        """Send one traffic control message."""
        ...


def attach_programs(
    netlink: TrafficControl, ifindex: int, programs: Mapping[str, int], hooks: Hooks = Hooks.HOST
) -> None:
    """Attach or replace both programs (name → descriptor); raises KernelError."""
    try:
        try:
            netlink.tc("add", "clsact", ifindex)
        except NetlinkError as error:
            if error.code != _EEXIST:
                raise
        for name, parent in _PARENTS[hooks].items():
            netlink.tc(
                "replace-filter",
                "bpf",
                ifindex,
                handle=_HANDLE,
                parent=parent,
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
