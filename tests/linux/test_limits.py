"""A machine that forbids network namespaces says so, with the remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

LIMIT = Path("/proc/sys/user/max_net_namespaces")
# The limit belongs to the user namespace of who writes it: this must never run in the first one.
TRY = """
import os, pathlib, sys
if os.readlink("/proc/self/ns/user") == sys.argv[1]:
    sys.exit("still in the machine's own user namespace")
pathlib.Path("/proc/sys/user/max_net_namespaces").write_text("0")
from lark_agent.errors import KernelError
from lark_agent.linux import libc
try:
    libc.unshare_network()
except KernelError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes a user namespace")
def test_no_network_namespaces_allowed() -> None:
    """`user.max_net_namespaces = 0` limits root too; the error names it, and nothing leaks out."""
    before = LIMIT.read_text()
    ours = str(Path("/proc/self/ns/user").readlink())
    done = subprocess.run(
        ["unshare", "-Ur", sys.executable, "-c", TRY, ours],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert LIMIT.read_text() == before
    assert done.returncode == 0, done.stderr
    assert "making a network namespace: No space left on device" in done.stdout
    assert "raise the sysctl user.max_net_namespaces; 0 forbids namespaces to root too" in (
        done.stdout
    )
