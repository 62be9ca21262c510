"""Quotas in the kernel: the programs charge every packet, the agent sets limits and reads.

Each side writes a map of its own, so a limit can change while packets are charged, and no charge is
lost. A change begins a new round: a quota that was used up is not any more, unless it is under the
new limit too, and then it is told again. A quota's number (index) is the agent's to give out; what
it counts, the plans that refer to it say (`QuotaUse`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from lark_agent.datapath.layout import QUOTA, QUOTA_USED, u32

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lark_agent.linux.bpf import Map

UNLIMITED = (1 << 63) - 1
"""A limit that is never reached: only counts."""


class QuotaAction(IntEnum):
    """What happens when a quota is used up."""

    NOTIFY = 0
    """An event; packets go on."""
    THROTTLE = 1
    """An event; packets go on, and the agent lowers a rate."""
    CUT_CLASS = 2
    """What the quota counts is dropped. The packet that does not fit any more is the first."""
    CUT_ALL = 3
    """From then on every packet is dropped of every slot that refers to the quota."""


class QuotaState(NamedTuple):
    """What became of a quota."""

    used: int
    """Bytes that passed; with an action that cuts never more than the limit."""
    exceeded: bool
    """Whether it was used up in this round."""


class QuotaTable:
    """All quotas of the worker. Raises KernelError if the kernel refuses, as for a wrong index."""

    def __init__(self, limits: Map, used: Map) -> None:
        self._limits = limits
        self._used = used
        self.size: int = limits.spec.max_entries

    def set(self, index: int, limit: int, action: QuotaAction) -> None:
        """Set a limit in bytes; takes effect on the next packet. What is used stays used."""
        _, _, this_round = QUOTA.unpack(self._limits.get(u32(index)) or bytes(QUOTA.size))
        following = (this_round + 1) & 0xFFFFFFFF or 1
        self._limits.set(u32(index), QUOTA.pack(limit, action, following))

    def limit(self, index: int) -> int:
        """Return the limit that was set last."""
        limit, _, _ = QUOTA.unpack(self._limits.get(u32(index)) or bytes(QUOTA.size))
        return int(limit)

    def state(self, indices: Iterable[int]) -> dict[int, QuotaState]:
        """Read quotas."""
        found = {}
        for index in indices:
            used, exceeded, _ = QUOTA_USED.unpack(self._used.get(u32(index)) or bytes(16))
            _, _, this_round = QUOTA.unpack(self._limits.get(u32(index)) or bytes(16))
            # never set: both rounds are 0
            found[index] = QuotaState(used, bool(this_round) and exceeded == this_round)
        return found

    def reset(self, index: int) -> None:
        """Forget what is used, before anybody is charged; a charge at this moment may be lost."""
        self._used.set(u32(index), bytes(QUOTA_USED.size))
