from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent.datapath import Datapath, load
from tests.conftest import mount
from tests.datapath.judge import Judge
from tests.datapath.network import BPFFS, HOST_MAC, Network, sh

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def datapath(fresh_host: Path) -> Iterator[Datapath]:
    """Load a datapath of eight slots with libbpf."""
    with load(BPFFS, 8) as loaded:
        yield loaded


@pytest.fixture
def network(datapath: Datapath) -> Network:
    """Connect a job's sandbox to a far host through the datapath."""
    return Network(datapath)


@pytest.fixture
def bench(fresh_host: Path) -> int:
    """Make an interface for test runs; gives its index."""
    sh(f"ip link add bench address {HOST_MAC.hex(':')} type veth peer name other")
    return socket.if_nametoindex("bench")


@pytest.fixture
def judge(datapath: Datapath, bench: int) -> Judge:
    """Judge frames of a job on the interface for test runs."""
    return Judge(datapath, bench)


@pytest.fixture
def kernel_headers(fresh_host: Path) -> None:
    """Put the distribution's headers where bcc looks for those of the running kernel, privately."""
    release = os.uname().release
    if (Path("/lib/modules") / release / "build").exists():
        return
    found = sorted(Path("/usr/src").glob("linux-headers-*-amd64"))
    if not found:
        pytest.skip("no kernel headers on this machine (linux-headers-amd64): bcc cannot compile")
    mount("modules", "/lib/modules", "tmpfs")
    place = Path("/lib/modules") / release
    place.mkdir()
    (place / "build").symlink_to(found[-1])
    common = found[-1].with_name(found[-1].name.removesuffix("-amd64") + "-common")
    (place / "source").symlink_to(common)
