"""Control groups of version 2: where a process is, groups made and removed, programs on them.

The hierarchy is found by its mount (workers have it at /sys/fs/cgroup, those with version 1 beside
it at /sys/fs/cgroup/unified), and a group is named by its path in it, as /proc/PID/cgroup does. A
mount that shows a part of the hierarchy only is of no use: paths would not fit.

Groups here are only for telling processes and their sockets apart: no controller is enabled, so the
rule that a group with controllers holds no processes does not apply, and all that the batch system
limits and counts in its own group goes on to include what is below.

A socket belongs to the group that its process was in when it was made, for good. Programs are
attached beside those of others (BPF_F_ALLOW_MULTI): a packet passes if all let it. They need no
pins: they stay as long as their group, and one that is attached again replaces its namesake in one
step (BPF_F_REPLACE, since Linux 5.6), so that no packet is seen by both or by none.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.linux.bpf import BpfError, Command, address_of, bpf
from lark_agent.linux.mounts import mounts

_ALLOW_MULTI, _REPLACE = 2, 4  # include/uapi/linux/bpf.h
_MOST_PROGRAMS = 64  # on one group and hook (kernel/bpf/cgroup.c: BPF_CGROUP_MAX_PROGS)
_PROGRAM_NAME = slice(64, 80)  # struct bpf_prog_info
_AT_FDCWD = -100
_LIBC = ctypes.CDLL(None, use_errno=True)


class Hook(IntEnum):
    """Where a program meets packets of a group's sockets (enum bpf_attach_type)."""

    RECEIVED = 0
    SENT = 1


def mount() -> Path:
    """Return where the whole hierarchy is mounted; raises PrerequisiteError if nowhere."""
    # not all names are UTF-8
    for each in mounts(os.fsdecode(Path("/proc/self/mountinfo").read_bytes())):
        if each.kind != "cgroup2" or each.root != "/":
            continue
        place = Path(each.point)
        if (place / "cgroup.procs").exists():  # else another mount covers it
            return place
    raise PrerequisiteError(
        "this worker has no control groups of version 2; mount them (systemd: "
        "systemd.unified_cgroup_hierarchy=1 on the kernel's command line)"
    )


def of(pid: int) -> str:
    """Return the path of a process's group; "" if it is gone or outside our part."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")
        for line in text.split("\n"):  # a group's name may hold what else ends lines
            if line.startswith("0::/") and not line.startswith("0::/.."):
                return line.removeprefix("0::").removesuffix(" (deleted)")
    return ""


def identity(group: Path) -> int:
    """Return the number that programs know a group by.

    It is the group's file handle (Linux before 5.5 does not show all of it as inode number).
    """
    handle = ctypes.create_string_buffer(struct.pack("=Ii8x", 8, 0), 16)
    mount_id = ctypes.c_int()
    done = _LIBC.name_to_handle_at(_AT_FDCWD, os.fsencode(group), handle, ctypes.byref(mount_id), 0)
    if done != 0:
        raise KernelError(f"identify control group {group}", os.strerror(ctypes.get_errno()))
    return int(struct.unpack_from("=Q", handle, 8)[0])


def move(pid: int, group: Path) -> None:
    """Put a process with all its threads into a group; raises KernelError."""
    try:
        (group / "cgroup.procs").write_text(str(pid), encoding="ascii")
    except OSError as error:
        remedy = "the group around it is threaded" if error.errno == errno.EOPNOTSUPP else ""
        raise KernelError(
            f"move process {pid} to control group {group}", str(error.strerror), remedy
        ) from error


def processes(group: Path) -> list[int]:
    """Return the processes in a group and in those below; none if it is gone."""
    found: list[int] = []
    for one in [group, *below(group)]:
        with suppress(OSError):
            found += map(int, (one / "cgroup.procs").read_text(encoding="ascii").split())
    return found


def below(group: Path) -> list[Path]:
    """Return the groups in a group, each before those that are in it."""
    return [Path(place) for place, _, _ in os.walk(group)][1:]


def remove(group: Path) -> bool:
    """Remove a group with those in it; False if it still holds a process."""
    for one in [*reversed(below(group)), group]:
        try:
            one.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in {errno.EBUSY, errno.ENOTEMPTY}:
                return False
            raise KernelError(f"remove control group {one}", str(error.strerror)) from error
    return True


def others_who_may_move(group: Path, root: Path) -> Path | None:
    """Return a group around this one that someone else than root may move processes to, or None.

    Who may write to the `cgroup.procs` of any group around it can take a process out (delegation,
    cgroups(7)); rights in the group itself are not asked for.
    """
    for one in group.parents:
        if not one.is_relative_to(root):
            break
        with suppress(FileNotFoundError):  # removed meanwhile
            facts = (one / "cgroup.procs").stat()
            if facts.st_uid != 0 or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return one
    return None


def attach(group: Path, program: int, name: str, hook: Hook) -> None:
    """Attach a program to a group, instead of its namesake if there is one; raises KernelError."""
    descriptor = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    before = -1
    try:
        before = _attached(descriptor, name, hook)
        flags = _ALLOW_MULTI | (_REPLACE if before >= 0 else 0)
        attributes = struct.pack("=5I", descriptor, program, hook, flags, max(before, 0))
        bpf(Command.PROG_ATTACH, bytearray(attributes), f"attach {name} to control group {group}")
    finally:
        for opened in (descriptor, before):
            if opened >= 0:
                os.close(opened)


def _attached(group: int, name: str, hook: Hook) -> int:
    """Return a descriptor of the program of this name on a group, -1 if there is none."""
    numbers = bytearray(4 * _MOST_PROGRAMS)
    attributes = bytearray(
        struct.pack("=4IQI4x", group, hook, 0, 0, address_of(numbers), _MOST_PROGRAMS)
    )
    bpf(Command.PROG_QUERY, attributes, "list a control group's programs")
    (count,) = struct.unpack_from("=I", attributes, 24)
    for (number,) in struct.iter_unpack("=I", numbers[: 4 * count]):
        found = _open_program(number)
        if found >= 0 and _program_name(found) == name:
            return found
        if found >= 0:
            os.close(found)
    return -1


def _open_program(number: int) -> int:
    attributes = bytearray(struct.pack("=III", number, 0, 0))
    try:
        return bpf(Command.PROG_GET_FD_BY_ID, attributes, f"open program {number}")
    except BpfError as error:
        if error.number == errno.ENOENT:  # detached meanwhile
            return -1
        raise


def _program_name(program: int) -> str:
    info = bytearray(80)
    attributes = bytearray(struct.pack("=IIQ", program, len(info), address_of(info)))
    bpf(Command.OBJ_GET_INFO_BY_FD, attributes, "describe a program")
    return info[_PROGRAM_NAME].rstrip(b"\0").decode(errors="replace")
