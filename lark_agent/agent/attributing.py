"""Which attachment a line of the log is about, if it does not say so itself.

Whoever builds, drains or enforces knows a slot or a sandbox's name; whoever decides knows a job.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lark_agent.agent.attachment import Attachment

_SANDBOX = re.compile(r"lark(\d+)")


def finder(living: Callable[[], Mapping[str, Attachment]]) -> Callable[[Mapping[str, object]], str]:
    """Return what finds the id of a living attachment by an event's slot, sandbox or job."""

    def find(event: Mapping[str, object]) -> str:
        slot, job = _slot(event), event.get("job")
        if slot is None and job is None:
            return ""
        for attachment in list(living().values()):  # the loop may change it meanwhile
            record = attachment.record
            if slot == record.slot or (slot is None and job == record.job.job_id):
                return record.attachment_id
        return ""

    return find


def _slot(event: Mapping[str, object]) -> int | None:
    slot = event.get("slot")
    if isinstance(slot, int):
        return slot
    found = _SANDBOX.fullmatch(str(event.get("sandbox", "")))
    return int(found[1]) if found else None
