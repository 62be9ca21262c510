"""Control groups of version 2 are found, made, filled and removed."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.linux import cgroups
from tests.conftest import LIBC, check, mount

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes control groups"),
]


@pytest.fixture
def group(fresh_host: Path) -> Iterator[Path]:
    """Make a group of this test's own, on the hierarchy of a fresh host."""
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
    made = cgroups.mount() / f"lark-test-{os.getpid()}"
    made.mkdir()
    yield made
    assert cgroups.remove(made)


@contextmanager
def sleeper() -> Iterator[int]:
    """Run a process that does nothing; gives its pid."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def test_the_mount_in_sight_is_found(group: Path) -> None:
    """Mounts that others cover are listed, too, and are of no use."""
    assert cgroups.mount() == Path("/sys/fs/cgroup")


def test_no_hierarchy_is_said(fresh_host: Path) -> None:
    """The new /sys of a fresh host covers what the machine has mounted."""
    with pytest.raises(PrerequisiteError, match="no control groups of version 2"):
        cgroups.mount()


def test_part_of_a_hierarchy_is_of_no_use(group: Path) -> None:
    """Where only a part is mounted, the paths in /proc would not fit."""
    check(LIBC.mount(bytes(group), b"/mnt", None, 4096, None), "bind a part")
    check(LIBC.umount2(b"/sys/fs/cgroup", 2), "umount")
    try:
        with pytest.raises(PrerequisiteError):
            cgroups.mount()
    finally:
        mount("cgroup2", "/sys/fs/cgroup", "cgroup2")


def test_processes_move_with_their_children(group: Path) -> None:
    """A process is listed where it is, also from further up, and what it starts is born there."""
    inner = group / "inner"
    inner.mkdir()
    with sleeper() as pid:
        cgroups.move(pid, inner)
        assert cgroups.of(pid) == f"/{group.name}/inner"
        assert cgroups.processes(inner) == cgroups.processes(group) == [pid]
        assert not cgroups.remove(group), "a group with a process stays"
        assert inner.exists()
    assert cgroups.processes(group) == []


def test_a_process_that_is_gone_is_nowhere(group: Path) -> None:
    """Its number says so instead of a group, and cannot be moved."""
    with sleeper() as pid:
        pass
    assert cgroups.of(pid) == ""
    with pytest.raises(KernelError, match=f"move process {pid} to control group"):
        cgroups.move(pid, group)


def test_removal_takes_what_is_below_and_may_be_repeated(group: Path) -> None:
    """The batch system may have made groups of its own in there."""
    (group / "one" / "two").mkdir(parents=True)
    assert cgroups.remove(group / "one")
    assert cgroups.remove(group / "one")
    assert not (group / "one").exists()


@pytest.mark.parametrize("change", ["nobody", "owner", "group may write", "others may write"])
def test_delegation_is_seen(group: Path, change: str) -> None:
    """Whoever may write to a group's list of processes may take them out of those below."""
    inner = group / "inner"
    inner.mkdir()
    procs = group / "cgroup.procs"
    if change == "owner":
        os.chown(procs, 1001, -1)
    elif change != "nobody":
        procs.chmod(0o664 if change.startswith("group") else 0o646)
    found = cgroups.others_who_may_move(inner, cgroups.mount())
    assert found == (None if change == "nobody" else group)


def test_rights_in_the_group_itself_do_not_matter(group: Path) -> None:
    """To move out takes rights where the way leads to."""
    os.chown(group / "cgroup.procs", 1001, -1)
    assert cgroups.others_who_may_move(group, cgroups.mount()) is None
