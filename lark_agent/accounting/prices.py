"""What traffic costs: the site's price for each class, applied as the bytes are counted.

A record's cost grows with every sample by what was added since the one before, at the prices of
that moment: a new price never makes the past dearer. Costs are whole millionths of the site's
currency unit. Rounding each addition would lose up to a millionth a sample; instead, with f(bytes)
the rounded-down cost of the whole, an addition costs f(now) - f(before): these sum to f(total), so
a record is exact to one millionth a class and one more for each change of a price.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lark_agent.config import Price
    from lark_agent.model import ClassUsage, Usage

MILLIONTHS = 10**6
GB = 10**9


@dataclass(frozen=True, slots=True)
class Prices:
    """Class → millionths of the currency unit a GB, as (sent, received); others are free."""

    of_class: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, prices: Mapping[str, Price]) -> Prices:
        """Take the site's table."""
        return cls(
            {
                name: (round(price.sent * MILLIONTHS), round(price.received * MILLIONTHS))
                for name, price in prices.items()
            }
        )

    def priced(self, before: Usage, now: Usage) -> Usage:
        """Return `now` with what it costs: the cost of `before`, and of what was added to it."""
        if not self.of_class and not before.cost:
            return now
        earlier = {entry.traffic_class: entry for entry in before.classes}
        classes = tuple(
            replace(entry, cost=self._cost(earlier.get(entry.traffic_class), entry))
            for entry in now.classes
        )
        return replace(now, classes=classes)

    def _cost(self, before: ClassUsage | None, now: ClassUsage) -> int:
        if before is None:
            return self._whole(now)
        return before.cost + self._whole(now) - self._whole(before)

    def _whole(self, entry: ClassUsage) -> int:
        sent, received = self.of_class.get(entry.traffic_class, (0, 0))
        return (entry.sent.bytes * sent + entry.received.bytes * received) // GB
