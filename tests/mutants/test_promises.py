"""Every promise of docs/reliability.md is one that a mutation of the code breaks visibly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mutants.__main__ import mutant
from tests.mutants.promises import PROMISES

if TYPE_CHECKING:
    from tests.mutants.guards import Guard

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = [line.split(" | ") for line in TEXT.splitlines() if line.startswith("| ")][1:]


def rows_of(promise: Guard) -> list[list[str]]:
    """Return the rows of the table that begin as a mutation says."""
    return [row for row in ROWS if row[0].removeprefix("| ").startswith(promise.attack)]


@pytest.mark.parametrize("promise", PROMISES, ids=[f"{p.attack} {p.test}" for p in PROMISES])
def test_a_mutation_is_of_a_row_and_fits_the_code(promise: Guard) -> None:
    """Its text occurs once, what takes its place is Python, and its row names its test."""
    mutant(promise)
    (row,) = rows_of(promise)
    file, _, test = promise.test.partition("::")
    name = test.partition("[")[0]
    assert f"`{name}`" in row[2]
    assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8")


def test_each_promise_has_a_mutation() -> None:
    """A row without one is a promise that nobody would see broken."""
    held = [row for promise in PROMISES for row in rows_of(promise)]
    assert [row[0] for row in ROWS if row not in held] == []
