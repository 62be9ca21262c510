"""What others say to the native programs: the corpora, and a moment of fuzzing from there on.

A harness that finds nothing proves little by itself: each is also shown a program of which a check
was taken out, and must fail on an input of its corpus.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.build import CORPUS, HARNESSES, NATIVE, build, complaint, fuzz, replay, why_not

if TYPE_CHECKING:
    from pathlib import Path

RUNS = 20_000
"""Inputs for each harness: one to two seconds of a processor."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A check that a program has lost, and the harness that must notice."""

    harness: str
    file: str
    text: str
    instead: str


LOST = (
    Lost("ad", "hook.h", "strncasecmp(ad, names[i]", "strncmp(ad, names[i]"),
    Lost("ad", "hook.h", 'ad += strspn(ad, " \\t");', ""),
    Lost("answer", "answer.h", "size != 12", "size < 12"),
    Lost("answer", "answer.h", "(BIND_RESOLVER | STAY | BARE)", "255"),
    Lost("answer", "answer.h", "message->msg_flags & MSG_TRUNC", "false"),
    Lost("answer", "answer.h", "MSG_CMSG_CLOEXEC | ", ""),
    Lost("answer", "last-words.h", "(unsigned char)line[i] < ' '", "line[i] == '\\n'"),
    Lost("request", "client.h", "payload & 0xff", "payload & 0x7"),
    Lost("request", "client.h", "F_SEAL_GROW | F_SEAL_WRITE", "F_SEAL_GROW"),
    Lost("request", "lark-run.c", "!*option || !argv[1]", "!*option"),
    Lost("reservation", "answer.h", "*reply = '\\0';", ""),
    Lost("reservation", "hook.h", "if (*text == '\"')", "if (*text == '`')"),
    Lost("reservation", "hook.h", "(unsigned char)*text < ' '", "*text == '\\t'"),
    Lost("slurm", "slurm-job.h", "item + length < end", "item[length]"),
    Lost("slurm", "spank_lark.c", '!strpbrk(value, "\\"\\\\\\n")', "value"),
    Lost("slurm", "spank_lark.c", "strlen(value) >= WORD_MAX", "false"),
    Lost("slurm", "spank_lark.c", "value[strspn(value, allowed)]", "!*allowed"),
    Lost(
        "startd", "lark-starter.c", "inet_pton(AF_INET, address, &startd->sin_addr) != 1", "false"
    ),
    Lost("state", "lark-enter.c", "good = **variable == GUARD;", ""),
    Lost("state", "lark-enter.c", "*text >= '0' && *text <= '9' && ", ""),
    Lost("state", "lark-enter.c", "saved[SOCKET] > INT32_MAX", "false"),
)


@pytest.fixture
def harness(request: pytest.FixtureRequest) -> str:
    """Give the name of a harness that can be built here."""
    name: str = request.param
    if missing := why_not(name):
        pytest.skip(f"{name}: {missing}")
    return name


@pytest.mark.parametrize("harness", HARNESSES, indirect=True)
def test_nothing_that_others_say_breaks_a_program(harness: str, tmp_path: Path) -> None:
    """The corpus, and then the same thousands of inputs at every run, come to what they must."""
    program = build(harness, tmp_path)
    done = replay(program, CORPUS / harness)
    assert done.returncode == 0, complaint(done)
    found = tmp_path / "found"
    found.mkdir()
    done = fuzz(program, found, f"-runs={RUNS}", "-seed=2015", "-use_value_profile=1")
    assert done.returncode == 0, complaint(done)


@pytest.mark.parametrize(
    ("harness", "lost"),
    [pytest.param(one.harness, one, id=f"{one.harness}: {one.text.strip()}") for one in LOST],
    indirect=["harness"],
)
def test_a_lost_check_is_found(harness: str, lost: Lost, tmp_path: Path) -> None:
    """Without one of a program's checks, an input of the corpus comes to something else."""
    native = tmp_path / "native"
    shutil.copytree(NATIVE, native, ignore=shutil.ignore_patterns("bin"))
    original = (native / lost.file).read_text()
    assert original.count(lost.text) == 1
    (native / lost.file).write_text(original.replace(lost.text, lost.instead))
    done = replay(build(harness, tmp_path, native), CORPUS / harness)
    assert done.returncode != 0
    assert complaint(done)


def test_every_harness_and_corpus_is_tried() -> None:
    """None is forgotten, and the corpora stay small."""
    assert sorted(folder.name for folder in CORPUS.iterdir()) == sorted(HARNESSES)
    sizes = [file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()]
    assert len(sizes) <= 60
    assert max(sizes) <= 1024
    assert {lost.harness for lost in LOST} == set(HARNESSES)
