"""The site's callout: a program that may overrule the policy for one job.

Its words are those of `lark_agent.policy.overrides`, how it is run those of
`lark_agent.agent.programs`; it is killed when the job hangs up, too. At most `_AT_ONCE` run at a
time; the rest wait, and their time begins when theirs do.

What fails is logged with what the program said on standard error, and then the site's
`on_failure` holds. Ads that are too long to be told refuse the job whatever the site chose, or a
job could grow its ad until nobody asks the callout any more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from lark_agent.agent.programs import ProgramFailed, run
from lark_agent.config import OnFailure
from lark_agent.errors import PolicyRefusal, Unavailable
from lark_agent.policy.overrides import MAX_BYTES, Overrides, UnreadableAnswer, question

if TYPE_CHECKING:
    from lark_agent.policy.site import Asking, SitePolicy

_AT_ONCE = 8
log = structlog.get_logger(__name__)


class Callouts:
    """Runs the callout of whichever policy holds."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def ask(self, policy: SitePolicy, asking: Asking) -> Overrides:
        """Return what the callout of a policy that has one overrules.

        Raises PolicyRefusal for ads too long for it, and Unavailable if it fails and the site
        does not let jobs go on without it.
        """
        callout = policy.callout
        job, machine = policy.ads(asking)
        told = question(job, machine)
        if len(told) > MAX_BYTES:
            raise PolicyRefusal(
                f"the ads are {len(told)} bytes; the site's callout takes {MAX_BYTES}; shorten "
                "the job's ad (environment and arguments are the usual cause)"
            )
        try:
            async with self._room:
                answer = await run(
                    callout.command, callout.user, callout.timeout_seconds, told, MAX_BYTES
                )
                return Overrides.parse(answer, machine)
        except (ProgramFailed, UnreadableAnswer) as error:
            log.error(
                "callout failed", command=callout.command[0], job=asking.job.job_id,
                error=str(error), on_failure=callout.on_failure.value,
            )  # fmt: skip
            if callout.on_failure is OnFailure.CONTINUE:
                return Overrides()
            raise Unavailable(
                f"the site's policy cannot decide: its callout failed ({error}); "
                "tell the site's admin"
            ) from error
