"""Two ways from job.bpf.c to two pinned programs; afterwards nobody can tell which was taken.

Both get a directory where the maps are pinned already and pin the programs into another. The agent
made the maps (`lark_agent.datapath.pins`), so the loaders cannot disagree about their sizes, and a
worker may go from one loader to the other without losing a counter.

* **libbpf** loads job.bpf.o, which clang compiled when the package was built: half a second of the
  kernel's verifier, in this process.
* **bcc** compiles the same source on this worker, for a machine that has no matching object or a
  site that edits the program: some seconds and 130 MB, in a child (`bcc_child.py`), so that
  neither stays. That fork is the one exception to the rule that the agent never forks for the
  kernel; it happens once, at start, before any thread of grpc exists.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.datapath import bcc_child
from lark_agent.datapath.layout import PROGRAMS
from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.linux import bpf, libbpf

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCE = Path(__file__).with_name("job.bpf.c")
OBJECT = Path(__file__).with_name("job.bpf.o")
_COMPILE_SECONDS = 120


def with_libbpf(maps: Mapping[str, bpf.Map], out: Path) -> None:
    """Load the built object and pin its programs into `out`."""
    if not OBJECT.exists():
        raise PrerequisiteError(
            f'{OBJECT} is missing; install the package with clang, or set datapath.loader = "bcc"'
        )
    loaded = libbpf.load_programs(OBJECT, {name: m.fd for name, m in maps.items()}, PROGRAMS)
    try:
        for name, fd in loaded.items():
            bpf.pin(fd, out / name)
    finally:
        for fd in loaded.values():
            os.close(fd)


def with_bcc(python: str, maps: Path, out: Path) -> None:
    """Compile the source with `python`'s bcc against the maps pinned in `maps`."""
    command = [python, "-I", bcc_child.__file__, str(SOURCE), str(maps), str(out)]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PrerequisiteError(f"cannot run bcc: {error}; see datapath.python") from error
    if child.returncode == bcc_child.LACKING:
        raise PrerequisiteError(child.stderr.strip().splitlines()[-1])
    if child.returncode != 0:
        raise KernelError(
            f"compile {SOURCE} with bcc",
            child.stderr.strip()[-4000:] or f"exit status {child.returncode}",
            'set datapath.loader = "libbpf" if the package came with an object',
        )
