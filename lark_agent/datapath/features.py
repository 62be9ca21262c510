"""What the datapath needs of a machine, found by trying it, for `lark doctor`.

Versions and configuration files lie (EL8's 4.18 has most of 5.14's BPF), so each feature is used
once, on objects that are gone when the probe returns: maps are made and closed, and a two-line
program is hung on the loopback of a network namespace that lives as long as a throw-away thread.
Nothing here needs BTF or kernel headers; only the bcc loader needs headers.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyroute2.iproute import IPRoute

from lark_agent.datapath import bcc_child
from lark_agent.datapath.attach import attach_programs
from lark_agent.datapath.layout import PROGRAMS
from lark_agent.datapath.settle import wait_for_programs
from lark_agent.errors import KernelError, LarkError, PrerequisiteError
from lark_agent.linux import bpf, libbpf, libc, namespaces
from lark_agent.linux.bpf import Command, Map, MapKind, MapSpec

if TYPE_CHECKING:
    from pathlib import Path

Probe = Callable[[], str]
_PROGRAM_SCHED_CLS = 3
# two instructions: put 0 (TC_ACT_OK) into the result register, and leave
_PASS_ALL = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing the datapath needs."""

    name: str
    ok: bool
    detail: str
    """What was found, or what is wrong and what to do."""


def features(bpffs: Path, loader: str, python: str) -> list[Feature]:
    """Try everything. The agent's own pins and interfaces are not touched."""
    probes: dict[str, Probe] = {
        "bpf system call": _maps,
        "longest-prefix tries": _trie,
        "tc programs": _tc,
        "grace period": _grace_period,
        "bpffs": lambda: _bpffs(bpffs),
        "loader": lambda: _bcc(python) if loader == "bcc" else libbpf.version(),
    }
    return [_try(name, probe) for name, probe in probes.items()]


def _try(name: str, probe: Probe) -> Feature:
    try:
        return Feature(name, ok=True, detail=probe())
    except (LarkError, OSError) as error:
        return Feature(name, ok=False, detail=str(error))


def _maps() -> str:
    with Map.create("probe", MapSpec(MapKind.PERCPU_ARRAY, 4, 8, 2)) as counters:
        counters.read_range(0, 2)
        batches = "in batches" if counters.batches else "one by one (before Linux 5.13)"
    return f"counters of {bpf.possible_cpus()} CPUs are read {batches}"


def _trie() -> str:
    with Map.create("probe", MapSpec(MapKind.LPM_TRIE, 8, 4, 1, bpf.NO_PREALLOC)):
        return "destination classes can be looked up"


def _tc() -> str:
    """Attach for real, in a thread's own network namespace."""
    return namespaces.in_thread(_tc_in_new_namespace)


def _tc_in_new_namespace() -> str:
    libc.unshare_network()
    code, license_name = _PASS_ALL, b"Apache-2.0\0"
    attributes = struct.pack(
        "=IIQQ",
        *(_PROGRAM_SCHED_CLS, len(code) // 8),
        *(bpf.address_of(code), bpf.address_of(license_name)),
    )
    fd = bpf.bpf(Command.PROG_LOAD, bytearray(attributes), "load a tc program")
    try:
        with IPRoute() as netlink:
            attach_programs(netlink, 1, dict.fromkeys(PROGRAMS, fd))
    finally:
        os.close(fd)
    return "clsact and direct-action filters attach"


def _grace_period() -> str:
    wait_for_programs()
    return "the end of running programs can be awaited"


def _bpffs(path: Path) -> str:
    existing = next(place for place in (path, *path.parents) if place.exists())
    if not bpf.is_bpffs(existing):
        raise PrerequisiteError(
            f"{path} is not in a bpffs; mount one with: mount -t bpf bpf /sys/fs/bpf"
        )
    return f"{existing} is in a bpffs"


def _bcc(python: str) -> str:
    command = [python, "-I", bcc_child.__file__, "--check"]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PrerequisiteError(f"cannot run {python}: {error}; see datapath.python") from error
    if child.returncode:
        raise KernelError("bcc", child.stderr.strip())
    return f"{python} has bcc, and kernel headers are there"
