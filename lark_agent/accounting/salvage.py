"""Going on after damage: the file is set aside, and what can be read of it kept.

A damaged file keeps its content under another name, `….damaged-<UTC>`, for whoever wants to look at
it; a new one begins with the rows that can still be read, from both ends of each table. So jobs
whose rows survived go on, and records that the collector has not got yet are sent. The journal and
the file of quotas are gone through alike: a `_Kind` says what is in each.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog

from lark_agent import trouble
from lark_agent.accounting import allotments, damage
from lark_agent.accounting.allotments import Allotments
from lark_agent.accounting.journal import Journal, Launch, Process
from lark_agent.errors import StoreError
from lark_agent.model import NetworkPlan, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_BESIDE = ("", "-wal", "-shm")
Store = TypeVar("Store", Journal, Allotments)
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Kind:
    """One of the two stores."""

    event: str
    """What the log says."""
    tables: tuple[str, ...]
    """The first is the one whose rows are counted for people."""
    is_whole: Callable[[str, dict[str, Any]], bool]
    """Whether a row of a table, by column, is one that was written."""


def open_journal(path: Path, size: int = 0, *, reports: bool = True) -> tuple[Journal, Path | None]:
    """Open a journal as `Journal` does; one that is damaged is set aside, and where is returned.

    Raises StoreError.
    """
    return _open(lambda: Journal(path, size, reports=reports), path, _JOURNAL)


def open_allotments(path: Path) -> tuple[Allotments, Path | None]:
    """Open the file of quotas, likewise."""
    return _open(lambda: Allotments(path), path, _QUOTAS)


def _open(store: Callable[[], Store], path: Path, kind: _Kind) -> tuple[Store, Path | None]:
    try:
        return store(), None
    except damage.Damaged as error:
        aside = set_aside(path)
        store().close()
        try:
            kept = _copy(aside, path, kind)
            opened = store()
        except (sqlite3.Error, damage.Damaged) as problem:  # what was kept is not worth keeping
            trouble.met("keep anything of a store")
            log.error("nothing can be kept of it", file=str(path), error=str(problem))
            set_aside(path)
            kept, opened = 0, store()
        log.error(kind.event, error=str(error), set_aside=str(aside), kept=kept)
        return opened, aside


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


def _copy(aside: Path, path: Path, kind: _Kind) -> int:
    """Copy what can be read of a store into an empty one; returns the rows of its first table."""
    with ExitStack() as close:
        damaged = close.enter_context(contextlib.closing(sqlite3.connect(aside)))
        fresh = close.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
        fresh.execute("BEGIN IMMEDIATE")
        for table in kind.tables:
            for names, row in _readable(damaged, table, kind):
                marks = ",".join("?" * len(row))
                with contextlib.suppress(*damage.ERRORS):
                    fresh.execute(
                        f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})",  # noqa: S608  columns of our own table
                        row,
                    )
        fresh.execute("COMMIT")
        (number,) = fresh.execute(f"SELECT count(*) FROM {kind.tables[0]}").fetchone()  # noqa: S608  constant name
    return int(number)


def _readable(
    database: sqlite3.Connection, table: str, kind: _Kind
) -> Iterator[tuple[str, tuple[object, ...]]]:
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
                if kind.is_whole(table, dict(zip(names, row, strict=True))):
                    yield ", ".join(names), row


def _is_record(table: str, row: dict[str, Any]) -> bool:
    """Tell whether all of an attachment can be decoded, and its record is the row's.

    One row with a damaged plan, let in, would cost the new journal as it did the old one.
    """
    if table != "attachments":
        return True
    try:
        record = damage.decoded(row["body"], Record)
        if row.get("plan") is not None:
            damage.decoded(row["plan"], NetworkPlan)
        if row.get("launch") is not None:
            damage.decoded(row["launch"], Launch)
        msgspec.convert({name: row[name] for name in ("pid", "start_time", "boot_id")}, Process)
    except (*damage.ERRORS, TypeError):
        return False
    named = record.attachment_id, record.sequence, record.final
    return named == (row["attachment_id"], row["sequence"], bool(row["final"]))


_JOURNAL = _Kind("the journal was damaged", ("attachments", "samples", "hours"), _is_record)
_QUOTAS = _Kind(
    "the file of quotas was damaged",
    allotments.TABLES,
    allotments.is_whole,
)
