"""libnftables in a process that has much open."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root
# argv: how many descriptors to open first. In a process of its own: it may be aborted.
MANY_OPEN = """
import os, resource, sys
from lark_agent.linux import nftables
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(int(sys.argv[1]))]
nftables.run("add table inet trial")
print(nftables.run("list tables").strip())
print(len(os.listdir("/proc/self/fd")) - 1 - len(kept))
"""


@pytest.mark.parametrize("count", [0, 600, 2000])
def test_any_number_of_descriptors(fresh_host: Path, count: int) -> None:
    """The library does its work, and nothing that was open is closed by it."""
    del fresh_host
    done = subprocess.run(
        [sys.executable, "-c", MANY_OPEN, str(count)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "table inet trial\n3\n"
