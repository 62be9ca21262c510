"""Which program a process runs, and whether only root can have put it there.

A process's name is whatever it was started by, or says: a symlink called condor_starter that leads
to sudo gives a process of root that name. What it executes is `/proc/PID/exe`. That file is root's
own work if root owns it and every directory above it, and nobody else may write any of them: a hard
link to a file of root's is somebody else's work if the directory is.

The path is as the process sees it, or, for one in another root directory, as we do; the file found
there must be the one that runs. A program that was replaced under a running process (an upgrade)
has no file any more, so there its directories alone say.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

_GONE = " (deleted)"
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Program:
    """The file that a process executes."""

    path: str
    doubt: str
    """Why somebody else than root may have put it there; empty: nobody else can have."""


def of(pid: int) -> Program | None:
    """Return the program of a process, None if it is gone or has none (a thread of the kernel's).

    Privilege: CAP_SYS_PTRACE, for processes of others.
    """
    link = Path(f"/proc/{pid}/exe")
    try:
        path, file = str(link.readlink()), link.stat()
    except OSError:
        return None
    replaced = path.endswith(_GONE) and file.st_nlink == 0
    path = path.removesuffix(_GONE) if replaced else path
    return Program(path, _doubt(pid, path, None if replaced else file, file))


def _doubt(pid: int, path: str, there: os.stat_result | None, file: os.stat_result) -> str:
    if doubt := _changeable(path, file):
        return doubt
    for root in (f"/proc/{pid}/root", ""):
        try:
            if there is not None and not os.path.samestat(Path(root + path).stat(), there):
                continue
            above = [(str(each), Path(f"{root}{each}").stat()) for each in Path(path).parents]
        except OSError:
            continue
        return next(filter(None, (_changeable(*each) for each in above)), "")
    return f"{path} is not the file that runs"


def _changeable(path: str, facts: os.stat_result) -> str:
    if facts.st_uid != 0:
        return f"{path} belongs to user {facts.st_uid}, not root"
    return f"{path} can be written by others than root" if facts.st_mode & _OTHERS else ""
