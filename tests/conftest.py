"""Namespaces for tests: even "the host" is a fresh one.

`fresh_host` moves the test's thread into new network and mount namespaces with an empty `/run`,
its own `/sys` and bpffs, and a loopback that is up, and back afterwards; everything the test made
there dies with them. Whole systems with processes of their own are built by `tests.lab`.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_FS, CLONE_NEWNS, CLONE_NEWNET = 0x00000200, 0x00020000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 1 << 18
# a busy machine is no property of the code
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", settings.get_profile("any machine"), max_examples=20_000)
# LARK_PROFILE=deep looks for hours where CI looks for seconds
settings.load_profile(os.environ.get("LARK_PROFILE", "any machine"))
LIBC = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str) -> None:
    check(LIBC.mount(source.encode(), target.encode(), kind.encode(), 0, None), f"mount {target}")


@pytest.fixture
def fresh_host(tmp_path: Path) -> Iterator[Path]:
    """Run the test as root in network and mount namespaces of its own; gives its tmp_path."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces")
    here = Path.cwd()
    with (
        Path("/proc/thread-self/ns/net").open("rb") as net,
        Path("/proc/thread-self/ns/mnt").open("rb") as mnt,
    ):
        check(LIBC.unshare(CLONE_NEWNS | CLONE_NEWNET), "unshare")
        try:
            check(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make / private")
            mount("run", "/run", "tmpfs")
            mount("sys", "/sys", "sysfs")
            mount("bpf", "/sys/fs/bpf", "bpf")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield tmp_path
        finally:
            check(LIBC.setns(net.fileno(), CLONE_NEWNET), "return to the network namespace")
            # a thread of the test that has just been joined may still be ending in the kernel,
            # and with it share our root and cwd, which setns does not allow
            check(LIBC.unshare(CLONE_FS), "unshare root and cwd")
            check(LIBC.setns(mnt.fileno(), CLONE_NEWNS), "return to the mount namespace")
            os.chdir(here)
