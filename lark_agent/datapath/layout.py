"""What the maps hold: the Python side of the structures in layout.h.

==============  ====================  ===========================================  ==========
map             kind                  key → value                                  written by
==============  ====================  ===========================================  ==========
slots           hash                  interface index → slot                       agent
plan            array                 slot → flags, classes, addresses, MAC, peers agent
usage           per-CPU array         slot → (16 classes + non-IP) x 2 directions  programs
dropped         per-CPU array         slot → drop reasons 0 to 7                   programs
dropped2        per-CPU array         slot → drop reasons 8 to 11, refused classes programs
quota           array                 quota → limit, what to do at its end         agent
quota_used      array                 quota → bytes, whether it is used up         programs
events          ring buffer           what the agent is told at once               programs
services        hash                  (protocol, port) of the worker → service     agent
remote_jobs     hash                  address → owner, group, peers                agent
flows           array of LRU hashes   slot → its flows: ends → last seen           programs
open_ports      hash                  (slot, protocol, port): open, or launcher's  agent
classes4, -6    longest-prefix tries  network → class, address of slot 0           agent
class_names     array                 class → name                                 agent
service_names   array                 service → name                               agent
==============  ====================  ===========================================  ==========

`class_names` and `service_names` are for the agent alone: they are pinned beside the others because
a number in a counter or a plan without its name means nothing, and both must survive an agent.

Drop reasons are in two maps because a map that layout 1 made must stay the same map: with jobs
running, programs of both layouts count in it (`lark_agent.datapath.pins`). Of what a plan's classes
refuse, `dropped2` also has the packets of each class, where the first release had room for reasons.

Sizes are those of the worker: the usage of a slot takes 544 bytes for each possible CPU (64 slots
on 256 CPUs: 9 MB). VERSION names the layout; change it with any structure here or there, and keep
what `lark_agent.datapath.pins` needs to carry an older one over: the sizes of its values, and how
its plans become ours (`lark_agent.datapath.plan`).
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lark_agent.linux.bpf import NO_PREALLOC, MapKind, MapSpec
from lark_agent.model import (
    MAX_CLASSES,
    ClassUsage,
    Count,
    Direction,
    Drop,
    DropReason,
    Refused,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = 3
OLDER = (2, 1)
"""Layouts that are carried over."""
PROGRAMS = ("from_job", "to_job")
SHAPER = 0x3FFFFF01
"""Index of the ifb device that shapes what jobs receive; packets that it sends back are counted."""

TO_LOOPBACK = 0x6C61726B
"""Mark of what jobs send to ports of the worker's loopback that are theirs alone."""
PORT_OF_LAUNCHER = 1 << 8
"""In the protocol of an open port: the worker's, on the loopback, where the launcher listens."""

FIRST_SANDBOX = 2
"""Slot n has address n + 2 of each of the sandboxes' ranges, see lark_agent.sandbox.addressing."""
NOBODY, WORKER, REMOTE = 0xFFFFFFFF, 0xFFFFFFFD, 0xFFFFFFFB
"""Instead of the address of slot 0: a range where no address is a job's; the worker itself; jobs
that the programs find in `remote_jobs`."""
ALL_CLASSES = (1 << MAX_CLASSES) - 1
"""Class mask of a job that may exchange packets with every class."""

PLAN_SIZES = {1: 36, 2: 56, VERSION: 200}
_U32 = struct.Struct("=I")
_DESTINATION = struct.Struct("=II")
_DESTINATION_SIZES = {1: 4, 2: 8, VERSION: _DESTINATION.size}
_ROWS = MAX_CLASSES + 1  # the last is for frames that are not IP
_COUNTERS = struct.Struct(f"={_ROWS * len(Direction) * 2}Q")
_REASONS_OF_A_MAP = 8
_DROPS = struct.Struct(f"={_REASONS_OF_A_MAP * 2}Q")
_MORE_DROPS = struct.Struct(f"={_REASONS_OF_A_MAP}Q{MAX_CLASSES}I")  # half of the room
KEPT = ("slots", "usage", "dropped", "class_names")
"""Maps that are the same in every layout, and are handed on from one to the next."""
NAME_SIZE = 32
MOST_SERVICES = 32
FLOWS_OF_SLOT = MapSpec(MapKind.LRU_HASH, 36, 8, 1 << 12)
"""What of `flows` each slot has that needs any: 0.5 MB of the kernel's."""
REPLACEABLE = ("flows",)
"""Maps that a release may have had in another form: nothing is lost that the next packets do not
bring back."""
MOST_QUOTAS = 8
"""Quotas that one plan can refer to."""
QUOTA = struct.Struct("=QII")
QUOTA_USED = struct.Struct("=QII")
_RING_SIZE = 1 << 16  # bytes; a multiple of the page size of every machine
_MOST_PREFIXES = 1 << 16


