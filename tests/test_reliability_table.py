"""docs/reliability.md names tests that exist: a promise without one is none."""

from __future__ import annotations

import re
from pathlib import Path

TABLE = Path(__file__).parents[1] / "docs" / "reliability.md"
TESTS = Path(__file__).parent


def test_every_promise_has_its_test() -> None:
    """Each row names at least one test, and each test that is named is there."""
    text = TABLE.read_text(encoding="utf-8")
    sources = "\n".join(file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py"))
    files = {file.stem for file in TESTS.rglob("test_*.py")}
    named = re.findall(r"\btest_\w+", text)
    assert [name for name in named if name not in files and f"def {name}(" not in sources] == []
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    assert [row for row in rows[1:] if "test_" not in row.split("|")[3]] == []
