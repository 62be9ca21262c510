"""The words by which a batch system names a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lark_agent.model import Scheduler


@dataclass(frozen=True, slots=True)
class Naming:
    """What one batch system calls the job; empty where it does not say."""

    scheduler: Scheduler
    job_id: str
    owner: str
    accounting_group: str
