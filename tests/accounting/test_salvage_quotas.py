"""Bytes of the file of quotas that the disk lost: found, set aside, and the rest kept."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lark_agent.accounting.allotments import FILE_NAME, TABLES, Allotment, Allotments, standings
from lark_agent.accounting.quotas import PoolKey
from lark_agent.accounting.salvage import open_allotments
from lark_agent.errors import StoreError
from lark_agent.model import Rates
from tests.accounting.test_salvage import sound

NUMBER = 120
PAGE = 4096
NOON = 1_795_000_000 * 10**9  # in November 2026
RATES = Rates(1, 2), Rates(0, 0)


def allotment(number: int) -> Allotment:
    key = PoolKey("cloud", "owner", f"user{number:04}", "2026-11")
    return Allotment(f"lease{number:04}", key, key.subject, 10**9, "cut-all", number, 10**6, number)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("quotas") / FILE_NAME
    allotments = Allotments(file)
    for number in range(NUMBER):
        allotments.put(allotment(number))
        over = allotment(NUMBER + number)
        allotments.put(over)
        allotments.settle(over)
        allotments.forget(over.lease)
        allotments.throttle(f"attachment{number:04}", "cloud", RATES)
    allotments.close()
    return file.read_bytes()


def opened(content: bytes) -> tuple[list[Allotment], int, bool]:
    """Open a file and go on with it; returns allotments, rates, and if a file was set aside."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / FILE_NAME
        file.write_bytes(content)
        allotments, aside = open_allotments(file)
        found = allotments.all()
        rates = sum(
            allotments.unthrottle(f"attachment{number:04}", "cloud") == RATES
            for number in range(NUMBER)
        )
        allotments.put(allotment(2 * NUMBER))
        allotments.settle(allotment(2 * NUMBER))
        assert standings(file, NOON, lambda *_: True)
        allotments.close()
        assert sound(file), "the agent goes on with a damaged file"
        again, damaged = open_allotments(file)
        assert damaged is None, "what was kept is sound"
        again.close()
        assert aside is None or aside.exists()
    return found, rates, aside is not None


def root_page(content: bytes, table: str) -> int:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / FILE_NAME
        file.write_bytes(content)
        with closing(sqlite3.connect(file)) as database:
            (page,) = database.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
            ).fetchone()
    return int(page) - 1


def test_a_whole_file_is_let_be(intact: bytes) -> None:
    """The bytes that the other tests damage are a whole file before."""
    found, rates, aside = opened(intact)
    assert ([one.lease for one in found], rates, aside) == (
        [f"lease{number:04}" for number in range(NUMBER)], NUMBER, False
    )  # fmt: skip


@given(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["truncate", "zero a page", "flip"]),
    st.binary(min_size=1, max_size=16),
)
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_of_quotas_stops_no_agent(
    intact: bytes, where: float, fault: str, bytes_: bytes
) -> None:
    """Wherever bytes are lost, a sound file is opened, and all in it can have been written."""
    data, at = bytearray(intact), int(where * len(intact))
    if fault == "truncate":
        del data[at:]
    elif fault == "zero a page":
        at -= at % PAGE
        data[at : at + PAGE] = bytes(PAGE)
    else:
        for offset, byte in enumerate(bytes_[: len(data) - at]):
            data[at + offset] ^= byte
    found, _, _ = opened(bytes(data))
    if fault != "flip":
        known = {allotment(number).lease for number in range(NUMBER)}
        assert {one.lease for one in found} <= known


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_lost_costs_no_other(intact: bytes, table: str) -> None:
    """A page lost where a table begins is found, and the rows of the others go on."""
    page = root_page(intact, table)
    data = bytearray(intact)
    data[page * PAGE : (page + 1) * PAGE] = b"\xa5" * PAGE
    found, rates, aside = opened(bytes(data))
    assert aside
    assert len(found) == (0 if table == "leases" else NUMBER)
    assert rates == (0 if table == "throttled" else NUMBER)


def test_rows_before_and_behind_a_lost_page_are_kept(intact: bytes) -> None:
    """A page lost in the middle costs its own rows."""
    data = bytearray(intact)
    at = data.index(b"lease0060")
    at -= at % PAGE
    data[at : at + PAGE] = b"\xff" * PAGE
    found, _, aside = opened(bytes(data))
    kept = [one.lease for one in found]
    assert aside
    assert NUMBER // 4 < len(kept) < NUMBER
    assert (kept[0], kept[-1]) == ("lease0000", f"lease{NUMBER - 1:04}")


@pytest.mark.parametrize(
    ("column", "value"),
    [("granted", "x"), ("scope", "everybody"), ("period", "2026-13"), ("action", b"\0"),
     ("used", -5)],
)  # fmt: skip
def test_a_row_that_nobody_wrote_is_left_out(
    intact: bytes, tmp_path: Path, column: str, value: object
) -> None:
    """SQLite can read it, the agent could not go on with it: it is damage, and costs that row."""
    file = tmp_path / FILE_NAME
    file.write_bytes(intact)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(
            f"UPDATE leases SET {column} = ? WHERE lease = 'lease0007'",
            (value,),
        )
    found, _, aside = opened(file.read_bytes())
    assert aside
    assert [one.lease for one in found] == [
        f"lease{number:04}" for number in range(NUMBER) if number != 7
    ]


def test_a_full_disk_sets_no_quotas_aside(tmp_path: Path) -> None:
    """What passes by itself is no damage."""
    allotments = Allotments(tmp_path / FILE_NAME)
    allotments._db.execute("PRAGMA max_page_count = 1")

    def fill() -> None:
        for number in range(1000):
            allotments.put(allotment(number))

    with pytest.raises(StoreError, match="full") as refused:
        fill()
    assert type(refused.value) is StoreError
    allotments.close()
