"""What this worker holds of quotas, durable: its leases, and what it used of each pool.

An **allotment** is an entry of the kernel's quota map: one job's own quota, or this worker's lease
of what an owner or group shares. The kernel counts what it used; this file remembers whose it is,
what was granted, and, for a machine that crashes, what was used when last looked at. A lease that
is closed stays until the collector has heard of it. Where there is no collector, `spent` is the
book: the worker is a pool of its own. A damaged file is set aside, and what can be read of it kept
(`lark_agent.accounting.salvage`); what running jobs are charged to, the kernel knows too.

A file beside the journal and not a table in it, because it belongs to the kernel thread: a job
begins there, and the row must be there before the first packet is charged. Commits do not wait
for the disk; what a power cut loses is a lease that the book then counts as used, or bytes since
the last look, as in a record that it truncates.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from lark_agent import crash
from lark_agent.accounting import damage
from lark_agent.accounting.journal import CACHE_KIB
from lark_agent.accounting.quotas import PERIOD, PoolKey, Standing, periods_of
from lark_agent.config import QuotaAction, QuotaScope
from lark_agent.errors import StoreError
from lark_agent.model import Rates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

FILE_NAME = "quotas.sqlite"
TABLES = ("leases", "spent", "throttled")
NO_ENTRY = -1
_NUMBERS = frozenset({"bytes", "entry", "granted", "used", "changed_ns", "dry"})
_SCHEMA = """
CREATE TABLE IF NOT EXISTS leases (
    lease TEXT PRIMARY KEY,
    quota TEXT NOT NULL, scope TEXT NOT NULL, subject TEXT NOT NULL, period TEXT NOT NULL,
    owner TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    action TEXT NOT NULL,
    entry INTEGER NOT NULL,
    granted INTEGER NOT NULL,
    used INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    changed_ns INTEGER NOT NULL,
    dry INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    quota TEXT NOT NULL, scope TEXT NOT NULL, subject TEXT NOT NULL, period TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    action TEXT NOT NULL,
    used INTEGER NOT NULL,
    changed_ns INTEGER NOT NULL,
    PRIMARY KEY (quota, scope, subject, period)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS throttled (
    attachment_id TEXT NOT NULL, quota TEXT NOT NULL, rates BLOB NOT NULL,
    PRIMARY KEY (attachment_id, quota)
) WITHOUT ROWID;
"""


@dataclass(slots=True, eq=False)
class Allotment:
    """One entry of the kernel's quota map; the fields that change are saved by `put`."""

    lease: str
    """UUIDv7."""
    key: PoolKey
    owner: str
    """Of the job that it was made for."""
    limit: int
    """Of the pool, in bytes, as this worker is configured."""
    action: str
    """A `QuotaAction`."""
    entry: int
    """Index in the kernel's map; NO_ENTRY once it is closed."""
    granted: int = 0
    """What this worker may use."""
    used: int = 0
    """As last read."""
    boot_id: str = ""
    changed_ns: int = 0
    dry: bool = False
    """A packet did not fit in it any more."""


class Allotments:
    """An open file. Belongs to the kernel thread; sqlite3's errors become StoreError.

    Opening it raises Damaged if it is not as it was written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._trying("open"):
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                path.chmod(0o600)
                for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
                    self._db.execute(f"PRAGMA {pragma}")
                self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
                damage.check(self._db)
                self._db.executescript(_SCHEMA)
                self._check_rows()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _check_rows(self) -> None:
        for table in TABLES:
            rows = self._db.execute(f"SELECT * FROM {table}")  # noqa: S608  constant names
            columns = [str(column[0]) for column in rows.description]
            for row in rows:
                if not is_whole(table, dict(zip(columns, row, strict=True))):
                    raise sqlite3.DatabaseError(f"a row of {table} is not one that was written")

    def all(self) -> list[Allotment]:
        """Return what is held, and what the collector has not heard the end of."""
        with self._trying("read"):
            rows = self._db.execute("SELECT * FROM leases ORDER BY lease").fetchall()
        return [Allotment(row[0], PoolKey(*row[1:5]), *row[5:]) for row in rows]

    def put(self, allotment: Allotment) -> None:
        """Remember an allotment as it is now."""
        a = allotment
        with self._trying("write"):
            self._db.execute(
                "INSERT OR REPLACE INTO leases VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    a.lease, *a.key, a.owner, a.limit, a.action, a.entry, a.granted, a.used,
                    a.boot_id, a.changed_ns, a.dry,
                ),
            )  # fmt: skip

    def settle(self, allotment: Allotment) -> None:
        """Close an allotment: what it used is spent, and its entry is free."""
        allotment.entry, allotment.granted = NO_ENTRY, allotment.used
        with self._trying("write"), self._db:  # both or neither
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT INTO spent VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET "
                "bytes = excluded.bytes, action = excluded.action, used = used + excluded.used, "
                "changed_ns = excluded.changed_ns",
                (
                    *allotment.key, allotment.limit, allotment.action, allotment.used,
                    allotment.changed_ns,
                ),
            )  # fmt: skip
            crash.here("lease.spent")
            self._db.execute(
                "UPDATE leases SET entry = ?, granted = ?, used = ? WHERE lease = ?",
                (NO_ENTRY, allotment.granted, allotment.used, allotment.lease),
            )

    def forget(self, lease: str) -> None:
        """Remove what nobody has to hear of any more."""
        with self._trying("write"):
            self._db.execute("DELETE FROM leases WHERE lease = ?", (lease,))

    def spent(self, key: PoolKey) -> int:
        """Return what closed allotments used of a pool on this worker."""
        with self._trying("read"):
            row = self._db.execute(
                "SELECT used FROM spent WHERE quota = ? AND scope = ? AND subject = ? "
                "AND period = ?",
                key,
            ).fetchone()
        return int(row[0]) if row else 0

    def prune(self, periods: tuple[str, ...]) -> None:
        """Forget what was spent in other periods than these."""
        marks = ",".join("?" * len(periods))
        with self._trying("write"):
            self._db.execute(
                f"DELETE FROM spent WHERE period NOT IN ({marks})",  # noqa: S608  question marks
                periods,
            )

    def throttle(self, attachment_id: str, quota: str, rates: tuple[Rates, Rates]) -> None:
        """Remember the rate and guarantee of a job before a quota lowered them."""
        with self._trying("write"):
            self._db.execute(
                "INSERT OR IGNORE INTO throttled VALUES (?,?,?)",
                (attachment_id, quota, msgspec.json.encode(rates)),
            )

    def unthrottle(self, attachment_id: str, quota: str) -> tuple[Rates, Rates] | None:
        """Return and forget the rate and guarantee of before; None if they were not lowered."""
        where = "WHERE attachment_id = ? AND quota = ?"
        with self._trying("write"):
            row = self._db.execute(
                f"DELETE FROM throttled {where} RETURNING rates",  # noqa: S608  constant text
                (attachment_id, quota),
            ).fetchone()
        return msgspec.json.decode(row[0], type=tuple[Rates, Rates]) if row else None

    def ended(self, attachment_id: str) -> None:
        """Forget what was remembered of a job."""
        with self._trying("write"):
            self._db.execute("DELETE FROM throttled WHERE attachment_id = ?", (attachment_id,))

    @contextmanager
    def _trying(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (*damage.ERRORS, OSError) as error:
            if damage.is_damage(error):
                raise damage.Damaged(
                    f"cannot {doing} {self._path}: {error}; restart lark-agent, which sets the "
                    "file aside and goes on with what can be read, and look after the disk"
                ) from error
            raise StoreError(
                f"cannot {doing} {self._path}: {error}; check the file, its directory, and the "
                "space on its file system"
            ) from error


def is_whole(table: str, row: Mapping[str, Any]) -> bool:
    """Tell whether a row of one of `TABLES`, by column, can have been written by this module."""
    try:
        if table == "throttled":
            msgspec.json.decode(row["rates"], type=tuple[Rates, Rates])
        else:
            QuotaScope(row["scope"])
            QuotaAction(row["action"])
            if row["period"] and not PERIOD.fullmatch(row["period"]):
                return False
    except (*damage.ERRORS, TypeError, ValueError):
        return False
    return all(
        isinstance(value, int) and value >= NO_ENTRY
        if column in _NUMBERS
        else isinstance(value, str) or column == "rates"
        for column, value in row.items()
    )


def standings(path: Path, now_ns: int, sees: Callable[[PoolKey, str], bool]) -> list[Standing]:
    """Return how the quotas of the present periods stand on this worker; any thread may ask.

    `sees` is asked of each with its key and the owner whose job first needed it. Where a collector
    keeps the book, these are this worker's parts of it. Raises sqlite3.Error.
    """
    if not path.exists():
        return []
    found: dict[PoolKey, Standing] = {}
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        spent = database.execute("SELECT * FROM spent").fetchall()
        held = database.execute(
            "SELECT quota, scope, subject, period, bytes, action, used, changed_ns, granted, "
            "owner, dry FROM leases WHERE entry != ?",
            (NO_ENTRY,),
        ).fetchall()
    finally:
        database.close()
    for row in spent:
        key = PoolKey(*row[:4])
        limit, action, used, at = row[4:]
        if key.period in periods_of(now_ns) and sees(key, ""):
            found[key] = Standing(key, limit, used, used, 0, action, at, used_up=used >= limit)
    for row in held:
        key = PoolKey(*row[:4])
        limit, action, used, at, granted, owner, dry = row[4:]
        if key.period in periods_of(now_ns) and sees(key, owner):
            before = found.get(key) or Standing(key, limit, 0, 0, 0, action, at)
            found[key] = replace(
                before, limit=limit, used=before.used + used, granted=before.granted + granted,
                workers=1, action=action, as_of_ns=at, used_up=bool(dry),
            )  # fmt: skip
    return [found[key] for key in sorted(found)]
