"""What a check has to say: a level, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lark_agent.cli.doctor.probe import Probe


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Works now, or for some jobs; worth a look."""
    FAIL = "fail"
    """Jobs will be refused, or have no network."""
    UNCHECKED = "unchecked"
    """Could not be looked at; the finding says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    found: str
    remedy: str = ""
    """Empty only where the level is ok."""


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table of checks."""

    name: str
    look: Callable[[Probe], Iterator[Finding]]
    needs_root: bool = False


def ok(found: str) -> Finding:
    """Nothing to do."""
    return Finding(Level.OK, found)


def warn(found: str, remedy: str) -> Finding:
    """Worth a look."""
    return Finding(Level.WARN, found, remedy)


def fail(found: str, remedy: str) -> Finding:
    """Must be repaired."""
    return Finding(Level.FAIL, found, remedy)


def unchecked(why: str, remedy: str) -> Finding:
    """Could not be looked at."""
    return Finding(Level.UNCHECKED, why, remedy)
