"""The ground that root tests stand on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

pytestmark = pytest.mark.root


def test_fresh_host_has_nothing_but_loopback(fresh_host: Path) -> None:
    """A test's host starts with one interface and an empty /run."""
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert list(Path("/run").iterdir()) == []
    assert (Path("/sys/class/net") / "lo").exists()
