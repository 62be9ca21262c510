"""Network namespaces with names, made and entered by short-lived threads.

A namespace lives as long as something holds it: here a bind mount below /run/netns, the place
where `ip netns` looks too. The daemon's own threads never change namespace; work inside one is
done by a thread that enters, works and ends (0.15 ms), because the way back could fail and a fork
would cost ten times as much and does not mix with grpc.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lark_agent import crash
from lark_agent.errors import KernelError
from lark_agent.linux import libc

if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = Path("/run/netns")
Result = TypeVar("Result")
# include/uapi/linux/nsfs.h
_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704


def path(name: str) -> Path:
    """Where the namespace of this name is mounted."""
    return DIRECTORY / name


def create(name: str, inside: Callable[[], Result]) -> Result:
    """Make the namespace `name`, run `inside` in it, and return its result.

    If anything fails, the namespace is gone again and the error is raised.
    """
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    target = path(name)
    target.touch(mode=0o444, exist_ok=True)
    crash.here("pool.named")

    def make() -> Result:
        libc.unshare_network()
        # /proc/self is the main thread's namespace, not this thread's
        libc.bind_mount("/proc/thread-self/ns/net", str(target))
        crash.here("pool.mounted")
        return inside()

    try:
        return in_thread(make)
    except BaseException:
        delete(name)
        raise


def run_inside(name: str, inside: Callable[[], Result]) -> Result:
    """Run `inside` in the existing namespace `name` and return its result."""
    descriptor = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return run_in(descriptor, inside)
    finally:
        os.close(descriptor)


def run_in(descriptor: int, inside: Callable[[], Result]) -> Result:
    """Run `inside` in the namespace behind a descriptor and return its result."""

    def enter() -> Result:
        libc.set_network(descriptor)
        return inside()

    return in_thread(enter)


def give_name(name: str, descriptor: int) -> None:
    """Let `name` be the namespace behind a descriptor from now on, and no other."""
    delete(name)
    target = path(name)
    target.touch(mode=0o444)
    libc.bind_mount(f"/proc/self/fd/{descriptor}", str(target))


def made_by(descriptor: int) -> int | None:
    """Return who made the user namespace that owns this namespace.

    None if that is the caller's own user namespace, or not a child of it. Raises KernelError.
    """
    opened: list[int] = []
    try:
        opened.append(fcntl.ioctl(descriptor, _NS_GET_USERNS))
        here = identity("/proc/self/ns/user")
        if identity(opened[0]) == here:
            return None
        opened.append(fcntl.ioctl(opened[0], _NS_GET_PARENT))
        if identity(opened[1]) != here:
            return None
        maker = bytearray(4)
        fcntl.ioctl(opened[0], _NS_GET_OWNER_UID, maker)
    except PermissionError:  # it lies outside of what the caller may see
        return None
    except OSError as error:
        raise KernelError("asking who owns a network namespace", str(error.strerror)) from error
    finally:
        for each in opened:
            os.close(each)
    return int.from_bytes(maker, sys.byteorder)


def delete(name: str) -> None:
    """Remove the name; the namespace itself ends with its last process. Repeatable."""
    target = path(name)
    with contextlib.suppress(Exception):  # not mounted: what was wanted
        libc.unmount(str(target))
    target.unlink(missing_ok=True)


def names(prefix: str) -> list[str]:
    """Names of the namespaces that start with `prefix`."""
    if not DIRECTORY.is_dir():
        return []
    return sorted(entry.name for entry in DIRECTORY.iterdir() if entry.name.startswith(prefix))


def exists(name: str) -> bool:
    """Tell whether a namespace is mounted there; a kill can leave the name alone, a plain file."""
    try:
        return path(name).stat().st_dev != DIRECTORY.stat().st_dev
    except FileNotFoundError:
        return False


def identity(of: str | Path | int) -> tuple[int, int]:
    """Device and inode: two descriptors or paths with equal identity are the same namespace."""
    facts = os.stat(of)  # noqa: PTH116  takes descriptors too
    return facts.st_dev, facts.st_ino


def in_thread(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread of its own and return its result or raise its error."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  handed to the waiting caller
            errors.append(error)

    thread = threading.Thread(target=target, name="lark-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
