"""Programs with a guard removed, and the ordinary test that must notice.

A mutant is the source with one expression taken for another. Its `test` is a function of this
directory's tests, run as ever but with the mutant's programs, or names of cases of the tables in
`cases.py`. The text must occur exactly once in its file, so that a guard which is renamed or goes
away breaks the table of mutants and not only its meaning.

One object holds every mutant of a source: where a guard stands, it asks a constant which one it is
without. The constant is written into a copy of the object before it is loaded, so the kernel's
verifier sees a single mutant and a compiler has run once.
"""

from __future__ import annotations

import inspect
import shutil
import struct
from typing import TYPE_CHECKING, NamedTuple

import pytest

from lark_agent.datapath import loaders
from setup import compile_bpf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

NOBODY = 0x6D757461  # as compiled: found and overwritten in the object
CONSTANT = f"""
const volatile __u32 mutant = {NOBODY:#x};
#define CLASSES 16"""


class Mutant(NamedTuple):
    """A guard removed."""

    attack: str
    """What it is there against; names the test."""
    file: str
    guard: str
    """The expression, as it is written."""
    instead: str
    """The expression that takes its place."""
    test: Callable[..., None] | tuple[str, ...]
    """What must fail: a test, or these cases of the tables."""
    given: tuple[tuple[str, object], ...] = ()
    """Arguments of a parametrized test."""
    before: str = ""
    """What stands before the guard, where the guard alone is not unique."""


def never(
    attack: str, file: str, guard: str, test: Callable[..., None] | tuple[str, ...],
    **given: object,
) -> Mutant:  # fmt: skip
    """Take a condition for false."""
    return Mutant(attack, file, guard, "0", test, tuple(given.items()))


def always(
    attack: str, file: str, guard: str, test: Callable[..., None] | tuple[str, ...],
    **given: object,
) -> Mutant:  # fmt: skip
    """Take a condition for true."""
    return Mutant(attack, file, guard, "1", test, tuple(given.items()))


def build(mutants: Sequence[Mutant], source: str, directory: Path, *more: str) -> bytes:
    """Compile a source with a way around each guard; returns the object."""
    for pattern in ("*.c", "*.h"):
        for file in loaders.SOURCE.parent.glob(pattern):
            shutil.copy(file, directory)
    changes = [("layout.h", "\n#define CLASSES 16", CONSTANT)]
    for number, each in enumerate(mutants):
        guarded = f"{each.before}(mutant == {number} ? ({each.instead}) : ({each.guard}))"
        changes.append((each.file, each.before + each.guard, guarded))
    for name, before, after in changes:
        path = directory / name
        path.write_text(_replaced(path.read_text(), before, after, name))
    try:
        compile_bpf(directory / source, directory / "mutants.o", *more)
    except SystemExit as error:  # pytest would take it for its own end
        pytest.fail(str(error))
    return (directory / "mutants.o").read_bytes()


def single(built: bytes, number: int) -> bytes:
    """Return the object with one mutant chosen."""
    placeholder = struct.pack("=I", NOBODY)
    assert built.count(placeholder) == 1
    return built.replace(placeholder, struct.pack("=I", number))


def assert_fails(mutant: Mutant, request: pytest.FixtureRequest) -> None:
    """Run a mutant's ordinary test, which must fail."""
    given = dict(mutant.given)
    assert not isinstance(mutant.test, tuple)
    fixtures = {
        name: request if name == "request" else request.getfixturevalue(name)
        for name in inspect.signature(mutant.test).parameters
        if name not in given
    }
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        mutant.test(**fixtures, **given)


def _replaced(text: str, before: str, after: str, where: str) -> str:
    assert text.count(before) == 1, f"{where} has {text.count(before)} times {before!r}"
    return text.replace(before, after)
