"""A lab with an agent and a real Slurm cluster, one for the tests of a module."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lark_agent.hooks.install import BUILT, SPANK_PLUGIN
from tests.lab.world import Lab
from tests.slurm.cluster import Cluster, missing
from tests.slurm.site import AGENT, PLUGSTACK

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """Skip where there is no Slurm: `make test-slurm` installs it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces")
    if lacking := missing():
        pytest.skip(f"needs Slurm, and {lacking} is not installed: `make test-slurm` installs it")
    if not (BUILT / SPANK_PLUGIN).exists():
        pytest.skip("the SPANK plugin is not built: slurm/spank.h was missing at `make build`")


@pytest.fixture(scope="module")
def cluster(slurm_installed: None) -> Iterator[Cluster]:
    """Give the tests a cluster with its database, and an agent on its node."""
    with Lab() as lab:
        lab.agent(AGENT)
        yield Cluster(lab, accounting=True, plugstack=PLUGSTACK)


@pytest.fixture(scope="module")
def pair(slurm_installed: None) -> Iterator[Cluster]:
    """Give the tests a cluster of two nodes, with its database and an agent on each."""
    with Lab(second=True) as lab:
        lab.agent(AGENT)
        lab.agent(f'worker = "worker2"\n{AGENT}', host="worker2")
        yield Cluster(lab, accounting=True, plugstack=PLUGSTACK, second=True)
