"""One pool for the tests of a module."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.htcondor import programs, root
from tests.htcondor.pool import Pool
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def condor_root() -> Path:
    """Give the root of the suite that `make test-htcondor SUITE=...` names."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces and a Debian to put HTCondor in")
    if not shutil.which("debootstrap"):
        pytest.skip("needs debootstrap, which `make system` installs")
    return root.made(os.environ.get("SUITE", "trixie"))


@pytest.fixture(scope="module")
def pool(condor_root: Path) -> Iterator[Pool]:
    """Give the module's tests a pool whose jobs start through the wrapper, and its agent."""
    with Lab() as lab:
        agent = lab.agent(AGENT)
        pool = Pool(lab, condor_root)
        programs.install(lab)
        pool.machine.path("/usr/local/bin/lark-agent").symlink_to(programs.AGENT)
        pool.configure(STARTERS, starters_programs(pool))
        yield pool
        agent.terminate()


def starters_programs(pool: Pool) -> str:
    """Return what `lark-agent htcondor-config` writes about the starter's programs."""
    written = pool.run([programs.AGENT, "htcondor-config"]).stdout.splitlines()
    lines = [line for line in written if line.startswith("STARTER.")]
    assert len(lines) == 2, written
    return "\n".join([*lines, ""])


STARTERS = "70-starters-programs"
"""File of config.d."""
AGENT = """
[accounting]
interval_seconds = 1
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
[[rules]]
when = "WantNetwork =?= false"
profile = "none"
"""
