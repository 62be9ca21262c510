"""System calls that Python 3.11 does not offer, through ctypes, with errors as KernelError.

Each function names the operation in the error, so that callers need not. None of them forks.
"""

from __future__ import annotations

import ctypes
import errno
import os

from lark_agent.errors import KernelError

CLONE_FILES = 0x00000400
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MNT_DETACH = 2

_LIBC = ctypes.CDLL(None, use_errno=True)

_REMEDIES = {
    errno.EPERM: "run as root (CAP_SYS_ADMIN)",
    errno.ENOSPC: "raise the sysctl user.max_net_namespaces; 0 forbids namespaces to root too",
    errno.EUSERS: "raise the sysctl user.max_net_namespaces; 0 forbids namespaces to root too",
}


def _check(result: int, tried: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise KernelError(tried, os.strerror(number), _REMEDIES.get(number, ""))


def unshare_network() -> None:
    """Give the calling thread a new network namespace (privilege: CAP_SYS_ADMIN)."""
    _check(_LIBC.unshare(CLONE_NEWNET), "making a network namespace")


def unshare_descriptors() -> None:
    """Give the calling thread a table of descriptors of its own, empty but for 0 to 2.

    What it opens gets a low number, whatever the process has open.
    """
    _check(_LIBC.unshare(CLONE_FILES), "making a table of descriptors")
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def set_network(descriptor: int) -> None:
    """Move the calling thread into the network namespace behind a descriptor (CAP_SYS_ADMIN)."""
    _check(_LIBC.setns(descriptor, CLONE_NEWNET), "entering a network namespace")


def bind_mount(source: str, target: str) -> None:
    """Make `source` visible at `target` (CAP_SYS_ADMIN)."""
    result = _LIBC.mount(source.encode(), target.encode(), None, MS_BIND, None)
    _check(result, f"mounting {source} on {target}")


def unmount(target: str) -> None:
    """Detach the mount at `target` (CAP_SYS_ADMIN)."""
    _check(_LIBC.umount2(target.encode(), MNT_DETACH), f"unmounting {target}")
