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
    assert [row for row in rows if "test_" not in row and "`" not in row.split("|")[4]] == []


def test_every_case_that_is_named_is_tried() -> None:
    """A case of the datapath's tests goes by its frame's name; `…` stands for more of it."""
    files = [file for file in TESTS.rglob("*.py") if file != Path(__file__)]
    names = [f"tests/{file.relative_to(TESTS)}" for file in files]
    tried = "\n".join([*names, *(file.read_text(encoding="utf-8") for file in files)])
    rows = [line.split("|") for line in TABLES.read_text(encoding="utf-8").splitlines()]
    column = " ".join(row[4] for row in rows if len(row) == 7)
    cases = [re.escape(case).replace("…", ".*") for case in re.findall(r"`([^`]+)`", column)]
    assert len(cases) > 40
    assert [case for case in cases if not re.search(case, tried)] == []
