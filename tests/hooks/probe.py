"""Prints, as JSON, everything a process can find out about how it was started.

Run as a program of its own, once with and once without the wrapper, and compared. Pipes are named
without their inode, which is new in each run.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
from pathlib import Path

SELF = Path("/proc/self")
LIMITS = [name for name in dir(resource) if name.startswith("RLIMIT_")]
STATUS = re.compile(
    r"Name|Umask|[UG]id|Groups|NS.*|(Sig|Shd)(Pnd|Blk|Ign|Cgt)|Cap(Inh|Prm|Eff|Amb|Bnd)|NoNewPrivs|"
    r"Seccomp.*|CoreDumping|THP_enabled|Cpus_allowed|Mems_allowed|TracerPid|PPid|Speculation.*"
)
PR_GET = {"pdeathsig": 2, "child_subreaper": 37}
PR_GET_VALUE = {"dumpable": 3, "keepcaps": 7, "securebits": 27, "timerslack": 30, "thp": 42}
AT_SECURE = 23


def prctl() -> dict[str, int]:
    libc = ctypes.CDLL(None)
    found = {name: libc.prctl(option, 0, 0, 0, 0) for name, option in PR_GET_VALUE.items()}
    for name, option in PR_GET.items():
        value = ctypes.c_int(-1)
        libc.prctl(option, ctypes.byref(value), 0, 0, 0)
        found[name] = value.value
    return found


def descriptors() -> dict[str, list[str]]:
    found = {}
    for fd in sorted(os.listdir(SELF / "fd")):  # noqa: PTH208  names are wanted
        try:
            target = os.readlink(SELF / "fd" / fd)  # noqa: PTH115  "pipe:[1]" is no path
        except FileNotFoundError:
            continue  # the listing's own
        flags = re.search(r"flags:\s+(\S+)", (SELF / "fdinfo" / fd).read_text())
        found[fd] = [re.sub(r"\[\d+\]", "", target), flags[1] if flags else ""]
    return found


def auxiliary_secure() -> int:
    words = memoryview((SELF / "auxv").read_bytes()).cast("Q").tolist()
    return dict(zip(words[::2], words[1::2], strict=True))[AT_SECURE]


def status() -> dict[str, str]:
    lines = (line.split(":", 1) for line in (SELF / "status").read_text().splitlines())
    return {key: value.strip() for key, value in lines if STATUS.fullmatch(key)}


def facts() -> dict[str, object]:
    return {
        "environ": (SELF / "environ").read_bytes().decode("latin-1"),
        "cmdline": (SELF / "cmdline").read_bytes().decode("latin-1"),
        "cwd": str(Path.cwd()),
        "cwd link": str((SELF / "cwd").readlink()),
        "descriptors": descriptors(),
        "status": {k: v for k, v in status().items() if not k.startswith("NS")},
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in LIMITS},
        "personality": (SELF / "personality").read_text(),
        "prctl": prctl(),
        "secure": auxiliary_secure(),
        "owner of /proc/self/environ": (SELF / "environ").stat().st_uid,
        "coredump_filter": (SELF / "coredump_filter").read_text(),
        "oom_score_adj": (SELF / "oom_score_adj").read_text(),
        "cgroup": (SELF / "cgroup").read_text(),
        "alarm set": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "nice": os.nice(0),
        "scheduler": os.sched_getscheduler(0),
        "affinity": sorted(os.sched_getaffinity(0)),
        "group and session are the pid": [os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()],
        "namespaces": {
            kind: str((SELF / "ns" / kind).readlink())
            for kind in ("cgroup", "ipc", "pid", "time", "user", "uts")
        },
        "stdin": None if sys.stdin is None else sys.stdin.read(),
        "root": [os.stat("/").st_dev, os.stat("/").st_ino],  # noqa: PTH116  a pair, not a path
    }


json.dump(facts(), sys.stdout)
