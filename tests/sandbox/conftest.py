from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sandbox.site import Site

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def site(fresh_host: Path) -> Site:
    """Put a fresh host on a site's network."""
    return Site(fresh_host)
