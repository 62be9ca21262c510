"""From kernel counters to records: all attachments in one reading.

The kernel's counters of a slot start at zero with its attachment and only grow, so a reading *is*
the cumulative usage and nothing is subtracted or remembered between passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lark_agent.accounting.prices import Prices
    from lark_agent.datapath import Datapath
    from lark_agent.model import Record, Usage


def sample(
    datapath: Datapath, prices: Prices, records: Sequence[tuple[Record, int]]
) -> list[Record]:
    """Read the counters of all `records` at once and return their successors, with their cost.

    Beside each is the UTC time of the reading in nanoseconds, by its job's clock. Raises
    KernelError.
    """
    usage = read(datapath, [record.slot for record, _ in records])
    return [
        record.sampled(prices.priced(record.usage, usage[record.slot]), now_ns)
        for record, now_ns in records
    ]


def read(datapath: Datapath, slots: Iterable[int]) -> dict[int, Usage]:
    """Return slot → cumulative usage, read in one pass. Raises KernelError."""
    names = datapath.classes.names
    return {slot: counters.usage(names) for slot, counters in datapath.read(slots).items()}
