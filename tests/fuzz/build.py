"""Building and running a harness.

A run ends by itself: after a number of inputs, of seconds, or at the first input that something is
wrong with. That input is kept in a file, and given to the harness as its argument it fails again.
Leaks are not looked for: each program ends, or becomes another, as soon as it has its answer.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "lark_agent" / "hooks" / "native"
CORPUS = HERE / "corpus"
HARNESSES = ("ad", "answer", "request", "reservation", "slurm", "startd", "state")
_FLAGS = (
    "-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Wno-unused-function", "-Werror",
    "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined",
)  # fmt: skip
_LIBRARIES = {"slurm": ("-lslurm",)}
_LONGEST = 1100
"""Bytes of an input: an answer that is too long is among them."""
_SECONDS_FOR_ONE_INPUT = 60
"""It takes microseconds; a machine may be busy."""


@functools.cache
def why_not(name: str) -> str:
    """Say what is missing here for a harness, "" if nothing is."""
    if name == "slurm" and not Path("/usr/include/slurm/spank.h").exists():
        return "Slurm's headers are not installed; apt install libslurm-dev"
    with tempfile.TemporaryDirectory(prefix="lark-fuzz-") as folder:
        source = Path(folder) / "empty.c"
        source.write_text("int LLVMFuzzerTestOneInput(void);\n"
                          "int LLVMFuzzerTestOneInput(void) { return 0; }\n")  # fmt: skip
        try:
            tried = _compile(source, Path(folder) / "empty", NATIVE, ())
        except FileNotFoundError:
            return "no clang; apt install clang"
    if tried.returncode != 0:
        return "clang has no fuzzer here; apt install libclang-rt-14-dev, or of clang's release"
    return ""


def build(name: str, folder: Path, native: Path = NATIVE) -> Path:
    """Compile a harness with the programs in `native`; raises RuntimeError with clang's words."""
    target = folder / name
    done = _compile(HERE / f"harness_{name}.c", target, native, _LIBRARIES.get(name, ()))
    if done.returncode != 0:
        raise RuntimeError(f"clang did not compile harness_{name}.c: {done.stderr}")
    return target


def _compile(
    source: Path, target: Path, native: Path, libraries: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    words = [os.environ.get("CLANG", "clang"), *_FLAGS, f"-I{native}", str(source)]
    return subprocess.run(
        [*words, "-o", str(target), *libraries], capture_output=True, text=True, check=False
    )


def replay(harness: Path, *inputs: Path) -> subprocess.CompletedProcess[str]:
    """Try inputs, or all in a folder, and nothing else."""
    return _run(harness, "-runs=0", *map(str, inputs))


def fuzz(harness: Path, found: Path, *limits: str) -> subprocess.CompletedProcess[str]:
    """Go on from the corpus until libFuzzer's `limits` are reached; new inputs go to `found`."""
    return _run(harness, *limits, str(found), str(CORPUS / harness.name))


def _run(harness: Path, *words: str) -> subprocess.CompletedProcess[str]:
    bounds = (f"-max_len={_LONGEST}", f"-timeout={_SECONDS_FOR_ONE_INPUT}", "-rss_limit_mb=1024",
              f"-artifact_prefix={harness}-")  # fmt: skip
    return subprocess.run(
        [str(harness), *bounds, *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        cwd=harness.parent, env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"},
    )  # fmt: skip


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return the lines in which a run that failed says what is wrong."""
    marks = (": not so: ", "ERROR: ", "runtime error: ", "SUMMARY: ")
    lines = done.stderr.splitlines()
    said = [line for line in lines if any(mark in line for mark in marks)] or lines[-5:]
    return "\n".join(said)
