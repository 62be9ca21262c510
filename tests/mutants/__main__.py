"""`make mutants`: guards and promises broken in turn, and the test that must notice.

First those of the programs and the firewall's rules, which take themselves out (`test_mutants.py`,
`test_firewall.py`), then those of `guards.py` (what holds hostile jobs off) and of `promises.py`
(what docs/reliability.md says). For one of these the changed file is bound over its
original in a mount namespace of its own and the ordinary test runs there: the laboratory, its agent
and everything they start see the mutant, and nobody else does. The tree is not touched.

A test that cannot run, or an agent that does not start, has not noticed anything: both count as
failures, as does a test that passes or is skipped. Words after the command choose those whose
attack, fault or test has one of them, `guards` or `promises` all of a table; nothing else runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.guards import GUARDS, Guard
from tests.mutants.promises import PROMISES

ROOT = Path(__file__).parents[2]
PROGRAMS = ("tests/datapath/test_mutants.py", "tests/sandbox/test_firewall.py")
SECONDS = 400
"""Most that one test may take."""
AT_ONCE = 2
# $1 is the mutant, $2 the file; the rest is the command
_BIND = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
_NOT_STARTED = ("before it was ready", "is not ready after")


def mutant(guard: Guard) -> str:
    """Return a file's text without the guard; raises ValueError if it is not there once."""
    text = (ROOT / "lark_agent" / guard.file).read_text(encoding="utf-8")
    if text.count(guard.text) != 1:
        raise ValueError(f"{guard.file} has {text.count(guard.text)} times {guard.text!r}")
    changed = text.replace(guard.text, guard.instead)
    if guard.file.endswith(".py"):  # tests of the C programs compile what they try
        compile(changed, guard.file, "exec")
    return changed


def failing(guard: Guard, folder: Path, number: int) -> str:
    """Run a guard's test without it; returns why that shows nothing, "" if the test noticed."""
    changed = folder / f"{number}.py"
    changed.write_text(mutant(guard), encoding="utf-8")
    original = str(ROOT / "lark_agent" / guard.file)
    test = [*_PYTEST, "-rs", f"tests/{guard.test}"]
    try:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", _BIND, "bind", str(changed), original, *test],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no end within {SECONDS} s"
    if done.returncode == 0:
        return "SURVIVED: the test passed, or was skipped\n" + done.stdout[-1000:]
    said = done.stdout + done.stderr
    if not re.search(r"\b[1-9]\d* failed", said) or any(words in said for words in _NOT_STARTED):
        return f"the test did not run (pytest's status {done.returncode})\n" + said[-3000:]
    return ""


def main(words: list[str]) -> int:
    """Remove each, print a line for each, return 1 if any was not noticed."""
    tables = {"guards": GUARDS, "promises": PROMISES}
    chosen = [
        guard
        for name, table in tables.items()
        for guard in table
        if not words or name in words or any(word in guard.attack + guard.test for word in words)
    ]
    if (
        not words
        and subprocess.run([*_PYTEST, "-n", "2", *PROGRAMS], cwd=ROOT, check=False).returncode
    ):
        return 1
    missed = 0
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(AT_ONCE) as pool:
        answers = pool.map(failing, chosen, [Path(name)] * len(chosen), range(len(chosen)))
        for guard, why in zip(chosen, answers, strict=True):
            missed += bool(why)
            print(f"{guard.file}: {guard.attack}: {why or 'noticed by ' + guard.test}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} guards and promises are held by their tests")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
