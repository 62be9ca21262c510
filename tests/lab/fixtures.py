"""The `lab` fixture: one laboratory per test, gone with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Give the test a worker, a campus and an internet server."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces")
    with Lab() as made:
        yield made
