"""Put the wrapper where batch systems find it.

pip cannot give files capabilities. `lark-enter` needs cap_sys_admin, permitted and effective, in
the extended attribute security.capability (include/uapi/linux/capability.h, revision 2);
the others, beside it, need nothing, nor does Slurm's plugin, where it was built.

The programs may be executed by everybody and read by root alone: what a user cannot read the kernel
lets them trace at no time, from the exec on. Other programs of theirs, in sandboxes, could steer
them else, in the worker's network.
"""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

from lark_agent.errors import PrerequisiteError

BUILT = Path(__file__).parent / "native" / "bin"
PROGRAMS = (
    "lark-run", "lark-enter", "lark-prepare", "lark-beside", "lark-sshd-setup", "lark-starter",
)  # fmt: skip
DIRECTORY = Path("/usr/libexec/lark")
"""Where it goes unless the admin says otherwise."""
MODE = 0o711
"""Of the programs."""
SPANK_PLUGIN = "spank_lark.so"
_CAP_SYS_ADMIN = 21
_REVISION_2, _EFFECTIVE = 0x02000000, 0x000001
CAPABILITY = struct.pack("<5I", _REVISION_2 | _EFFECTIVE, 1 << _CAP_SYS_ADMIN, 0, 0, 0)
"""Value of security.capability for cap_sys_admin=ep."""


def find(*more: Path) -> Path | None:
    """Return the lark-run that this process would start: on PATH, in DIRECTORY, or in `more`."""
    on_path = shutil.which("lark-run")
    candidates = [Path(on_path)] if on_path else [d / "lark-run" for d in (DIRECTORY, *more)]
    return next((path.resolve() for path in candidates if path.exists()), None)


def install(directory: Path) -> list[str]:
    """Copy what was built and set the capability; returns what was done.

    Raises PrerequisiteError if they were not built, or the file system takes no capability.
    """
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        plugin = (SPANK_PLUGIN,) if (BUILT / SPANK_PLUGIN).exists() else ()
        for name in (*PROGRAMS, *plugin):
            # a new file each time: one that runs cannot be written over
            fresh = directory / f".{name}.new"
            shutil.copyfile(BUILT / name, fresh)
            fresh.chmod(MODE if name in PROGRAMS else 0o755)
            if name == "lark-enter":
                os.setxattr(fresh, "security.capability", CAPABILITY)
            fresh.rename(directory / name)
    except OSError as error:
        raise PrerequisiteError(
            f"cannot install the wrapper in {directory}: {error.strerror} ({error.filename}); "
            "run as root, on a file system with extended attributes"
        ) from error
    if os.statvfs(directory).f_flag & os.ST_NOSUID:
        raise PrerequisiteError(
            f"{directory} is on a file system mounted nosuid, where capabilities have no effect; "
            "choose another --directory"
        )
    held = {"lark-enter": " cap_sys_admin=ep"}
    return [f"{directory}/{name}{held.get(name, '')}" for name in (*PROGRAMS, *plugin)]
