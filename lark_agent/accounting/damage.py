"""How a store shows that the disk has damaged it, and not that the disk is full or gone.

SQLite's log has checksums, so what power cuts short is as if it had not been written. What a disk
loses or changes behind that is found when the store is opened: the whole file is checked (5 ms per
MB) and every record that somebody still waits for is decoded. A digit that changed inside of a
record is not found: the file has no checksums of its own.
"""

from __future__ import annotations

import sqlite3
from typing import TypeVar

import msgspec

from lark_agent.errors import StoreError

Kind = TypeVar("Kind")

ERRORS = (sqlite3.Error, msgspec.DecodeError, UnicodeDecodeError, OverflowError)
"""What reading a damaged store raises, and, of the first, what a sound one does."""
_PASSING = {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_CONSTRAINT,
}  # fmt: skip


SUFFIX = ".damaged-"
"""Of a file that was set aside, before the time."""


class Damaged(StoreError):  # noqa: N818  what the store is, as in `Refused`
    """A store is not as it was written."""


def decoded(value: object, kind: type[Kind]) -> Kind:
    """Return what a column holds as JSON; raises msgspec.DecodeError for a value of any type."""
    if not isinstance(value, (bytes, str)):
        raise msgspec.DecodeError(f"it has a {type(value).__name__} where JSON should be")
    return msgspec.json.decode(value, type=kind)


def is_damage(error: Exception) -> bool:
    """Tell damage from what passes: a disk that is full or gone."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _PASSING
    return isinstance(error, ERRORS)


def check(database: sqlite3.Connection) -> None:
    """Read the whole file; raises sqlite3.DatabaseError if it is damaged."""
    (said,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if said != "ok":
        raise sqlite3.DatabaseError(said)
