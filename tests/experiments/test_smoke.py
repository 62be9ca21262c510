from __future__ import annotations

import os

import pytest

from tests.experiments import limits
from tests.experiments.results import MEGA
from tests.experiments.testbed import Testbed

LIMIT = 20
"""Mbit/s: little enough for a machine that runs other tests beside."""


@pytest.mark.root
def test_an_experiment_measures_the_rate_that_the_policy_gives() -> None:
    """Two seconds of one upload with a limit are on that limit, and far above it without one."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces")
    with Testbed(limits.POLICY, limits.OUT_OF_THE_WAY) as bed:
        held = limits.stream(bed, "sent", 2.0, LIMIT)
        free = limits.stream(bed, "sent", 1.0, 0)
    assert held.mean == pytest.approx(LIMIT * MEGA, rel=0.1)
    assert free.mean > 3 * held.mean
