"""Going on after damage: the file is set aside, and what can be read of it kept.

A damaged file keeps its content under another name, `….damaged-<UTC>`, for whoever wants to look at
it; a new one begins with the rows that can still be read, from both ends of each table. So jobs
whose rows survived go on, and records that the collector has not got yet are sent.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec
import structlog

from lark_agent.accounting import damage
from lark_agent.accounting.journal import Journal
from lark_agent.errors import StoreError
from lark_agent.model import Record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BESIDE = ("", "-wal", "-shm")
_TABLES = ("attachments", "samples", "hours")
log = structlog.get_logger(__name__)


def open_journal(path: Path, size: int = 0, *, reports: bool = True) -> tuple[Journal, Path | None]:
    """Open a journal as `Journal` does; one that is damaged is set aside, and where is returned.

    Raises StoreError.
    """
    try:
        return Journal(path, size, reports=reports), None
    except damage.Damaged as error:
        aside = set_aside(path)
        Journal(path).close()
        try:
            kept = copy(aside, path)
            journal = Journal(path, size, reports=reports)
        except (sqlite3.Error, damage.Damaged) as problem:  # what was kept is not worth keeping
            log.error("nothing can be kept of the journal", error=str(problem))
            set_aside(path)
            kept, journal = 0, Journal(path, size, reports=reports)
        log.error("the journal was damaged", error=str(error), set_aside=str(aside), kept=kept)
        return journal, aside


def set_aside(path: Path) -> Path:
    """Give a damaged store another name; returns that. Raises StoreError."""
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}{damage.SUFFIX}{when}")
    number = 0
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}{damage.SUFFIX}{when}.{number}")
    try:
        for beside in _BESIDE:
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + beside).rename(aside.with_name(aside.name + beside))
    except OSError as error:
        raise StoreError(
            f"cannot set the damaged {path} aside: {error.strerror}; move it away by hand"
        ) from error
    return aside


def copy(aside: Path, path: Path) -> int:
    """Copy what can be read of a journal into an empty one; returns how many attachments."""
    with ExitStack() as close:
        damaged = close.enter_context(contextlib.closing(sqlite3.connect(aside)))
        fresh = close.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
        fresh.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            for names, row in _readable(damaged, table):
                marks = ",".join("?" * len(row))
                with contextlib.suppress(*damage.ERRORS):
                    fresh.execute(
                        f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})",  # noqa: S608  columns of our own table
                        row,
                    )
        fresh.execute("COMMIT")
        (number,) = fresh.execute("SELECT count(*) FROM attachments").fetchone()
    return int(number)


def _readable(database: sqlite3.Connection, table: str) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Yield column names and row, from the first to the damage, and from the last back to it.

    By row number, which reads no index; by key where the table has none.
    """
    keys = ["rowid"]
    with contextlib.suppress(*damage.ERRORS):
        columns = database.execute(f"PRAGMA table_info({table})").fetchall()
        keys += [", ".join(str(name) for _, name, *_, key in columns if key)]
    for by, order in itertools.product(keys, ("ASC", "DESC")):
        with contextlib.suppress(*damage.ERRORS):
            terms = ", ".join(f"{key} {order}" for key in by.split(", "))
            rows = database.execute(f"SELECT * FROM {table} ORDER BY {terms}")  # noqa: S608  constant names
            names = [str(column[0]) for column in rows.description]
            for row in rows:
                if table != "attachments" or _is_whole(dict(zip(names, row, strict=True))):
                    yield ", ".join(names), row


def _is_whole(row: dict[str, object]) -> bool:
    """Tell whether a row's record can be decoded and is the row's."""
    try:
        record = msgspec.json.decode(row["body"], type=Record)  # type: ignore[call-overload]  # refused below
    except (*damage.ERRORS, TypeError):
        return False
    named = record.attachment_id, record.sequence, record.final
    return named == (row["attachment_id"], row["sequence"], bool(row["final"]))
