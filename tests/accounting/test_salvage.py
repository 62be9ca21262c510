"""Bytes of the journal that the disk lost or changed: found, set aside, and the rest kept.

The bytes are of a real journal of forty jobs; where they are lost and what comes instead is
hypothesis's choice.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lark_agent.accounting.journal import Journal
from lark_agent.accounting.salvage import open_journal
from lark_agent.errors import StoreError
from tests.accounting.test_journal import HERE, PLAN, START, moved, record

if TYPE_CHECKING:
    from lark_agent.model import Record

JOBS = 40
RUNNING = 10


def written(directory: Path) -> list[Record]:
    """Write a journal as a killed agent leaves it: part in the file, part in the log."""
    journal = Journal(directory / "journal.sqlite")
    found = []
    for number in range(JOBS):
        one = record("alice", START + number * 10**9, f"{number}.0")
        journal.begin(one, HERE, PLAN)
        newer = moved(one, 1000 + number, 1, 1)
        if number >= RUNNING:
            newer = replace(newer, final=True, ended_ns=newer.sampled_ns)
        journal.save([newer])
        found.append(newer)
        if number == JOBS // 2:
            journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for file in directory.glob("journal.sqlite*"):
        shutil.copy(file, directory / f"kept.{file.name}")
    journal.close()
    for file in directory.glob("journal.sqlite*"):
        file.unlink()
    for file in directory.glob("kept.*"):
        file.rename(directory / file.name.removeprefix("kept."))
    return found


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    directory = tmp_path_factory.mktemp("journal")
    return directory, written(directory)


def sound(file: Path) -> bool:
    """Tell whether a file is as SQLite writes it, by SQLite and not by the code that is tried."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        return bool(database.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


def opened(directory: Path) -> tuple[list[Record], bool]:
    """Open the journal and go on with it; returns all its records, and if a file was set aside."""
    journal, aside = open_journal(directory / "journal.sqlite")
    found = journal.unacknowledged(1000)
    another = record("bob", START + 10**15, "next")
    journal.begin(another, HERE, PLAN)
    journal.save([moved(another, 5, 5, 1)])
    assert len(journal.living()) >= 1
    journal.close()
    assert sound(directory / "journal.sqlite"), "the agent goes on with a damaged file"
    again, damaged = open_journal(directory / "journal.sqlite")
    assert damaged is None, "what was kept is sound"
    again.close()
    if aside is not None:
        assert aside.exists()
    return found, aside is not None


def test_what_is_in_the_log_only_is_there(intact: tuple[Path, list[Record]]) -> None:
    """The bytes that the other tests damage are a whole journal before."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(intact[0], copy, dirs_exist_ok=True)
        assert opened(Path(copy)) == (intact[1], False)


@given(st.floats(0, 1), st.binary(max_size=64))
@settings(max_examples=25, deadline=None)
def test_a_log_that_power_cut_short(
    intact: tuple[Path, list[Record]], where: float, torn: bytes
) -> None:
    """Of a torn log what was committed before counts; nothing is half, nothing is set aside."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        shutil.copytree(intact[0], copy, dirs_exist_ok=True)
        (copy / "journal.sqlite-shm").unlink()  # memory, gone with the power
        log = copy / "journal.sqlite-wal"
        whole = log.read_bytes()
        keep = int(where * len(whole))
        log.write_bytes(whole[:keep] + torn + bytes(min(4096, len(whole) - keep)))
        found, aside = opened(copy)
        assert not aside
        known = {one.attachment_id: one for one in intact[1]}
        assert len(found) > JOBS // 2
        for one in found:
            last = known[one.attachment_id]
            assert one == last or (one.sequence == 0 and not one.usage.classes)
        numbers = [int(one.job.job_id.removesuffix(".0")) for one in found]
        assert numbers == list(range(len(numbers))), "an earlier one is lost, a later one there"


@given(
    st.sampled_from(["journal.sqlite", "journal.sqlite-wal"]),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["truncate", "zero a page", "flip"]),
    st.binary(min_size=1, max_size=16),
)
@settings(max_examples=80, deadline=None)
def test_a_damaged_file_stops_no_agent(
    intact: tuple[Path, list[Record]], file: str, where: float, fault: str, bytes_: bytes
) -> None:
    """Wherever bytes are lost, the agent opens a sound journal and every record in it is whole."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        shutil.copytree(intact[0], copy, dirs_exist_ok=True)
        data = bytearray((copy / file).read_bytes())
        at = int(where * len(data))
        if fault == "truncate":
            del data[at:]
        elif fault == "zero a page":
            at &= ~4095
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        else:
            for offset, byte in enumerate(bytes_):
                if at + offset < len(data):
                    data[at + offset] ^= byte
        (copy / file).write_bytes(data)
        try:
            found, _ = opened(copy)
        except StoreError as error:
            if "has schema" not in str(error):  # the version's own bytes: refused, nothing touched
                raise
            return
        known = {one.attachment_id for one in intact[1]}
        if fault != "flip":
            assert {one.attachment_id for one in found} <= known


def test_rows_around_the_damage_are_kept(intact: tuple[Path, list[Record]]) -> None:
    """A page lost in the middle costs its own rows; those before and behind it go on."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        shutil.copytree(intact[0], copy, dirs_exist_ok=True)
        Journal(copy / "journal.sqlite").close()  # all into the file
        middle = intact[1][JOBS // 2].attachment_id.encode()
        data = bytearray((copy / "journal.sqlite").read_bytes())
        at = data.index(b'"attachment_id":"' + middle) & ~4095  # a record's, not an index's
        data[at : at + 4096] = b"\xff" * 4096
        (copy / "journal.sqlite").write_bytes(data)
        found, aside = opened(copy)
        assert aside
        kept = [one.attachment_id for one in found]
        assert JOBS // 2 < len(kept) < JOBS
        assert {kept[0], kept[-1]} == {intact[1][0].attachment_id, intact[1][-1].attachment_id}
        assert all(one in intact[1] for one in found)


def test_a_full_disk_is_no_damage(tmp_path: Path) -> None:
    """What passes by itself sets nothing aside: SQLite's word for it is another."""
    written(tmp_path)
    journal = Journal(tmp_path / "journal.sqlite")
    journal._db.execute("PRAGMA max_page_count = 1")

    def fill() -> None:
        for number in range(1000):
            journal.begin(record("bob", START + 10**15 + number, "x" * 200), HERE, PLAN)

    with pytest.raises(StoreError, match="free space") as refused:
        fill()
    assert type(refused.value) is StoreError
    assert isinstance(refused.value.__cause__, sqlite3.OperationalError)
    journal.close()


@pytest.mark.parametrize("table", ["samples", "hours", "launches"])
def test_damage_that_nobody_would_read_is_found(
    intact: tuple[Path, list[Record]], table: str
) -> None:
    """A page of what is only written, or of an index, is looked at as well; no job is lost."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        shutil.copytree(intact[0], copy, dirs_exist_ok=True)
        Journal(copy / "journal.sqlite").close()  # all into the file
        file = copy / "journal.sqlite"
        with contextlib.closing(sqlite3.connect(file)) as database:
            (page,) = database.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
            ).fetchone()
        data = bytearray(file.read_bytes())
        data[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
        file.write_bytes(data)
        assert opened(copy) == (intact[1], True)
