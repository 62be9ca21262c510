"""The table of `make mutants` fits the code: its guards are there, and so are its tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.__main__ import mutant
from tests.mutants.guards import GUARDS, Guard

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs" / "hostile.md"


@pytest.mark.parametrize("guard", GUARDS, ids=[guard.attack for guard in GUARDS])
def test_a_guard_is_where_the_table_says(guard: Guard) -> None:
    """Its text occurs once, what takes its place is Python, and its test exists."""
    mutant(guard)
    file, _, test = guard.test.partition("::")
    assert f"| {guard.attack} |" in DOCS.read_text(encoding="utf-8")
    assert f"def {test.partition('[')[0]}(" in (TESTS / file).read_text(encoding="utf-8")


def test_a_guard_that_is_not_there_breaks_the_table() -> None:
    """A guard that was renamed is told, not passed over."""
    with pytest.raises(ValueError, match="0 times"):
        mutant(GUARDS[0]._replace(text="what nobody wrote"))
