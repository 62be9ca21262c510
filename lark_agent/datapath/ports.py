"""Ports that are one job's alone: those of its own that others may call, and those of its launcher.

The first are what `Inbound.PORTS` opens. The others are on the worker's loopback, where the process
that started the job listens for it (HTCondor's starter does, for chirp); they are kept beside the
site's services (`lark_agent.datapath.services`) because no other job may have them, whoever owns
it. The value of such an entry is the worker's address by which the job reaches the port: no other
will do, or a program that has the same number on another address would be reached.

All ports of a slot are replaced when a job begins, so none is an earlier job's. Which there are is
read once, when the map is opened, because looking through it takes a system call for each entry and
a job waits for it.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import TYPE_CHECKING

from lark_agent.datapath.layout import PORT_OF_LAUNCHER, u32

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from lark_agent.datapath.plan import SlotPlan
    from lark_agent.linux.bpf import Map

_KEY = struct.Struct("=III")  # slot, protocol, port
_TCP = 6
_OPEN = u32(1)


class PortTable:
    """The ports of all slots."""

    def __init__(self, ports: Map) -> None:
        self._ports = ports
        self._known: defaultdict[int, dict[bytes, bytes]] = defaultdict(dict)
        for key in list(ports.keys()):
            self._known[_KEY.unpack(key)[0]][key] = ports.get(key) or b""

    def assign(self, slot: int, plan: SlotPlan) -> None:
        """Let a slot have the ports of a plan, and no others."""
        wanted = {_KEY.pack(slot, protocol, port): _OPEN for protocol, port in plan.ports}
        of_launcher = _launcher(slot, plan.launcher, plan.gateway) if plan.gateway else {}
        self._replace(slot, set(self._known[slot]), wanted | of_launcher)

    def of_launcher(self, slot: int) -> frozenset[int]:
        """Return the TCP ports of the worker's loopback that a slot has."""
        return frozenset(_KEY.unpack(key)[2] for key in self._of_launcher(slot))

    def let_launcher(self, slot: int, ports: frozenset[int], gateway: IPv4Address) -> None:
        """Let a slot have these of its launcher, and no others of it; what it opens stays."""
        wanted = _launcher(slot, ports, gateway)
        self._replace(slot, set(self._of_launcher(slot)), wanted)

    def _of_launcher(self, slot: int) -> list[bytes]:
        return [key for key in self._known[slot] if _KEY.unpack(key)[1] & PORT_OF_LAUNCHER]

    def _replace(self, slot: int, before: set[bytes], wanted: dict[bytes, bytes]) -> None:
        known = self._known[slot]
        for key in before - wanted.keys():
            self._ports.delete(key)
            del known[key]
        for key, value in wanted.items():
            if known.get(key) != value:
                self._ports.set(key, value)
                known[key] = value


def _launcher(slot: int, ports: frozenset[int], gateway: IPv4Address) -> dict[bytes, bytes]:
    return {_KEY.pack(slot, _TCP | PORT_OF_LAUNCHER, port): gateway.packed for port in ports}
