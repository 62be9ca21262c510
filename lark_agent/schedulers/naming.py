"""What a batch system's table says, and what it is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lark_agent.model import Scheduler

Ad = dict[str, str | int | float | bool]
"""The literal attributes of a job ad."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a request tells about the job."""

    environment: Mapping[str, str]
    ad: Ad | None = None
    """The job ad, names in lower case; None if there is none."""


@dataclass(frozen=True, slots=True)
class Naming:
    """What one batch system calls the job; empty where it does not say."""

    job_id: str
    accounting_group: str = ""
    owner: str = ""
    """Whose job it is, by a word that the job's user cannot choose; needed where accounts run jobs
    of many, and empty where every job has its owner's account."""


@dataclass(frozen=True, slots=True)
class BatchSystem:
    """One batch system."""

    scheduler: Scheduler
    launchers: tuple[str, ...]
    """Commands of root that start its jobs: the parent process of lark-run, 15 bytes at most."""
    environment: tuple[str, ...]
    """Variables that name its jobs; lark-run sends them."""
    naming: Callable[[Said], Naming | None]
    """Answers None if the job is not its."""
    brings_ad: bool = False
    """Its jobs have a job ad; in a job of another system one is not the batch system's."""
    one_job_each: bool = False
    """A launcher's process starts one job in its life: all that it starts is that job."""
