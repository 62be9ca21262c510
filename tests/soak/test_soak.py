"""The short run that every test run has; `make soak` runs longer ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.soak.run import soak

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
SECONDS, SEED = 120, 20261123
FEWEST_JOBS, FEWEST_KILLS = 100, 5
"""On a machine that does much else besides."""


@pytest.mark.timeout(480)
def test_the_books_equal_the_wire_whatever_fails(tmp_path: Path) -> None:
    """Every job of every kind, against every fault: its record equals the wire; nothing leaks.

    None is refused but where an agent or room for its record was missing, and that is at most half
    of those that were tried; none that was let in notices anything (`tests.soak.run`).
    """
    outcome = soak(tmp_path, SECONDS, SEED)
    assert outcome.good(), str(outcome)
    assert outcome.jobs >= FEWEST_JOBS
    assert outcome.kills >= FEWEST_KILLS
    assert outcome.compared.received.bytes > 10_000_000
    assert outcome.compared.sent.bytes > 1_000_000
