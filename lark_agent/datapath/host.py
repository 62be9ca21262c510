"""The programs of jobs without a sandbox, and the map that names their control groups.

They share every map of the datapath but one: `cgroups` (group → slot) is made by each agent anew,
with its own programs. An agent that starts writes the groups of the jobs that it found into its map
and then replaces the earlier programs on them, which take the earlier map with them; so neither
needs a pin, and the layout of the datapath does not know of it.

Only libbpf loads them: host.bpf.c speaks clang's dialect of maps alone.
"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.datapath.layout import u32
from lark_agent.datapath.pins import CURRENT
from lark_agent.errors import PrerequisiteError
from lark_agent.linux import cgroups, libbpf
from lark_agent.linux.bpf import Map, MapKind, MapSpec

if TYPE_CHECKING:
    from typing import Self

OBJECT = Path(__file__).with_name("host.bpf.o")
PROGRAMS = {"host_sent": cgroups.Hook.SENT, "host_received": cgroups.Hook.RECEIVED}
THIS4, THIS6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
"""In the plan of such a job: that it may use the family, from whatever address the worker has."""
_SHARED = (
    *("slots", "plan", "usage", "dropped", "dropped2", "classes4", "classes6"),
    *("quota", "quota_used", "events"),
)
_U64 = struct.Struct("=Q")
_GROUPS_OF_A_JOB = 2
"""Its own, and that of the slot's last job, which may not be empty yet."""


class HostPrograms:
    """Loaded programs. Closing leaves those that are attached in force."""

    def __init__(self, groups: Map, programs: dict[str, int]) -> None:
        """Take over an open map and program descriptors by name; see `load`."""
        self._groups = groups
        self._programs = programs

    def close(self) -> None:
        """Close the descriptors."""
        self._groups.close()
        for fd in self._programs.values():
            os.close(fd)
        self._programs = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def bind(self, group: Path, slot: int) -> int:
        """Hold the sockets of a control group to the plan of a slot; returns the group's number.

        May be repeated; a group that has programs of an earlier agent gets this one's.
        """
        number = cgroups.identity(group)
        self._groups.set(_U64.pack(number), u32(slot))
        self.attach(group)
        return number

    def attach(self, group: Path) -> None:
        """Put the programs on a group. Without `bind` nothing passes."""
        for name, hook in PROGRAMS.items():
            cgroups.attach(group, self._programs[name], name, hook)

    def unbind(self, number: int) -> None:
        """Let nothing pass any more for a group, which may be gone."""
        self._groups.delete(_U64.pack(number))


def load(bpffs: Path, slots: int) -> HostPrograms:
    """Load the programs over the maps in force below `bpffs`.

    Raises PrerequisiteError if there is no object or no libbpf, KernelError if the kernel refuses.
    """
    if not OBJECT.exists():
        raise PrerequisiteError(f"{OBJECT} is missing; install the package with clang")
    spec = MapSpec(MapKind.HASH, 8, 4, _GROUPS_OF_A_JOB * slots)
    with ExitStack() as shared, ExitStack() as on_failure:
        groups = on_failure.enter_context(Map.create("cgroups", spec))
        maps = {name: shared.enter_context(Map.open(bpffs / CURRENT / name)) for name in _SHARED}
        used = {name: opened.fd for name, opened in (maps | {"cgroups": groups}).items()}
        programs = libbpf.load_programs(OBJECT, used, tuple(PROGRAMS))
        on_failure.pop_all()
    return HostPrograms(groups, programs)
