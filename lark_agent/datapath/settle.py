"""Wait until every program that may have seen an old plan has finished.

Programs of tc run inside a read side of RCU, so after one grace period that began when the plan was
written, whatever still counts has read the new plan. User space can ask for a grace period:

* membarrier(MEMBARRIER_CMD_GLOBAL) is one (synchronize_rcu(), about 8 ms), but is refused on
  kernels that run with nohz_full;
* writing an element of a map of maps ends with one (maybe_wait_bpf_programs() in
  kernel/bpf/syscall.c, since 4.20), made for just this purpose: programs on other CPUs must be done
  with the old element when the system call returns. It needs a map, so it is the fallback.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

from lark_agent.datapath.layout import u32
from lark_agent.errors import KernelError
from lark_agent.linux.bpf import Map, MapKind, MapSpec

_SYSCALLS = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
_COMMAND_GLOBAL = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def wait_for_programs() -> None:
    """Return when no program is running that began before the call; blocks for a grace period."""
    if _LIBC.syscall(_SYSCALLS.get(platform.machine(), -1), _COMMAND_GLOBAL, 0, 0) == 0:
        return
    number = ctypes.get_errno()
    if number not in {errno.EINVAL, errno.ENOSYS}:
        raise KernelError("membarrier(GLOBAL)", os.strerror(number))
    wait_by_map()


def wait_by_map() -> None:
    """Do the same with a map of maps."""
    with (
        Map.create("inner", MapSpec(MapKind.ARRAY, 4, 4, 1)) as inner,
        Map.create("outer", MapSpec(MapKind.ARRAY_OF_MAPS, 4, 4, 1), inner) as outer,
    ):
        outer.set(u32(0), u32(inner.fd))
