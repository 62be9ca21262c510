"""Each guard of the programs is held by a test: without the guard, that test fails.

`mutants.py` has the guards, `mutating.py` takes them out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lark_agent.datapath import Datapath, host, loaders
from tests.datapath import mutating
from tests.datapath.cases import HOSTILE, INBOUND, SIZES
from tests.datapath.mutants import MUTANTS, OF_HOST
from tests.datapath.test_host import world  # noqa: F401  a fixture of its tests
from tests.datapath.test_verdicts import misjudged, prepare

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def every_mutant(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Build the programs on links."""
    return mutating.build(MUTANTS, "job.bpf.c", tmp_path_factory.mktemp("mutants"))


@pytest.fixture(scope="module")
def every_host_mutant(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Build the programs on control groups."""
    return mutating.build(OF_HOST, "host.bpf.c", tmp_path_factory.mktemp("mutants"))


def named(mutants: Sequence[mutating.Mutant]) -> list[str]:
    """Return what pytest is to call them."""
    return [mutant.attack.replace(" ", "-") for mutant in mutants]


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
    built.write_bytes(mutating.single(every_mutant, len(MUTANTS)))
    monkeypatch.setattr(loaders, "OBJECT", built)
    datapath, bench = (request.getfixturevalue(name) for name in ("datapath", "bench"))
    assert failing(datapath, bench) == set()


@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=named(MUTANTS))
def test_without_its_guard_an_attack_is_noticed(
    number: int, every_mutant: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """What holds an attack off is seen to do so: the ordinary test fails when it is gone."""
    test = MUTANTS[number].test
    built = tmp_path / "job.bpf.o"
    built.write_bytes(mutating.single(every_mutant, number))
    monkeypatch.setattr(loaders, "OBJECT", built)
    if isinstance(test, tuple):
        datapath, bench = (request.getfixturevalue(name) for name in ("datapath", "bench"))
        assert failing(datapath, bench) >= set(test)
        return
    mutating.assert_fails(MUTANTS[number], request)


@pytest.mark.parametrize("number", range(len(OF_HOST)), ids=named(OF_HOST))
def test_without_its_guard_a_job_without_a_sandbox_is_noticed(
    number: int, every_host_mutant: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """The same, where a control group is all that the job is told by."""
    built = tmp_path / "host.bpf.o"
    built.write_bytes(mutating.single(every_host_mutant, number))
    monkeypatch.setattr(host, "OBJECTS", (built, built))
    mutating.assert_fails(OF_HOST[number], request)
