"""Columns of the journal's rows, damaged behind SQLite's back: kept, left out, never in the way.

`test_salvage.py` damages the file; here the file is sound and what is in a row is not.
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lark_agent.accounting import damage
from lark_agent.accounting.journal import Journal, Launch, Process, read_living
from lark_agent.accounting.salvage import open_journal
from lark_agent.errors import StoreError
from lark_agent.hooks import launch
from lark_agent.model import NetworkPlan, Record
from tests.accounting.test_journal import HERE, PLAN, START, moved, record
from tests.mutating import damaged

KEYED = Launch("condor_starter 7 9", None, (Process(7, 9, "boot-1"),))
FIRST, SECOND = record("alice"), record("bob", START + 10**9)
MOVED = moved(FIRST, 1000, 2000, 5)
SAMPLES = tuple(msgspec.json.encode(each) for each in (MOVED, SECOND, PLAN, KEYED, HERE))
COLUMNS = ("body", "plan", "launch", "pid", "start_time", "boot_id", "launch_key", "sequence")
VALUES = damaged(SAMPLES) | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9) | st.none()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Make a journal with two open attachments; only the first has processes in a launch."""
    path = tmp_path_factory.mktemp("intact") / "journal.sqlite"
    journal = Journal(path)
    journal.begin(FIRST, KEYED, PLAN)
    journal.begin(SECOND, HERE, PLAN)
    journal.save([MOVED])
    journal.close()
    return path.read_bytes()


@given(st.sampled_from(COLUMNS), VALUES)
@settings(max_examples=30)
@example("launch", msgspec.json.encode(KEYED).replace(b" 7 ", b" x "))
@example("plan", b"{}")
@example("boot_id", b"\xff")
@example("launch", b'{"key":7}')
def test_a_damaged_row_stops_no_agent(intact: bytes, column: str, value: object) -> None:
    """The journal opens, the other attachment is there, and what is left of the row can be used."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "journal.sqlite"
        path.write_bytes(intact)
        with closing(sqlite3.connect(path)) as database, suppress(sqlite3.IntegrityError):
            database.execute(
                f"UPDATE attachments SET {column} = ? WHERE attachment_id = ?",
                (value, FIRST.attachment_id),
            )
            database.commit()
        with suppress(StoreError):  # beside an agent: the words, and nothing else
            read_living(path)
        journal, aside = open_journal(path)
        with closing(journal):
            living = {each.record.attachment_id: each for each in journal.living()}
            assert SECOND.attachment_id in living
            assert aside is not None or FIRST.attachment_id in living
            for each in living.values():
                launch.launcher(each.launch.key)
                assert all(isinstance(one.pid, int) for one in each.launch.members)
            unsent: list[Record] = journal.unacknowledged(10)
            assert SECOND in unsent
            journal.save([moved(SECOND, 1, 1, 7)])


@pytest.mark.parametrize("kind", [Record, NetworkPlan, Launch])
@pytest.mark.parametrize("value", [b"7", b"\xff", 7, 1.5, None])
def test_what_reading_raises_is_damage(kind: type[object], value: object) -> None:
    """Whatever stands where a record, plan or launch should be; it is no disk that is full."""
    with pytest.raises(damage.ERRORS) as raised:
        damage.decoded(value, kind)
    assert damage.is_damage(raised.value)
