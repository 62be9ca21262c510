"""Checks of the installation: configuration, wrapper, group, journal."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.accounting.damage import SUFFIX
from lark_agent.cli.doctor.findings import fail, ok, warn
from lark_agent.cli.units import size
from lark_agent.hooks.install import MODE, PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.cli.doctor.findings import Finding
    from lark_agent.cli.doctor.probe import Probe

CAP_SYS_ADMIN = 21
VFS_CAP_REVISIONS = {0x02000000, 0x03000000}  # include/uapi/linux/capability.h
VFS_CAP_EFFECTIVE = 1
LOW_SPACE = 100_000_000
"""Bytes; a journal of a million jobs is a few times this."""
NO_SPACE = 5_000_000


def configuration(probe: Probe) -> Iterator[Finding]:
    """Check that the configuration can be used."""
    if probe.problem:
        for line in probe.problem.splitlines():
            yield fail(line, "edit the file; the checks below assume the defaults")
    else:
        yield ok(f"worker '{probe.settings.worker_name}', {probe.settings.pool.slots} slots")


def wrapper(probe: Probe) -> Iterator[Finding]:
    """Check that the job wrapper is in place and may enter a sandbox."""
    run = probe.wrapper()
    if run is None:
        yield fail(
            "lark-run is not installed",
            "as root: lark-agent install-wrapper",
        )
        return
    enter, right = run.with_name("lark-enter"), f"chmod {MODE:04o}"
    for path in (run.with_name(name) for name in PROGRAMS):
        mode = _mode(probe.path(path))
        if mode is None:
            yield fail(
                f"{path} does not exist",
                "as root: lark-agent install-wrapper, which puts all side by side",
            )
            return
        if not mode & stat.S_IXOTH:
            yield fail(f"{path} may not be executed by jobs", f"{right} {path}")
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            yield fail(f"{path} can be changed by others than its owner", f"{right} {path}")
        elif mode & (stat.S_IRGRP | stat.S_IROTH):
            yield warn(
                f"{path} can be read, so jobs of the same account can trace it as it starts",
                f"{right} {path}",
            )
    yield from _capability(probe, enter)
    mount = probe.mount_of(enter)
    if mount and "nosuid" in mount.options:
        yield fail(
            f"{enter} lies on {mount.point}, mounted nosuid: its capability is ignored",
            "lark-agent install-wrapper on another file system, or remount this one without nosuid",
        )


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _capability(probe: Probe, enter: Path) -> Iterator[Finding]:
    remedy = f"as root: lark-agent install-wrapper, or setcap cap_sys_admin+ep {enter}"
    try:
        held, effective = capabilities(probe.capability(probe.path(enter)))
    except OSError as error:
        yield fail(f"{enter} has no file capability ({os.strerror(error.errno or 0)})", remedy)
        return
    if not held >> CAP_SYS_ADMIN & 1 or not effective:
        yield fail(f"{enter} has a file capability, but not cap_sys_admin+ep", remedy)
    elif held != 1 << CAP_SYS_ADMIN:
        yield warn(f"{enter} has more file capabilities than it needs ({held:#x})", remedy)
    else:
        yield ok(f"{enter} has cap_sys_admin, and nothing else")


def capabilities(attribute: bytes) -> tuple[int, bool]:
    """Read security.capability (struct vfs_cap_data): the permitted set, and if it is effective."""
    if len(attribute) < 20:
        return 0, False
    magic, low, _, high, _ = struct.unpack_from("<5I", attribute)
    known = magic & 0xFF000000 in VFS_CAP_REVISIONS
    return (high << 32 | low if known else 0), bool(magic & VFS_CAP_EFFECTIVE)


def admin_group(probe: Probe) -> Iterator[Finding]:
    """Look for the group whose members see every job."""
    name = probe.settings.admin_group
    if probe.group_exists(name):
        yield ok(f"members of {name} see every job")
    else:
        yield warn(f"there is no group {name}: only root sees every job", f"groupadd -r {name}")


def journal(probe: Probe) -> Iterator[Finding]:
    """Look for a place, and space, for the journal."""
    state = Path(probe.settings.paths.state)
    place = probe.path(state)
    existing = next(p for p in (place, *place.parents) if p.exists())
    if not existing.is_dir():
        yield fail(f"{state} (paths.state) leads through a file", "move it, or set paths.state")
        return
    if probe.is_root and not os.access(existing, os.W_OK):
        yield fail(f"{state} cannot be written, even by root", "is the file system read-only?")
    free = probe.free_bytes(existing)
    if free < NO_SPACE:
        yield fail(f"{state}: {size(free)} free: nothing can be recorded", "free some space")
    elif free < LOW_SPACE:
        yield warn(f"{state}: only {size(free)} free", "free some space; records wait there")
    else:
        yield ok(f"{state}: {size(free)} free")


def damage(probe: Probe) -> Iterator[Finding]:
    """Look for stores that were found damaged and set aside."""
    state = Path(probe.settings.paths.state)
    found = sorted(file.name for file in probe.path(state).glob(f"*{SUFFIX}*"))
    found = [name for name in found if not name.endswith(("-wal", "-shm"))]
    for name in found:
        yield warn(
            f"{state}/{name} was damaged when an agent opened it; what could be read of it is kept",
            "see the disk's own messages (dmesg, smartctl); then remove the file",
        )
    if not found:
        yield ok(f"no file in {state} was found damaged")
