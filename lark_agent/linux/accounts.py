"""Becoming another account, for good.

As setpriv(1) with --reuid, --regid and --init-groups does it: supplementary groups, then all three
group ids, then all three user ids. The kernel then empties permitted, effective and ambient
capabilities by itself, unless somebody set the securebit that tells it not to; so that is looked
at, because a caller goes on to run what the account's owner says. No session of PAM is opened:
limits, keyrings and the login record stay the caller's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.errors import KernelError

if TYPE_CHECKING:
    import pwd


def become(account: pwd.struct_passwd) -> None:
    """Make this process the account's; raises KernelError, and then must not go on.

    Privilege: CAP_SETUID, CAP_SETGID.
    """
    name, uid, gid = account.pw_name, account.pw_uid, account.pw_gid
    try:
        os.initgroups(name, gid)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise KernelError(
            f"becoming {name} (uid {uid})", str(error.strerror), "start this as root of the machine"
        ) from error
    if any(int(value, 16) for value in _capabilities().values()):
        raise KernelError(
            f"becoming {name} (uid {uid})",
            "capabilities are left",
            "start this without the securebit no_setuid_fixup",
        )


def surroundings(account: pwd.struct_passwd) -> dict[str, str]:
    """Return the variables that su(1) sets when it is not asked for a login."""
    return {
        "HOME": account.pw_dir,
        "SHELL": account.pw_shell or "/bin/sh",
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
    }


def _capabilities() -> dict[str, str]:
    """Return the sets that this process can use, hexadecimal, by their names in proc(5)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {name: fields[name] for name in ("CapPrm", "CapEff", "CapAmb")}
