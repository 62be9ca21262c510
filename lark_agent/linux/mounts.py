"""What is mounted, as /proc/PID/mountinfo tells (proc_pid_mountinfo(5)).

Users choose names of mount points (fusermount3). Blanks, line ends and backslashes in them are
escaped there, and nothing else: so nothing else may separate words or lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of it."""

    root: str
    """What of the file system is shown: "/" is all of it."""
    point: str
    kind: str
    """The file system's type."""
    options: frozenset[str]
    """Of this mount, not of the file system."""


def mounts(mountinfo: str) -> Iterator[Mount]:
    """Read mountinfo; lines that are none are passed over."""
    for line in mountinfo.split("\n"):
        left, _, right = line.partition(" - ")
        words, kind = left.split(" "), right.partition(" ")[0]
        if len(words) > 5 and kind:
            root, point = map(_unescaped, words[3:5])
            yield Mount(root, point, kind, frozenset(words[5].split(",")))


def _unescaped(word: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), word)
