"""The time of a job: the worker's clock when it came, and how long it has run since.

Somebody sets the worker's clock, or it is found wrong by hours after a start. What has begun then
goes on by the clock of before plus the kernel's CLOCK_BOOTTIME, which nobody sets and which counts
suspended time, too: a record's times are in order and their differences are true. What begins
later has the new time. An agent that takes a job over goes by the clock that it finds, but never
before the job's last sample. Ids begin with a time and tell which job came later, also if the clock
was set back between the two. Quotas' periods, certificates and days of prices are the calendar's,
and so go by the clock as it is set.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Self
from uuid import UUID

from lark_agent.model import new_attachment_id

_MILLISECOND_NS = 10**6
"""What the time in an id is counted in."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Goes on evenly from a moment that was told."""

    began_ns: int
    """UTC."""
    boot_ns: int
    """CLOCK_BOOTTIME at the same moment."""

    @classmethod
    def at(cls, utc_ns: int) -> Self:
        """Let it be a UTC time just now."""
        return cls(utc_ns, time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def now_ns(self) -> int:
        """Return its UTC time."""
        return self.began_ns + time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self.boot_ns


class Ids:
    """Makes attachment ids, each above all that were made or seen before."""

    def __init__(self) -> None:
        self._latest_ns = 0

    def new(self, now_ns: int) -> str:
        """Return an id of a UTC time, or of what comes next to the latest one."""
        self._latest_ns = max(now_ns, self._latest_ns + _MILLISECOND_NS)
        return new_attachment_id(self._latest_ns, os.urandom(10))

    def seen(self, attachment_id: str) -> None:
        """Stay above an id that an earlier agent made."""
        self._latest_ns = max(self._latest_ns, (UUID(attachment_id).int >> 80) * _MILLISECOND_NS)
