"""docs/hostile.md names tests that exist: a row without them is a promise."""

from __future__ import annotations

import re
from pathlib import Path

TABLES = Path(__file__).parents[1] / "docs" / "hostile.md"
TESTS = Path(__file__).parent


def test_every_attack_has_its_test() -> None:
    """Each row of a table names at least one test, and each test that is named is there."""
    text = TABLES.read_text(encoding="utf-8")
    sources = "\n".join(file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py"))
    files = {file.stem for file in TESTS.rglob("test_*.py")}
    named = re.findall(r"\btest_\w+", text)
    assert [n for n in named if n not in files and f"def {n}" not in sources] == []
    rows = [line for line in text.splitlines() if line.startswith("| ") and "attack |" not in line]
    # cases of the datapath's tests go by the frames' names
    assert [row for row in rows if "test_" not in row and "`" not in row.split("|")[4]] == []
