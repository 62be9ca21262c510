"""The lab's files: the machine's own tree, with everything that is state replaced.

The mount namespace is private, so what is mounted here is seen by the lab only and is gone with
its last process. `/proc` and `/sys` are remounted because they show the namespaces of whoever
mounted them; `/run` and `/var/lib` are empty tmpfs (not nosuid: the wrapper's file capability must
work, as it would on a worker's disk); `/etc` is an overlay, so that users, resolver and
`/etc/lark` can be changed freely, whatever kind of file they are on this machine. `/tmp` and the
source tree are the machine's.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from lark_agent import schedulers
from lark_agent.hooks import install

ROOT = Path(__file__).resolve().parents[2]
WRAPPERS = Path("/run/lark-bin")
"""Where the lab keeps the wrapper and its companions."""
STATE = Path("/run/lab")
"""The lab's own files."""
LAUNCHERS = STATE / "launchers"
"""Batch systems' programs by name, each of them Python: root's files, as installed ones are."""
ADMIN_GROUP = ("lark-admin", 1100)

CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 1 << 18


@dataclass(frozen=True, slots=True)
class User:
    """An account of the lab; its group has the same name and number."""

    name: str
    uid: int
    groups: tuple[int, ...] = ()

    @property
    def home(self) -> str:
        """The home directory, inside the lab."""
        return "/root" if self.uid == 0 else str(STATE / "home" / self.name)


ACCOUNTS = (
    User("root", 0),
    User("alice", 1001),
    User("bob", 1002),
    User("carol", 1003, (ADMIN_GROUP[1],)),
)
USERS = {user.name: user for user in ACCOUNTS}


def build(nameserver: str) -> None:
    """Mount and fill everything; called once, by the lab's process 1."""
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("proc", "/proc", "proc")
    _mount("sysfs", "/sys", "sysfs")
    _mount("bpf", "/sys/fs/bpf", "bpf")
    _mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
    _mount("tmpfs", "/run", "tmpfs", data="mode=755")
    _mount("tmpfs", "/var/lib", "tmpfs", data="mode=755")
    for name in ("etc", "etc-work", "bin", "notify", "jobs", "home"):
        (STATE / name).mkdir(parents=True)
    layers = f"lowerdir=/etc,upperdir={STATE / 'etc'},workdir={STATE / 'etc-work'}"
    _mount("overlay", "/etc", "overlay", data=layers)
    _write_etc(nameserver)
    for user in ACCOUNTS[1:]:
        Path(user.home).mkdir(mode=0o700)
        os.chown(user.home, user.uid, user.uid)
    _install_launchers()
    _install_wrappers()


def second_worker() -> int:
    """Make the second worker's view of the files and return the pid of a process that has it.

    Where an agent keeps state it is empty; everything else is the lab's.
    """
    ready, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _mount_anew()
            os.write(there, b"1")
            while True:
                signal.pause()
        except OSError as error:
            os.write(2, f"the second worker's files: {error}\n".encode())
        os._exit(1)
    os.close(there)
    if os.read(ready, 1) != b"1":
        raise OSError("cannot make the second worker's files")
    os.close(ready)
    return pid


def _mount_anew() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "cannot unshare mounts")
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    for place in ("/run/netns", "/run/lark", "/var/lib/lark"):
        Path(place).mkdir(exist_ok=True)
        _mount("tmpfs", place, "tmpfs", data="mode=755")
    _mount("bpf", "/sys/fs/bpf", "bpf")


def _mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    """Call mount(2); needs CAP_SYS_ADMIN, which is why the lab is root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = [text.encode() if text else None for text in (source, target, kind, data)]
    if libc.mount(words[0], words[1], words[2], flags, words[3]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot mount {kind or 'flags'} on {target}: {os.strerror(number)}")


def _write_etc(nameserver: str) -> None:
    etc = Path("/etc")
    for name in ("resolv.conf", "hosts"):
        (etc / name).unlink(missing_ok=True)  # may be a link to what /run no longer has
    (etc / "resolv.conf").write_text(f"nameserver {nameserver}\n")
    (etc / "hosts").write_text("127.0.0.1 localhost worker1\n::1 localhost\n")
    accounts = [f"{u.name}:*:{u.uid}:{u.uid}::{u.home}:/bin/sh" for u in ACCOUNTS[1:]]
    groups = [f"{u.name}:x:{u.uid}:" for u in ACCOUNTS[1:]]
    members = ",".join(u.name for u in ACCOUNTS if ADMIN_GROUP[1] in u.groups)
    groups.append(f"{ADMIN_GROUP[0]}:x:{ADMIN_GROUP[1]}:{members}")
    _merge(etc / "passwd", accounts)
    _merge(etc / "group", groups)


def _merge(file: Path, lines: list[str]) -> None:
    """Add accounts; the machine's own with the same name or number give way."""
    ours = [line.split(":") for line in lines]
    names, numbers = {fields[0] for fields in ours}, {fields[2] for fields in ours}
    kept = [
        line
        for line in file.read_text().splitlines()
        if line.count(":") < 2
        or (line.split(":")[0] not in names and line.split(":")[2] not in numbers)
    ]
    file.write_text("\n".join([*kept, *lines]) + "\n")


def _install_launchers() -> None:
    LAUNCHERS.mkdir(mode=0o755)
    first = LAUNCHERS / "starter"
    shutil.copyfile("/usr/bin/python3", first)
    first.chmod(0o755)
    for name in schedulers.LAUNCHERS:
        (LAUNCHERS / name).hardlink_to(first)


def _install_wrappers() -> None:
    """Install the wrapper as a site does; nothing where it was not built."""
    if not (install.BUILT / "lark-enter").exists():
        return
    install.install(WRAPPERS)
    # the package's own copy, which `lark doctor` looks at, counts as installed too
    _mount(str(WRAPPERS), str(install.BUILT), None, MS_BIND)
