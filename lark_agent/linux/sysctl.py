"""Kernel settings below /proc/sys; those below net belong to the thread's network namespace."""

from __future__ import annotations

from pathlib import Path

from lark_agent.errors import KernelError

ROOT = Path("/proc/sys")


def read(key: str) -> str:
    """Return the value of a key such as ``net/ipv4/ip_forward``, "" if there is no such key."""
    try:
        return (ROOT / key).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise KernelError(f"reading sysctl {key}", str(error.strerror)) from error


def write(key: str, value: str | int) -> None:
    """Set a key; raises KernelError if it is missing or the kernel refuses the value."""
    try:
        (ROOT / key).write_text(str(value), encoding="ascii")
    except OSError as error:
        raise KernelError(f"setting sysctl {key} to {value}", str(error.strerror)) from error


def write_if_present(key: str, value: str | int) -> None:
    """Set a key that not every kernel has (IPv6 may be compiled out or disabled)."""
    if (ROOT / key).exists():
        write(key, value)
