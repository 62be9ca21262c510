"""Each guard of the programs is held by a test: without the guard, that test fails.

One object holds every mutant: where a guard stands, it asks a constant which one it is without. The
constant is written into a copy of the object before it is loaded, so the kernel's verifier sees a
single mutant and a compiler has run once.
"""

from __future__ import annotations

import inspect
import shutil
import struct
from typing import TYPE_CHECKING

import pytest

from lark_agent.datapath import Datapath, loaders
from setup import compile_bpf
from tests.datapath.cases import HOSTILE, INBOUND, SIZES
from tests.datapath.mutants import MUTANTS
from tests.datapath.test_verdicts import misjudged, prepare

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

NOBODY = 0x6D757461  # as compiled: found and overwritten in the object
CONSTANT = f"""
const volatile __u32 mutant = {NOBODY:#x};
#define CLASSES 16"""


def replaced(text: str, before: str, after: str, where: str) -> str:
    assert text.count(before) == 1, f"{where} has {text.count(before)} times {before!r}"
    return text.replace(before, after)


@pytest.fixture(scope="module")
def every_mutant(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Compile the programs with a way around each guard; gives the object."""
    directory = tmp_path_factory.mktemp("mutants")
    for pattern in ("*.c", "*.h"):
        for source in loaders.SOURCE.parent.glob(pattern):
            shutil.copy(source, directory)
    changes = [("layout.h", "\n#define CLASSES 16", CONSTANT)]
    for number, each in enumerate(MUTANTS):
        guarded = f"{each.before}(mutant == {number} ? ({each.instead}) : ({each.guard}))"
        changes.append((each.file, each.before + each.guard, guarded))
    for name, before, after in changes:
        file = directory / name
        file.write_text(replaced(file.read_text(), before, after, name))
    try:
        compile_bpf(directory / "job.bpf.c", directory / "job.bpf.o")
    except SystemExit as error:  # pytest would take it for its own end
        pytest.fail(str(error))
    return (directory / "job.bpf.o").read_bytes()


def single(built: bytes, number: int) -> bytes:
    """Return the object with one mutant chosen."""
    placeholder = struct.pack("=I", NOBODY)
    assert built.count(placeholder) == 1
    return built.replace(placeholder, struct.pack("=I", number))


def failing(datapath: Datapath, bench: int) -> set[str]:
    """Return the names of the cases that the programs misjudge."""
    prepare(datapath, bench)
    out = [case for case in SIZES + HOSTILE if misjudged(datapath, bench, "from_job", [case])]
    back = [case for case in INBOUND if misjudged(datapath, bench, "to_job", [case])]
    return {case.name for case in out + back}


def test_with_all_guards_the_programs_are_the_ordinary_ones(
    every_mutant: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """A way around that nobody takes changes nothing: what fails below fails for its mutant."""
    built = tmp_path / "job.bpf.o"
    built.write_bytes(single(every_mutant, len(MUTANTS)))
    monkeypatch.setattr(loaders, "OBJECT", built)
    datapath, bench = (request.getfixturevalue(name) for name in ("datapath", "bench"))
    assert failing(datapath, bench) == set()


@pytest.mark.parametrize(
    "number", range(len(MUTANTS)), ids=[m.attack.replace(" ", "-") for m in MUTANTS]
)
def test_without_its_guard_an_attack_is_noticed(
    number: int, every_mutant: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """What holds an attack off is seen to do so: the ordinary test fails when it is gone."""
    test, given = MUTANTS[number].test, dict(MUTANTS[number].given)
    built = tmp_path / "job.bpf.o"
    built.write_bytes(single(every_mutant, number))
    monkeypatch.setattr(loaders, "OBJECT", built)
    if isinstance(test, tuple):
        datapath, bench = (request.getfixturevalue(name) for name in ("datapath", "bench"))
        assert failing(datapath, bench) >= set(test)
        return
    fixtures = {
        name: request if name == "request" else request.getfixturevalue(name)
        for name in inspect.signature(test).parameters
        if name not in given
    }
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(**fixtures, **given)
