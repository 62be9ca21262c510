"""The programs of jobs without a sandbox, and the map that names their control groups.

They share every map of the datapath but one: `cgroups` (group → slot) is made by each agent anew,
with its own programs. An agent that starts writes the groups of the jobs that it found into its map
and then replaces the earlier programs on them, which take the earlier map with them; so neither
needs a pin, and the layout of the datapath does not know of it.

Only libbpf loads them: host.bpf.c speaks clang's dialect of maps alone. There are two objects of
it, for kernels where programs may ask for a packet's network namespace (Linux 6.15) and for others:
the kernel says which it is by taking the first or not.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.datapath.pins import CURRENT
from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.linux import cgroups, libbpf
from lark_agent.linux.bpf import Map, MapKind, MapSpec

if TYPE_CHECKING:
    from typing import Self

OBJECTS = tuple(Path(__file__).with_name(f"{name}.bpf.o") for name in ("host-networks", "host"))
PROGRAMS = {"host_sent": cgroups.Hook.SENT, "host_received": cgroups.Hook.RECEIVED}
THIS4, THIS6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
"""In the plan of such a job: that it may use the family, from whatever address the worker has."""
_SHARED = (
    *("slots", "plan", "usage", "dropped", "dropped2", "classes4", "classes6"),
    *("quota", "quota_used", "events"),
)
_SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, since Linux 5.14
_NUMBER, _GROUP = struct.Struct("=Q"), struct.Struct("=I4xQ")
_GROUPS_OF_A_JOB = 2
"""Its own, and that of the slot's last job, which may not be empty yet."""


class HostPrograms:
    """Loaded programs. Closing leaves those that are attached in force."""

    def __init__(self, groups: Map, programs: dict[str, int]) -> None:
        """Take over an open map and program descriptors by name; see `load`."""
        self._groups = groups
        self._programs = programs
        self._network = _network_cookie()

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
        self._groups.set(_NUMBER.pack(number), _GROUP.pack(slot, self._network))
        self.attach(group)
        return number

    def attach(self, group: Path) -> None:
        """Put the programs on a group. Without `bind` nothing passes."""
        for name, hook in PROGRAMS.items():
            cgroups.attach(group, self._programs[name], name, hook)

    def unbind(self, number: int) -> None:
        """Let nothing pass any more for a group, which may be gone."""
        self._groups.delete(_NUMBER.pack(number))


def load(bpffs: Path, slots: int) -> HostPrograms:
    """Load the programs over the maps in force below `bpffs`.

    Raises PrerequisiteError if there is no object or no libbpf, KernelError if the kernel refuses.
    """
    for path in OBJECTS:
        if not path.exists():
            raise PrerequisiteError(f"{path} is missing; install the package with clang")
    spec = MapSpec(MapKind.HASH, _NUMBER.size, _GROUP.size, _GROUPS_OF_A_JOB * slots)
    with ExitStack() as shared, ExitStack() as on_failure:
        groups = on_failure.enter_context(Map.create("cgroups", spec))
        maps = {name: shared.enter_context(Map.open(bpffs / CURRENT / name)) for name in _SHARED}
        used = {name: opened.fd for name, opened in (maps | {"cgroups": groups}).items()}
        newer, older = OBJECTS
        try:
            programs = libbpf.load_programs(newer, used, tuple(PROGRAMS))
        except KernelError:
            programs = libbpf.load_programs(older, used, tuple(PROGRAMS))
        on_failure.pop_all()
    return HostPrograms(groups, programs)


def _network_cookie() -> int:
    """Return the number by which programs know this process's network; 0 before Linux 5.14."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        try:
            return int.from_bytes(
                here.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder
            )
        except OSError:
            return 0
