"""Which HTB classes a plan takes, in one direction. Pure: no input or output.

::

    1:  qdisc; packets of no class pass unhindered
    └── 1:1  capacity: what all jobs together may use
        ├── 1:11, 1:21, …  one for each queue: its guarantee, and at most its rate
        │   └── leaves of its jobs
        └── 1:10, 1:20, …  leaves of jobs outside all queues

A leaf's rate is the job's guarantee, its ceil the cap. HTB serves what is within its rate first,
and lends the rest by priority, and in equal turns among those of the same one. Jobs without a
guarantee get MINIMUM, so that none starves; it is not booked.

**Numbers.** A leaf's minor is a multiple of eight: it stays in a packet's priority on the way to
the uplink, where a qdisc may look at the low bits, which then say "best effort" (prio2band).

**Rates** are those of IP packets; HTB counts frames, 14 bytes more. They are converted for packets
of 1500 bytes: smaller ones get less than their rate (by 14 bytes each), larger under 1 % more.

**Super-packets** of 64 KiB are one step for HTB. Below CUT_BELOW that would be a spike (at 1 Mbit/s
one lasts half a second), so there the leaf's queue cuts them first.

**Queues.** What a job sends was counted before it waits, and must not be dropped after: its
sockets' buffers are charged until a packet leaves the leaf (back-pressure), and SENT_LIMIT bounds
only who evades that. What a job receives comes from far senders that know congestion by loss:
RECEIVED_TIME bounds the delay that the job makes for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lark_agent.linux.traffic import HtbClass
from lark_agent.model import DEFAULT_PRIORITY, Direction, Rates, precedence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lark_agent.model import NetworkPlan

CAPACITY = 1
NO_RATES = Rates()
MINIMUM = 8_000
"""Bit/s of a class without a guarantee."""
UNLIMITED = 10**12
"""Bit/s of an uplink without a rate."""
CUT_BELOW = 200_000_000
"""Bit/s."""
UNCUT = 1 << 20
"""Bytes; no super-packet is longer."""
BURST_NS, SLOW_BURST_NS = 7_000_000, 4_000_000
"""Longest that a class may be ahead of its rate, to make up for late timers of a busy worker: with
a super-packet on top it stays below a tenth of 100 ms, and with a packet on top below SLOW."""
SLOW = 10_000_000
"""Bit/s."""
SENT_LIMIT = 1 << 24
RECEIVED_TIME = 0.1
"""Seconds."""
_RECEIVED_LEAST = 1 << 17
_LINK_HEADER = 14
_USUAL_PACKET = 1500
_FULL_QUANTUM = 1 << 16


@dataclass(frozen=True, slots=True)
class Share:
    """A queue: a share of the uplink for a group of jobs."""

    rate: Rates = NO_RATES
    guarantee: Rates = NO_RATES
    priority: int = DEFAULT_PRIORITY


@dataclass(frozen=True, slots=True)
class Leaf:
    """One job's class and its queue."""

    shape: HtbClass
    limit: int
    """Bytes that may wait."""
    cut_to: int
    """Longest packet that is not cut, in bytes."""


class Tree:
    """The hierarchy of one direction."""

    def __init__(self, direction: Direction, uplink: Rates, queues: Mapping[str, Share]) -> None:
        self._direction = direction
        self._uplink = uplink.of(direction)
        self._capacity = self._uplink or UNLIMITED
        self._queues = queues
        self._minors = {name: 16 * n + 1 for n, name in enumerate(sorted(queues), start=1)}

    def shapes(self, plan: NetworkPlan) -> bool:
        """Tell whether a plan takes a class in this direction at all."""
        share = self._queues.get(plan.queue, Share())
        limits = (plan.rate, plan.guarantee, share.rate, share.guarantee)
        return bool(self._uplink or any(each.of(self._direction) for each in limits))

    def inner(self) -> list[HtbClass]:
        """Return the classes that do not depend on jobs, parents first."""
        capacity = self._shape(CAPACITY, 0, self._capacity, self._capacity, 0)
        queues = [
            self._shape(
                self._minors[name],
                CAPACITY,
                max(MINIMUM, share.guarantee.of(self._direction)),
                min(share.rate.of(self._direction) or UNLIMITED, self._capacity),
                share.priority,
            )
            for name, share in self._queues.items()
        ]
        return [capacity, *queues]

    def leaf(self, slot: int, plan: NetworkPlan, mtu: int) -> Leaf:
        """Return the class of the job in a slot, whose packets have at most `mtu` bytes."""
        share = self._queues.get(plan.queue, Share())
        caps = (plan.rate.of(self._direction), share.rate.of(self._direction), self._capacity)
        ceil = min(cap for cap in caps if cap)
        rate = max(MINIMUM, plan.guarantee.of(self._direction))
        shape = self._shape(
            leaf_minor(slot), self._minors.get(plan.queue, CAPACITY), rate, ceil,
            precedence(plan.priority, share.priority),
        )  # fmt: skip
        return Leaf(shape, self._limit(shape), mtu + _LINK_HEADER if ceil < CUT_BELOW else UNCUT)

    def _limit(self, shape: HtbClass) -> int:
        if self._direction is Direction.SENT:
            return SENT_LIMIT
        return min(SENT_LIMIT, max(_RECEIVED_LEAST, int(shape.ceil * RECEIVED_TIME)))

    def _shape(self, minor: int, parent: int, rate: int, ceil: int, priority: int) -> HtbClass:
        # one for all: turns would not be equal otherwise. Below CUT_BELOW everything is cut.
        quantum = 2 * (_USUAL_PACKET + _LINK_HEADER)
        burst = BURST_NS if ceil >= SLOW else SLOW_BURST_NS
        return HtbClass(
            minor, parent, frames(rate), frames(max(rate, ceil)), burst, priority,
            _FULL_QUANTUM if self._capacity >= CUT_BELOW else quantum,
        )  # fmt: skip


def leaf_minor(slot: int) -> int:
    """Return the minor of the leaf of a slot, 0 to 4095."""
    return min(16 * (slot + 1), 0xFFF8)


def frames(rate: int) -> int:
    """Return bytes/s of frames for bit/s of IP packets of 1500 bytes."""
    return rate * (_USUAL_PACKET + _LINK_HEADER) // (8 * _USUAL_PACKET)
