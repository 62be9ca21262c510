"""A Debian system with HTCondor in it, and what jobs of the tests call.

Pools are overlays over it (`tests.htcondor.pool`), so nothing that a test does reaches it. As a
command (`python -m tests.htcondor.root trixie`) it only makes the root, for caches in CI.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from tests.machines import debian

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = ("minicondor", "openssh-server", "openssh-client", "python3", "curl", "iproute2")
OPTIONAL = ("apptainer", "singularity-container")
"""Installed where the suite has them."""


def made(suite: str) -> Path:
    """Return the root of a suite, building it first if need be; raises DebianError."""
    recipe = f"{suite}: {' '.join((*PACKAGES, *OPTIONAL))}\n"
    build = partial(debian.bootstrap, suite, packages=PACKAGES, optional=OPTIONAL)
    return debian.kept(f"htcondor-{suite}", recipe, build)


if __name__ == "__main__":
    print(made(sys.argv[1]))
