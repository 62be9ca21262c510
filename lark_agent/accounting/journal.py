"""The worker's durable memory: one SQLite file with the latest record of every attachment.

One row per attachment holds its latest cumulative record and the number of the record that the
collector acknowledged; what was not acknowledged yet is the outbox. Beside it stand samples (for
usage over time) and hourly shares (for totals); `lark_agent.accounting.answers` reads them.

How much the collector's store said it has of this worker (`lark_agent.accounting.marks`) is kept
with what it confirmed. When it has less one day, nothing counts as confirmed any more.

A job that was only announced has a row, so that what was decided for it holds whatever comes, but
the collector hears of it with its first process. If none comes in time the row stays, withheld, and
is in no answer: the job that comes late has a record of its own, and that is the job's one record.

Durability: beginning an attachment commits without waiting for the disk (write-ahead log, survives
the agent's death; a power cut loses at most the jobs begun since the last pass), because a job
waits for it. Every sampling pass and every final record waits for the disk. All methods block
and belong to one thread; sqlite3's own errors become StoreError with the file's name and a remedy,
Damaged if the file is not as it was written (`lark_agent.accounting.salvage`).
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from lark_agent import crash
from lark_agent.accounting import damage
from lark_agent.accounting.marks import Mark
from lark_agent.accounting.questions import hour_shares
from lark_agent.accounting.room import Room, forget
from lark_agent.errors import StoreError
from lark_agent.model import NetworkPlan, Record, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lark_agent.model import Count, Job

SCHEMA_VERSION = 4
WITHHELD = 1 << 62
"""In the column `acknowledged`, of what was announced and has not come, and of transfers: more than
any sequence."""
CACHE_KIB = 256
"""SQLite keeps 2 MB a connection unless told otherwise; the page cache of the kernel does."""

# Attachments have row numbers: in a table without them, a row of a kilobyte fills two pages.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS attachments (
    attachment_id TEXT PRIMARY KEY,
    sequence INTEGER NOT NULL,
    acknowledged INTEGER NOT NULL DEFAULT -1,
    final INTEGER NOT NULL,
    started_ns INTEGER NOT NULL,
    ended_ns INTEGER NOT NULL,
    owner TEXT NOT NULL,
    accounting_group TEXT NOT NULL,
    worker TEXT NOT NULL,
    job_id TEXT NOT NULL,
    body BLOB NOT NULL,
    pid INTEGER NOT NULL,
    start_time INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    plan BLOB,
    launch BLOB,
    launch_key TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS outbox ON attachments (attachment_id) WHERE acknowledged < sequence;
CREATE INDEX IF NOT EXISTS living ON attachments (attachment_id) WHERE final = 0;
CREATE TABLE IF NOT EXISTS samples (
    attachment_id TEXT NOT NULL,
    sampled_ns INTEGER NOT NULL,
    sent_packets INTEGER NOT NULL, sent_bytes INTEGER NOT NULL,
    received_packets INTEGER NOT NULL, received_bytes INTEGER NOT NULL,
    PRIMARY KEY (attachment_id, sampled_ns)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hours (
    hour_ns INTEGER NOT NULL,
    attachment_id TEXT NOT NULL,
    traffic_class TEXT NOT NULL,
    sent_packets INTEGER NOT NULL, sent_bytes INTEGER NOT NULL,
    received_packets INTEGER NOT NULL, received_bytes INTEGER NOT NULL,
    cost INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (hour_ns, attachment_id, traffic_class)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS mark (store TEXT NOT NULL, number INTEGER NOT NULL);
"""
_INDEX_OF_LAUNCHES = """
CREATE INDEX IF NOT EXISTS launches ON attachments (launch_key) WHERE launch_key != ''
"""


@dataclass(frozen=True, slots=True)
class Process:
    """What finds a job's process again after the agent was restarted."""

    pid: int
    start_time: int
    """Clock ticks since boot: a pid with another start time is another process."""
    boot_id: str


@dataclass(frozen=True, slots=True)
class Launch:
    """Which processes an attachment is for, and may yet be for."""

    key: str = ""
    """What all processes of the job share (`lark_agent.hooks.launch`); empty: there is only one."""
    holder: Process | None = None
    """The batch system's process that starts them, if it asked before the first was there."""
    members: tuple[Process, ...] = ()
    """The first one, and all that run."""
    steps: bool = False
    """Others may come after the last has ended."""
    moved_before: Usage = field(default_factory=Usage)
    """What the starter had moved before this attachment (`lark_agent.agent.transfers`)."""


