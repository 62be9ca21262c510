"""Changes to what a running job may do: by an admin, or because a quota is used up.

Values are read as those of a profile are, by the words of the policy in force, and put in force as
at the job's start, for its next packet. What the sandbox is built of (connectivity, network,
address families) stays. Every change is told in the job's record.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from lark_agent.model import Change
from lark_agent.policy.comparing import written
from lark_agent.policy.vocabulary import SETTINGS, UnusableValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lark_agent.agent.attachment import Attachment
    from lark_agent.agent.attachments import Attachments
    from lark_agent.model import NetworkPlan, Record
    from lark_agent.policy.vocabulary import Vocabulary

BUILT = ("connectivity", "network", "ip")
"""What a sandbox is built of; no living job's can be changed."""
CUT = "cut"
CHANGEABLE = (CUT, *(setting for setting in SETTINGS if setting not in BUILT))
_LEAST_PREFIX = 8


class Changing:
    """Changes living attachments."""

    def __init__(self, attachments: Attachments, words: Callable[[], Vocabulary]) -> None:
        self._attachments = attachments
        self._words = words

    async def change(self, job: str, settings: Mapping[str, str], by: str) -> Record:
        """Give a running job other settings and return its record.

        `job` is an attachment id, the start of one, or the batch system's id. Raises LookupError if
        no such job runs here, UnusableValue (a ValueError) for what cannot be set, Refused if it
        does not fit, LarkError if kernel or journal refuse; then everything stays as it was.
        """
        if not settings:
            raise UnusableValue(f"nothing to set; there is {', '.join(CHANGEABLE)}")
        attachment = self._find(job)
        plan = self._still_there(attachment.plan)
        for setting, value in settings.items():
            plan = self._put(plan, setting, value)
        if settings.keys() != {CUT}:  # which asks for nothing that could be lacking by now
            plan = _without_loss(plan, self._words().check(plan), settings)
        now = time.time_ns()
        told = dict.fromkeys(settings)
        if plan.dscp != attachment.plan.dscp:
            told["dscp"] = None  # it follows the priority, and the queue
        changes = [Change(now, by, setting, _said(plan, setting)) for setting in told]
        return await self._attachments.change(attachment, plan, changes)

    def _still_there(self, plan: NetworkPlan) -> NetworkPlan:
        """Leave out classes and services that the site has unlisted since the job began.

        They have no address or port any more, so nothing is taken from the job.
        """
        words = self._words()
        return replace(
            plan,
            reach=None if plan.reach is None else plan.reach & words.classes,
            services=None if plan.services is None else plan.services & words.services,
        )

    def _find(self, job: str) -> Attachment:
        living = self._attachments.living
        found = [
            attachment
            for key, attachment in living.items()
            if not attachment.record.is_transfer
            if job in {key, attachment.record.job.job_id}
            or (len(job) >= _LEAST_PREFIX and key.startswith(job))
        ]
        if not found:
            raise LookupError(
                f"no job '{job}' runs on this worker; a change is asked of the worker that runs "
                "it (lark job tells which)"
            )
        if len(found) > 1:
            ids = ", ".join(attachment.record.attachment_id for attachment in found[:4])
            raise UnusableValue(f"'{job}' is several jobs here: {ids}; give one of these ids")
        return found[0]

    def _put(self, plan: NetworkPlan, setting: str, value: str) -> NetworkPlan:
        if setting == CUT:
            if value.lower() not in {"yes", "no"}:
                raise UnusableValue(f"cut={value}: say yes or no")
            return replace(plan, cut=value.lower() == "yes")
        if setting not in CHANGEABLE:
            raise UnusableValue(
                f"'{setting}' cannot be set for a running job; there is {', '.join(CHANGEABLE)}"
            )
        try:
            return self._words().put(plan, setting, int(value) if value.isdecimal() else value)
        except UnusableValue as error:
            raise UnusableValue(f"{setting}={value}: {error}") from error


def _without_loss(
    wanted: NetworkPlan, plan: NetworkPlan, settings: Mapping[str, str]
) -> NetworkPlan:
    """Return a checked plan; raises UnusableValue if it leaves out what was to be set."""
    if "ports" in settings and wanted.ports != plan.ports:
        raise UnusableValue(
            f"ports={settings['ports']}: with inbound {plan.inbound} no port is opened; set "
            "inbound=ports, too"
        )
    return plan


def _said(plan: NetworkPlan, setting: str) -> str:
    if setting == CUT:
        return "yes" if plan.cut else "no"
    return written(plan, setting)
