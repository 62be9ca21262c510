"""How large a worker's journal may grow, and what gives way when it is.

A collector that cannot be reached for a week makes the journal grow with every job. `Room` holds it
to a size. What goes, oldest first, once it is nine tenths full:

1. ended jobs that the collector has (on a worker that reports to none: ended jobs),
2. samples, which tell how usage spread over time; totals and hours stay.

What has not been reported and ends nowhere else is never given up: when that alone fills the size,
no new job begins (`Journal.begin`), and those that run are finished in the last bit, which is kept
for them. The file itself never shrinks; what is free in it is used again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

_FULL = 0.9
_AT_ONCE = 100
"""Attachments in one step: some 5 ms."""
_STEPS = 100


class Room:
    """The space of one journal; `size` in bytes, 0: without bound."""

    def __init__(self, db: sqlite3.Connection, size: int, *, reports: bool) -> None:
        self._db = db
        self.size = size
        self._ended = "final AND acknowledged >= sequence" if reports else "final"

    def used(self) -> int:
        """Return how many bytes of the file hold something."""
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def is_short(self) -> bool:
        """Tell whether nothing new should begin."""
        return bool(self.size) and self.used() > self.size * _FULL

    def make(self) -> int:
        """Forget what may go until there is room, as far as one pass does; returns how many rows.

        Within a transaction of the caller's.
        """
        forgotten = 0
        for _ in range(_STEPS):
            if not self.is_short():
                break
            step = self._forget_ended() or self._forget_samples()
            if not step:
                break
            forgotten += step
        return forgotten

    def _forget_ended(self) -> int:
        doomed = self._db.execute(
            f"SELECT attachment_id FROM attachments WHERE {self._ended} ORDER BY ended_ns LIMIT ?",  # noqa: S608  constant text
            (_AT_ONCE,),
        ).fetchall()
        return forget(self._db, doomed)

    def _forget_samples(self) -> int:
        return self._db.execute(
            "DELETE FROM samples WHERE sampled_ns <= "
            "(SELECT sampled_ns FROM samples ORDER BY sampled_ns LIMIT 1 OFFSET "
            "(SELECT count(*) / 2 FROM samples))"
        ).rowcount


def forget(db: sqlite3.Connection, doomed: list[tuple[str]]) -> int:
    """Delete all rows of some attachments; returns how many attachments."""
    for table in ("samples", "hours", "attachments"):
        db.executemany(f"DELETE FROM {table} WHERE attachment_id = ?", doomed)  # noqa: S608  constant names
    return len(doomed)
