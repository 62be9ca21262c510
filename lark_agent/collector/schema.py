"""The collector's tables, and the one door to the database behind them.

======== ============================== ============================================================
table    one row for each               holds
======== ============================== ============================================================
records  attachment                     the latest cumulative record
samples  attachment, sequence           cumulative sent and received: usage over time
hours    hour, attachment, class        what moved then: every total is a sum over these rows
pools    quota, subject, period         what of a shared quota is granted and used
leases   lease                          what one worker holds of a pool
workers  worker                         its mark: how many batches of it were stored
meta     name                           schema's version, store's identity, last write probe
======== ============================== ============================================================

A record's usage is JSON in one column: it is only ever read whole, with its record; whatever is
searched or summed has columns of its own. `hours` is keyed by attachment, not by owner or worker,
because only so the number of jobs behind any combination of groupings can be counted exactly.

SQLite is the embedded default: a write-ahead log, so that questions do not wait for reports;
`synchronous=FULL`, so that a commit has reached the disk before it is acknowledged; a file that
only its owner can read. Integers are all BIGINT and the statements portable: what differs
between databases is in this module. One collector writes to a store.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from sqlalchemy.dialects import sqlite

from lark_agent.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

VERSION = 5
"""Of the tables below; a store with a higher one is refused, one with a lower one is converted."""
BUSY_SECONDS = 5
"""How long to wait for another process (a backup, an admin's shell) that holds the database."""

TABLES = sql.MetaData()


def _number(name: str, **options: Any) -> sql.Column[int]:
    return sql.Column(name, sql.BigInteger, nullable=False, **options)


def _text(name: str, **options: Any) -> sql.Column[str]:
    return sql.Column(name, sql.Text, nullable=False, **options)


COUNTS = ("sent_packets", "sent_bytes", "received_packets", "received_bytes")

META = sql.Table("meta", TABLES, _text("name", primary_key=True), _number("value"))

RECORDS = sql.Table(
    "records",
    TABLES,
    _text("attachment_id", primary_key=True),
    _text("worker"),
    _number("slot"),
    _text("scheduler"),
    _text("job_id"),
    _text("owner"),
    _number("uid"),
    _text("accounting_group"),
    sql.Column("verified", sql.Boolean, nullable=False),
    _text("profile"),
    _text("connectivity"),
    _number("started_ns"),
    _number("sequence"),
    _number("sampled_ns"),
    _number("ended_ns"),
    sql.Column("final", sql.Boolean, nullable=False),
    _text("exit_reason"),
    _number("exit_status"),
    _number("first_port"),
    _number("last_port"),
    _text("usage"),
    _text("ipv4", server_default=""),  # since version 2
    _text("ipv6", server_default=""),
    _text("network", server_default=""),  # since version 3
    _number("cost", server_default="0"),
    _text("changes", server_default="[]"),
    _text("peers", server_default="none"),
    _text("plan", server_default="[]"),  # since version 4
    _text("transfer", server_default="null"),  # since version 5
    # pages are cut by attachment id within whatever is asked for
    sql.Index("records_by_owner", "owner", "attachment_id"),
    sql.Index("records_by_worker", "worker", "attachment_id"),
    sql.Index("records_by_job", "job_id"),
    sqlite_with_rowid=False,
)

SAMPLES = sql.Table(
    "samples",
    TABLES,
    _text("attachment_id", primary_key=True),
    _number("sequence", primary_key=True),
    _number("sampled_ns"),
    *(_number(name) for name in COUNTS),
    sqlite_with_rowid=False,
)

HOURS = sql.Table(
    "hours",
    TABLES,
    _number("hour_ns", primary_key=True),
    _text("attachment_id", primary_key=True),
    _text("traffic_class", primary_key=True),
    *(_number(name) for name in COUNTS),
    _number("cost", server_default="0"),  # since version 3
    sqlite_with_rowid=False,
)

WORKERS = sql.Table(
    "workers",  # since version 4
    TABLES,
    _text("worker", primary_key=True),
    _number("mark"),
    sqlite_with_rowid=False,
)

POOL_KEY = ("quota", "scope", "subject", "period")

POOLS = sql.Table(
    "pools",
    TABLES,
    *(_text(name, primary_key=True) for name in POOL_KEY),
    _number("limit_bytes"),
    _number("granted"),
    _number("used"),
    _number("changed_ns"),
    _text("action"),
    sql.Column("dry", sql.Boolean, nullable=False),
    sql.Index("pools_by_change", "changed_ns"),
    sqlite_with_rowid=False,
)

LEASES = sql.Table(
    "leases",
    TABLES,
    _text("lease", primary_key=True),
    *(_text(name) for name in POOL_KEY),
    _text("worker"),
    _number("limit_bytes"),
    _number("granted"),
    _number("used"),
    sql.Column("closed", sql.Boolean, nullable=False),
    _number("seen_ns"),
    sql.Index("leases_by_pool", *POOL_KEY),
    sql.Index("leases_by_age", "seen_ns"),
    sqlite_with_rowid=False,
)


class StoreFullError(StoreError):
    """There is no space for another row."""


def open_engine(url: str) -> sql.Engine:
    """Connect to the store and make its tables if it is new.

    Raises ConfigurationError if the URL is not usable, StoreError if the database is not.
    """
    try:
        parsed = sql.make_url(url)
    except sql.exc.ArgumentError as error:
        raise ConfigurationError(f"store: '{url}' is not a database URL: {error}") from error
    if parsed.drivername != "sqlite" or parsed.database in {None, "", ":memory:"}:
        raise ConfigurationError(
            f"store: '{parsed.render_as_string()}' is not sqlite:///PATH with the path of a file;"
            " other databases are not supported yet"
        )
    _make_file(Path(str(parsed.database)))
    engine = sql.create_engine(
        parsed, isolation_level="AUTOCOMMIT", connect_args={"timeout": BUSY_SECONDS}
    )
    sql.event.listen(engine, "connect", _set_pragmas)
    with store_errors(f"open {parsed.database}"):
        try:
            _prepare(engine, str(parsed.database))
        except BaseException:
            engine.dispose()
            raise
    return engine


def _make_file(path: Path) -> None:
    """Create a new store's file, readable by us only; its log files inherit the mode."""
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(
            f"cannot open {path}: {error.strerror}; check the directory and whom it belongs to"
        ) from error


def _set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _prepare(engine: sql.Engine, name: str) -> None:
    with transaction(engine, write=True) as connection:
        version = 0
        if sql.inspect(connection).has_table(META.name):
            stated = sql.select(META.c.value).where(META.c.name == "schema")
            version = connection.scalar(stated) or 0
        if version > VERSION:
            raise StoreError(
                f"{name} has schema {version}; this lark-collector knows {VERSION}: install the"
                " newer version that wrote it, or configure another store"
            )
        if not version:
            TABLES.create_all(connection)
            connection.execute(sql.insert(META).values(name="schema", value=VERSION))
            connection.execute(sql.insert(META).values(name="probed_ns", value=0))
            _give_identity(connection)
        elif version < VERSION:
            _convert(connection, version)


def _convert(connection: sql.Connection, version: int) -> None:
    """Give an older store the columns and tables that came since."""
    added: dict[int, list[sql.Column[Any]]] = {
        2: [RECORDS.c.ipv4, RECORDS.c.ipv6],
        3: [RECORDS.c.network, RECORDS.c.cost, RECORDS.c.changes, RECORDS.c.peers, HOURS.c.cost],
        4: [RECORDS.c.plan],
        5: [RECORDS.c.transfer],
    }
    for column in (each for since in added if since > version for each in added[since]):
        text = sql.schema.CreateColumn(column).compile(connection)
        connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {text}")
    TABLES.create_all(connection, [POOLS, LEASES, WORKERS])
    if version < 4:
        _give_identity(connection)
    stated = sql.update(META).where(META.c.name == "schema")
    connection.execute(stated.values(value=VERSION))


def _give_identity(connection: sql.Connection) -> None:
    """Make this store one that is no other (`lark_agent.accounting.marks`)."""
    number = 1 + secrets.randbelow(2**63 - 1)
    connection.execute(sql.insert(META).values(name="identity", value=number))


@contextmanager
def transaction(engine: sql.Engine, *, write: bool) -> Iterator[sql.Connection]:
    """Run a block in one transaction; a writer's holds the write lock from its start.

    SQLite's own driver would begin only at the first write, after the reads that the write is
    based on; so the driver is in autocommit mode and the words are said here.
    """
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
        try:
            yield connection
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            raw = connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            if raw.in_transaction:  # a full disk may have rolled back already
                raw.rollback()
            raise


def upsert(
    table: sql.Table, *, new: Iterable[str] = (), added: Iterable[str] = ()
) -> sqlite.Insert:
    """Insert a row or, where its key is known, set the columns `new` and add to those `added`."""
    insert = sqlite.insert(table)
    values: dict[str, Any] = {name: insert.excluded[name] for name in new}
    values |= {name: table.c[name] + insert.excluded[name] for name in added}
    return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=values)


@contextmanager
def store_errors(tried: str) -> Iterator[None]:
    """Turn the database's exceptions into StoreError with a remedy."""
    try:
        yield
    except sql.exc.DBAPIError as error:
        raise _explained(tried, error.orig) from error
    except sqlite3.Error as error:  # while connecting, SQLAlchemy lets the driver's own pass
        raise _explained(tried, error) from error
    except sql.exc.SQLAlchemyError as error:
        raise StoreError(f"cannot {tried}: {error}") from error


def _explained(tried: str, cause: BaseException | None) -> StoreError:
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
    text = f"cannot {tried}: {cause}"
    if code == sqlite3.SQLITE_FULL:
        return StoreFullError(f"{text}; make room on its disk")
    if code == sqlite3.SQLITE_IOERR:
        return StoreError(f"{text}; look at its disk: space, quota, kernel log")
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StoreError(f"{text}; another process holds it: end that, then it goes on by itself")
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
        return StoreError(f"{text}; check whom the file and its directory belong to")
    if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return StoreError(f"{text}; restore it from a backup or configure another store")
    return StoreError(f"{text}; see the database's documentation")
