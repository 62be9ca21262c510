"""How a worker notices that the collector forgot what it had acknowledged.

A store counts the batches it took from each worker, in the transaction that takes them, and tells
the count with each acknowledgement: its mark. The worker keeps the last one with what it confirms.
A store that comes back with a lower mark was restored from a backup; one of another identity is a
new one, or another machine's. Either way the worker sends again all that its journal still has;
what the store knows already changes nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mark:
    """How much of one worker a store has."""

    store: int
    """The store's identity, a random number from its making; 0: a collector that tells none."""
    number: int
    """Batches of the worker in it."""

    def has_lost(self, told: Mark | None) -> bool:
        """Tell whether the store with this mark lacks something that was there at `told`."""
        if not self.store or told is None or not told.store:
            return False
        return self.store != told.store or self.number < told.number
