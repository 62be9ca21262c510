"""The site's quota hook: a program that hears of used-up quotas, for mail, tickets or a pager.

It reads one JSON object: quota, scope, subject, period, action, used, limit (bytes), worker, at
(ISO 8601, UTC) and the jobs that are concerned here. It is run as the site's callout is
(`lark_agent.agent.programs`), at most so many times an hour as the site says: an owner whose
thousand jobs end a quota each is no reason to send a thousand mails. What is over is logged only,
as is what fails; nothing waits for it.
"""

from __future__ import annotations

import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import structlog

from lark_agent import trouble
from lark_agent.agent import programs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lark_agent.config import QuotaHook

_HOUR_SECONDS = 3600.0
_MOST_ANSWERED = 4096
log = structlog.get_logger(__name__)


class Hook:
    """Runs one program within its limits."""

    def __init__(self, settings: QuotaHook, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock = clock
        self._runs: deque[float] = deque()

    async def run(self, told: Mapping[str, Any]) -> None:
        """Run the program, unless it ran too often in the hour before now."""
        settings, now = self.settings, self._clock()
        while self._runs and self._runs[0] <= now - _HOUR_SECONDS:
            self._runs.popleft()
        what = {key: told[key] for key in ("quota", "subject", "action")}
        if len(self._runs) >= settings.per_hour:
            trouble.met("quota hook left out")
            log.warning("quota hook not run", why=f"{settings.per_hour} runs in an hour", **what)
            return
        self._runs.append(now)
        try:
            await programs.run(
                settings.command, settings.user, settings.timeout_seconds,
                json.dumps(told).encode(), _MOST_ANSWERED,
            )  # fmt: skip
        except programs.ProgramFailed as error:
            trouble.met("quota hook failed")
            log.error("quota hook failed", command=settings.command[0], error=str(error), **what)
