"""What the programs tell at once: a quota is used up, a job has its first packet of a kind dropped.

The kernel's ring buffer (Documentation/bpf/ringbuf.rst): two positions that only grow, on a page
each, and the data, which is mapped twice in a row so that a record never breaks. The programs
append, the agent reads and moves its position on; the position lives in the kernel, so an agent
that restarts goes on where the last one stopped.

Events are hints to look now. The same thing may be told twice (by two CPUs), and nothing is told
while the ring is full; the maps of quotas and drops are the truth.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lark_agent.model import DropReason

if TYPE_CHECKING:
    from lark_agent.linux.bpf import Map

_POSITION = struct.Struct("=Q")
_RECORD = struct.Struct("=II")  # length with two flags, and the page it is on
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_EVENT = struct.Struct("=IIIIQ")
_QUOTA_EXCEEDED, _FIRST_DROP = 1, 2


@dataclass(frozen=True, slots=True)
class QuotaExceeded:
    """A packet did not fit in a quota any more."""

    slot: int
    quota: int
    at_ns: int
    """Since boot (CLOCK_BOOTTIME)."""


@dataclass(frozen=True, slots=True)
class FirstDrop:
    """The first packet of a job was dropped for this reason, on one of the CPUs."""

    slot: int
    reason: DropReason
    at_ns: int
    """Since boot (CLOCK_BOOTTIME)."""


Event = QuotaExceeded | FirstDrop


class EventRing:
    """The reading end; one reader on a worker."""

    def __init__(self, ring: Map) -> None:
        """Map the pages of an open ring buffer, which the caller keeps open."""
        self._ring = ring
        self._size = ring.spec.max_entries
        read_write = mmap.PROT_READ | mmap.PROT_WRITE
        self._consumer = mmap.mmap(ring.fd, mmap.PAGESIZE, mmap.MAP_SHARED, read_write)
        self._data = mmap.mmap(
            ring.fd,
            mmap.PAGESIZE + 2 * self._size,
            mmap.MAP_SHARED,
            mmap.PROT_READ,
            offset=mmap.PAGESIZE,
        )

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are events (poll, epoll)."""
        return self._ring.fd

    def read(self) -> list[Event]:
        """Return the events that are there, without waiting."""
        events: list[Event] = []
        (position,) = _POSITION.unpack_from(self._consumer)
        (end,) = _POSITION.unpack_from(self._data)
        while position < end:
            start = mmap.PAGESIZE + position % self._size
            length, _ = _RECORD.unpack_from(self._data, start)
            if length & _BUSY:  # still being written; the next call has it
                break
            if not length & _DISCARDED:
                event = _decoded(_EVENT.unpack_from(self._data, start + _RECORD.size))
                if event is not None:
                    events.append(event)
            whole = _RECORD.size + (length & ~(_BUSY | _DISCARDED))
            position += (whole + 7) & ~7
            _POSITION.pack_into(self._consumer, 0, position)
        return events

    def close(self) -> None:
        """Unmap."""
        self._consumer.close()
        self._data.close()


def _decoded(fields: tuple[int, ...]) -> Event | None:
    """Return an event, None for one of a kind or reason that only a later release knows."""
    kind, slot, number, _, at_ns = fields
    if kind == _QUOTA_EXCEEDED:
        return QuotaExceeded(slot, number, at_ns)
    if kind == _FIRST_DROP and number in set(DropReason):
        return FirstDrop(slot, DropReason(number), at_ns)
    return None
