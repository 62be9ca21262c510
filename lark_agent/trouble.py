"""Errors that a service gets over, counted by name since its start.

Where an error is caught and neither raised again nor handed to whoever asked, the log tells of it
and `met(name)` counts it, so that what happens a thousand times shows without reading a log. The
counts are in the status (`errors`) of the agent, beside those of its background tasks, and of the
collector. Names are words for people and stay what they are: other programs watch them. A name
stands in one place.

It is one counter a process, like `lark_agent.crash`, because errors are met in every room, most of
which know nothing of the agent's status; and any thread may count.
"""

from __future__ import annotations

import threading
from collections import Counter

COLLECTOR_AWAY = "collector away"
"""Attempts to report that failed: doctor tells of these by the state that they are in now."""

_met: Counter[str] = Counter()
_lock = threading.Lock()


def met(name: str) -> None:
    """Count an error that is got over."""
    with _lock:
        _met[name] += 1


def counts() -> Counter[str]:
    """Return how often what was met."""
    with _lock:
        return _met.copy()
