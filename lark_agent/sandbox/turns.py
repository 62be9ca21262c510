"""Who waits for a sandbox, and whose turn it is: users in turn, the jobs of each in their order.

One user who starts a thousand jobs at once delays another's first by one job, not by a thousand.
Who joins has their first turn after everybody who waits already.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lark_agent.sandbox.connectivity import Sandbox

    Waiter = asyncio.Future[Sandbox]


class Turns:
    """A queue of waiters, by user."""

    def __init__(self) -> None:
        self._waiting: dict[int, deque[Waiter]] = {}
        """By user; a dictionary's order is the order of the next turns."""

    def __len__(self) -> int:
        """Return how many wait."""
        return sum(map(len, self._waiting.values()))

    def join(self, user: int) -> Waiter:
        """Wait as a user's last."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(waiter)
        return waiter

    def leave(self, user: int, waiter: Waiter) -> None:
        """Wait no longer; nothing happens if it was this one's turn meanwhile."""
        mine = self._waiting.get(user, deque())
        if waiter in mine:
            mine.remove(waiter)
        if not mine:
            self._waiting.pop(user, None)

    def next(self) -> Waiter | None:
        """Return whose turn it is, who waits no longer then; None if nobody waits."""
        for user in self._waiting:
            mine = self._waiting.pop(user)
            waiter = mine.popleft()
            if mine:
                self._waiting[user] = mine
            return waiter
        return None