@dataclass(frozen=True, slots=True)
class Living:
    """An attachment without a final record."""

    record: Record
    launch: Launch
    plan: NetworkPlan
    """What holds for it now."""


class Journal:
    """An open journal; of `size` bytes at most (0: any), `reports`: what ends must be reported."""

    def __init__(self, path: Path, size: int = 0, *, reports: bool = True) -> None:
        self._path = path
        self._waits_for_disk = True
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            damage.check(self._db)
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"journal {path} has schema {version}, this software knows {SCHEMA_VERSION}; "
                    "install the version that wrote it, or move the file away"
                )
            self._db.executescript(_SCHEMA)
            if version == 1:
                self._db.execute("ALTER TABLE attachments ADD COLUMN plan BLOB")
            if version in {1, 2, 3}:
                self._db.execute("ALTER TABLE attachments ADD COLUMN launch BLOB")
                self._db.execute(
                    "ALTER TABLE attachments ADD COLUMN launch_key TEXT NOT NULL DEFAULT ''"
                )
            if version in {1, 2}:
                self._db.execute("ALTER TABLE hours ADD COLUMN cost INTEGER NOT NULL DEFAULT 0")
            self._db.execute(_INDEX_OF_LAUNCHES)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._room = Room(self._db, size, reports=reports)
            self._check_awaited()
        except (*damage.ERRORS, OSError) as error:
            if (opened := getattr(self, "_db", None)) is not None:
                opened.close()
            raise self._failed("open", error) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _check_awaited(self) -> None:
        """Decode all that the agent or the collector still waits for."""
        columns = "body, plan, launch, pid, start_time, boot_id"
        rows = self._db.execute(
            f"SELECT {columns} FROM attachments WHERE final = 0 OR acknowledged < sequence"  # noqa: S608  constant text
        )
        for body, plan, launch, *process in rows:
            _plan(plan, decode(body))
            _launch(launch, _process(process))

    def begin(self, record: Record, launch: Launch, plan: NetworkPlan) -> None:
        """Remember a new attachment, without waiting for the disk."""
        first = launch.members[0] if launch.members else launch.holder
        assert first is not None
        self._check_room()
        with self._transaction("begin an attachment in", wait_for_disk=False):
            self._put(None, record, first)
            self._put_plan(record, plan)
            if launch.key:
                self._put_launch(record.attachment_id, launch)
            if not launch.members:
                self._db.execute(
                    "UPDATE attachments SET acknowledged = ? WHERE attachment_id = ?",
                    (WITHHELD, record.attachment_id),
                )

    def join(self, attachment_id: str, launch: Launch) -> None:
        """Remember who belongs to a living attachment, without waiting for the disk."""
        with self._transaction("add a process in", wait_for_disk=False):
            self._put_launch(attachment_id, launch)
            if launch.members:
                self._db.execute(
                    "UPDATE attachments SET acknowledged = -1 "
                    "WHERE attachment_id = ? AND acknowledged = ?",
                    (attachment_id, WITHHELD),
                )

    def change(self, record: Record, plan: NetworkPlan) -> None:
        """Remember what was changed about a living attachment, and say so in its record."""
        with self._transaction("change an attachment in"):
            self._save(record)
            self._put_plan(record, plan)

    def save(self, records: Sequence[Record]) -> None:
        """Make newer records of known attachments durable, in one transaction."""
        with self._transaction("save records in"):
            for record in records:
                self._save(record)
        self._make_room()

    def _make_room(self) -> bool:
        """Forget what may go if the journal is nearly full; returns whether there is room."""
        if not self._room.is_short():
            return True
        with self._transaction("make room in", wait_for_disk=False):
            self._room.make()
        return not self._room.is_short()

    def _check_room(self) -> None:
        if self._make_room():
            return
        used, waiting = self._room.used(), self.count_unacknowledged()
        raise StoreError(
            f"the journal {self._path} has {used} of its {self._room.size} bytes, and nothing in "
            f"it may go: {waiting} records wait for the collector; restore the way to it, or raise "
            "accounting.journal_size"
        )

    def _save(self, record: Record) -> None:
        row = self._db.execute(
            "SELECT body, pid, start_time, boot_id FROM attachments WHERE attachment_id = ?",
            (record.attachment_id,),
        ).fetchone()
        if row is None:
            return  # pruned: only a final, acknowledged one can be
        previous = decode(row[0])
        if not previous.final and record.sequence > previous.sequence:
            self._put(previous, record, Process(*row[1:]))

    def _put_plan(self, record: Record, plan: NetworkPlan) -> None:
        self._db.execute(
            "UPDATE attachments SET plan = ? WHERE attachment_id = ?",
            (msgspec.json.encode(plan), record.attachment_id),
        )

    def _put_launch(self, attachment_id: str, launch: Launch) -> None:
        self._db.execute(
            "UPDATE attachments SET launch = ?, launch_key = ? WHERE attachment_id = ?",
            (msgspec.json.encode(launch), launch.key, attachment_id),
        )

    def _put(self, previous: Record | None, record: Record, process: Process) -> None:
        job, key = record.job, record.attachment_id
        self._db.execute(
            "INSERT INTO attachments VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,NULL,NULL,'') "
            "ON CONFLICT DO UPDATE SET "
            "sequence = excluded.sequence, final = excluded.final, ended_ns = excluded.ended_ns, "
            "body = excluded.body",
            (
                key, record.sequence, WITHHELD if record.is_transfer else -1, record.final,
                record.started_ns, record.ended_ns, job.owner, job.accounting_group,
                record.worker, job.job_id, msgspec.json.encode(record), process.pid,
                process.start_time, process.boot_id,
            ),
        )  # fmt: skip
        if record.is_transfer:  # nobody's own traffic: it is in the record of a job
            return
        moved = record.usage.sent, record.usage.received
        if previous is None or moved != (previous.usage.sent, previous.usage.received):
            self._db.execute(
                "INSERT OR REPLACE INTO samples VALUES (?,?,?,?,?,?)",
                (key, record.sampled_ns, *_columns(*moved)),
            )
        self._db.executemany(
            "INSERT INTO hours VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET "
            "sent_packets = sent_packets + excluded.sent_packets, "
            "sent_bytes = sent_bytes + excluded.sent_bytes, "
            "received_packets = received_packets + excluded.received_packets, "
            "received_bytes = received_bytes + excluded.received_bytes, "
            "cost = cost + excluded.cost",
            [
                (
                    share.hour_ns, key, share.traffic_class,
                    *_columns(share.sent, share.received), share.cost,
                )
                for share in hour_shares(previous, record)
            ],
        )  # fmt: skip

    def living(self) -> list[Living]:
        """Return the attachments without a final record."""
        with self._reading():
            return _living(self._db)

    def decided(self, key: str, boot_id: str) -> tuple[Job, NetworkPlan] | None:
        """Return what was decided last for a launch in this boot, None if nothing was."""
        with self._reading():
            row = self._db.execute(
                "SELECT body, plan FROM attachments "
                "WHERE launch_key = ? AND launch_key != '' AND boot_id = ? "
                "ORDER BY attachment_id DESC LIMIT 1",
                (key, boot_id),
            ).fetchone()
        if row is None:
            return None
        record = decode(row[0])
        return record.job, _plan(row[1], record)

    def unacknowledged(self, limit: int) -> list[Record]:
        """Return records that the collector has not confirmed, oldest attachment first."""
        with self._reading():
            rows = self._db.execute(
                "SELECT body FROM attachments WHERE acknowledged < sequence "
                "ORDER BY attachment_id LIMIT ?",
                (limit,),
            ).fetchall()
        return [decode(body) for (body,) in rows]

    def count_unacknowledged(self) -> int:
        """Count them."""
        with self._reading():
            (count,) = self._db.execute(
                "SELECT count(*) FROM attachments WHERE acknowledged < sequence"
            ).fetchone()
        return int(count)

    def resume(self, mark: Mark) -> int:
        """Compare what the collector says it has with what it said; returns what to send again.

        That is the number of records, if it has lost any: then all count as unacknowledged.
        """
        with self._reading():
            row = self._db.execute("SELECT store, number FROM mark").fetchone()
        lost = mark.has_lost(Mark(int(row[0]), row[1]) if row else None)
        with self._transaction("note the collector's mark in", wait_for_disk=False):
            self._put_mark(mark)
            if not lost:
                return 0
            return self._db.execute(
                "UPDATE attachments SET acknowledged = -1 WHERE acknowledged != ?", (WITHHELD,)
            ).rowcount

    def acknowledge(self, records: Sequence[Record], mark: Mark) -> None:
        """Remember that the collector has these records; losing this only repeats a send."""
        with self._transaction("note acknowledgements in", wait_for_disk=False):
            self._put_mark(mark)
            self._db.executemany(
                "UPDATE attachments SET acknowledged = max(acknowledged, ?) "
                "WHERE attachment_id = ?",
                [(record.sequence, record.attachment_id) for record in records],
            )

    def _put_mark(self, mark: Mark) -> None:
        self._db.execute("DELETE FROM mark")
        # as text: an identity may have all 64 bits, SQLite's integers are signed
        self._db.execute("INSERT INTO mark VALUES (?, ?)", (str(mark.store), mark.number))

    def prune(self, before_ns: int, *, unacknowledged_too: bool) -> None:
        """Forget final attachments that ended before a time, not yet reported ones if told so."""
        condition = "" if unacknowledged_too else "AND acknowledged >= sequence"
        with self._transaction("prune", wait_for_disk=False):
            doomed = self._db.execute(
                f"SELECT attachment_id FROM attachments WHERE final AND ended_ns < ? {condition}",  # noqa: S608  constant text
                (before_ns,),
            ).fetchall()
            forget(self._db, doomed)

    @contextmanager
    def _transaction(self, doing: str, *, wait_for_disk: bool = True) -> Iterator[None]:
        try:
            if wait_for_disk != self._waits_for_disk:
                self._db.execute(f"PRAGMA synchronous = {'FULL' if wait_for_disk else 'NORMAL'}")
                self._waits_for_disk = wait_for_disk
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                crash.here("journal.written")
                self._db.execute("COMMIT")
                crash.here("journal.committed")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            raise self._failed(doing, error) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._failed("read", error) from error

    def _failed(self, doing: str, error: Exception) -> StoreError:
        if damage.is_damage(error):
            return damage.Damaged(
                f"cannot {doing} the journal {self._path}: {error}; restart lark-agent, which sets "
                "the file aside and goes on with what can be read, and look after the disk"
            )
        full = "full" in str(error)
        remedy = "free space on its file system" if full else "check the file and its directory"
        return StoreError(f"cannot {doing} the journal {self._path}: {error}; {remedy}")


