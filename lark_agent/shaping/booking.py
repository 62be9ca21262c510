"""What of the uplink is promised to whom.

A guarantee is a booking: of the uplink for a job outside all queues and for a queue (at its
configuration), of the queue's guarantee for a job in it. What is booked is never more than there
is, in either direction, so that every guarantee can be kept at once. Pure: no input or output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.errors import Unavailable
from lark_agent.model import Direction, Rates
from lark_agent.quantities import rate_text

if TYPE_CHECKING:
    from collections.abc import Mapping

UPLINK = ""
"""The name under which jobs outside all queues book."""


class Booking:
    """Guarantees by holder, within the uplink and its queues."""

    def __init__(self, uplink: Rates, queues: Mapping[str, Rates]) -> None:
        self._uplink = uplink
        self._queues = dict(queues)
        self._booked: dict[str, tuple[str, Rates]] = {}

    def book(self, holder: str, queue: str, wanted: Rates) -> None:
        """Book instead of what the holder has; raises Unavailable and keeps that if it is too much.

        What an earlier agent promised may be more than there is: then nothing is free.
        """
        others = {name: entry for name, entry in self._booked.items() if name != holder}
        free = self._free(queue, others)
        for direction in Direction:
            if wanted.of(direction) > free.of(direction):
                raise Unavailable(self._refusal(queue, wanted, free, direction))
        self.hold(holder, queue, wanted)

    def hold(self, holder: str, queue: str, wanted: Rates) -> None:
        """Book what has been promised already, whether it fits or not."""
        self._booked.pop(holder, None)
        if wanted:
            self._booked[holder] = (queue, wanted)

    def release(self, holder: str) -> None:
        """Give back what a holder has. Repeatable."""
        self._booked.pop(holder, None)

    def free(self, queue: str = UPLINK) -> Rates:
        """Return what can still be booked of a queue, or of the uplink outside all queues."""
        return self._free(queue, self._booked)

    def _capacity(self, queue: str) -> Rates:
        return self._queues.get(queue, Rates()) if queue else self._uplink

    def _free(self, queue: str, booked: Mapping[str, tuple[str, Rates]]) -> Rates:
        taken = [rates for where, rates in booked.values() if where == queue]
        if not queue:
            taken += self._queues.values()
        have = self._capacity(queue)
        return Rates(*(max(0, have.of(d) - sum(each.of(d) for each in taken)) for d in Direction))

    def _refusal(self, queue: str, wanted: Rates, free: Rates, direction: Direction) -> str:
        where = f"queue '{queue}'" if queue else "uplink"
        have = self._capacity(queue).of(direction)
        asked = (
            f"the job wants {rate_text(wanted.of(direction))} {direction.name.lower()} guaranteed"
        )
        if not have:
            return f"{asked}, and this worker's {where} has no rate to guarantee it from; " + (
                f"give [queues.{queue}] a guarantee" if queue else "give [uplink] a rate"
            )
        left = rate_text(free.of(direction))
        return (
            f"{asked}, and of the {rate_text(have)} of this worker's {where} {left} are left; "
            "run it on another worker, or later"
        )