def map_specs(slots: int, version: int = VERSION) -> dict[str, MapSpec]:
    """Return every map of a worker with this many slots."""
    trie = {
        "value_size": _DESTINATION_SIZES[version],
        "max_entries": _MOST_PREFIXES,
        "flags": NO_PREALLOC,
    }
    maps = {
        # twice: a slot's next interface may exist before its last one is gone
        "slots": MapSpec(MapKind.HASH, 4, 4, 2 * slots),
        "plan": MapSpec(MapKind.ARRAY, 4, PLAN_SIZES[version], slots),
        "usage": MapSpec(MapKind.PERCPU_ARRAY, 4, _COUNTERS.size, slots),
        "dropped": MapSpec(MapKind.PERCPU_ARRAY, 4, _DROPS.size, slots),
        "classes4": MapSpec(MapKind.LPM_TRIE, 4 + 4, **trie),
        "classes6": MapSpec(MapKind.LPM_TRIE, 4 + 16, **trie),
        "class_names": MapSpec(MapKind.ARRAY, 4, NAME_SIZE, MAX_CLASSES),
    }
    if version == VERSION:
        maps |= {
            "dropped2": MapSpec(MapKind.PERCPU_ARRAY, 4, _MORE_DROPS.size, slots),
            "quota": MapSpec(MapKind.ARRAY, 4, QUOTA.size, quotas(slots)),
            "quota_used": MapSpec(MapKind.ARRAY, 4, QUOTA_USED.size, quotas(slots)),
            "events": MapSpec(MapKind.RINGBUF, 0, 0, _RING_SIZE),
            "services": MapSpec(MapKind.HASH, 8, 4, 2 * MOST_SERVICES),
            "service_names": MapSpec(MapKind.ARRAY, 4, NAME_SIZE, MOST_SERVICES),
            "remote_jobs": MapSpec(MapKind.HASH, 16, 24, _MOST_PREFIXES, NO_PREALLOC),
            "flows": MapSpec(MapKind.ARRAY_OF_MAPS, 4, 4, slots),
            "open_ports": MapSpec(MapKind.HASH, 12, 4, _MOST_PREFIXES, NO_PREALLOC),
        }
    return maps


def quotas(slots: int) -> int:
    """Return how many quotas a worker has room for: those of its jobs, and those of owners."""
    return MOST_QUOTAS * slots + 1024


def u32(number: int) -> bytes:
    """Return a slot, interface index or class as the maps have it."""
    return _U32.pack(number)


@dataclass(frozen=True, slots=True)
class Destination:
    """What the programs know of the addresses in a network."""

    traffic_class: int
    first: int = 0
    """In the sandboxes' own ranges the last 32 bits of slot 0's address; WORKER, …; else 0."""

    def packed(self) -> bytes:
        """Return the map value."""
        return _DESTINATION.pack(self.traffic_class, self.first)


@dataclass(frozen=True, slots=True)
class Counters:
    """All counters of one slot at one instant; equal ones mean that nothing moved in between."""

    used: tuple[int, ...]
    """(packets, bytes) of each direction of each class, then of what is not IP."""
    dropped: tuple[int, ...]
    """(packets, bytes) of each drop reason."""
    refused: tuple[int, ...]
    """Packets of each class that the plan refused; a CPU stops at 16.7 million of a class."""

    @classmethod
    def unpack(cls, used: bytes, dropped: bytes, dropped2: bytes) -> Counters:
        """Read the sums over all CPUs: of `usage`, `dropped` and `dropped2`."""
        more = _MORE_DROPS.unpack(dropped2)
        drops = (*_DROPS.unpack(dropped), *more[:-MAX_CLASSES])
        return cls(_COUNTERS.unpack(used), drops, more[-MAX_CLASSES:])

    def used_by(self, row: int, direction: Direction) -> Count:
        """Return what moved with one class."""
        start = (row * len(Direction) + direction) * 2
        return Count(self.used[start], self.used[start + 1])

    def dropped_for(self, reason: DropReason) -> Count:
        """Return what was dropped for one reason."""
        return Count(self.dropped[2 * reason], self.dropped[2 * reason + 1])

    @property
    def classes_in_use(self) -> frozenset[int]:
        """The classes with at least one packet, be it refused."""
        refused = {index for index, packets in enumerate(self.refused) if packets}
        return self._classes_used | refused

    @property
    def _classes_used(self) -> frozenset[int]:
        return frozenset(
            index
            for index in range(MAX_CLASSES)
            if any(self.used[index * 4 : index * 4 + 4])  # two counters in each direction
        )

    def usage(self, class_names: Sequence[str]) -> Usage:
        """Name the classes and reasons that have packets; `class_names` by index."""
        classes = (
            ClassUsage(
                class_names[index],
                self.used_by(index, Direction.SENT),
                self.used_by(index, Direction.RECEIVED),
            )
            for index in sorted(self._classes_used)
        )
        refused = tuple(
            Refused(class_names[index], packets)
            for index, packets in enumerate(self.refused)
            if packets
        )
        drops = (
            Drop(
                reason.name.lower().replace("_", "-"),
                count,
                refused if reason is DropReason.CLASS_DENIED else (),
            )
            for reason in DropReason
            if (count := self.dropped_for(reason))
        )
        return Usage(
            tuple(classes),
            tuple(drops),
            self.used_by(MAX_CLASSES, Direction.SENT),
            self.used_by(MAX_CLASSES, Direction.RECEIVED),
        )


def sum_copies(entry: memoryview, copies: int) -> bytes:
    """Add the values of all CPUs in one entry of a per-CPU map of 64-bit counters.

    Each CPU's value is added as one long integer: no counter reaches 2^64, so none carries into
    the next, and it is several times faster than adding counter by counter.
    """
    stride = len(entry) // copies
    total = sum(
        int.from_bytes(entry[start : start + stride], sys.byteorder)
        for start in range(0, len(entry), stride)
    )
    return total.to_bytes(stride, sys.byteorder)