def read_living(path: Path) -> list[Living]:
    """Return a journal's attachments without a final record, beside its owner; none: no file.

    Raises StoreError.
    """
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return _living(database)
    except damage.ERRORS as error:
        raise StoreError(f"cannot read the journal {path}: {error}") from error


def _living(database: sqlite3.Connection) -> list[Living]:
    rows = database.execute(
        "SELECT body, plan, launch, pid, start_time, boot_id FROM attachments WHERE final = 0"
    ).fetchall()
    return [
        Living(record, _launch(launch, _process(process)), _plan(plan, record))
        for record, plan, launch, *process in ((decode(body), *row) for body, *row in rows)
    ]


def decode(body: bytes) -> Record:
    """Return the record of a `body` column."""
    return damage.decoded(body, Record)


def _plan(text: bytes | None, record: Record) -> NetworkPlan:
    """Return the plan of an attachment; of one that schema 1 began, what its record says."""
    if text is None:
        return NetworkPlan(record.profile, record.connectivity)
    return damage.decoded(text, NetworkPlan)


def _process(columns: Sequence[object]) -> Process:
    """Return what the columns pid, start_time and boot_id tell; SQLite does not keep types."""
    names = ("pid", "start_time", "boot_id")
    return msgspec.convert(dict(zip(names, columns, strict=True)), Process)


def _launch(text: bytes | None, process: Process) -> Launch:
    """Return the launch of an attachment; without one there is only its process."""
    if text is None:
        return Launch(members=(process,))
    return damage.decoded(text, Launch)


def _columns(sent: Count, received: Count) -> tuple[int, int, int, int]:
    return sent.packets, sent.bytes, received.packets, received.bytes
