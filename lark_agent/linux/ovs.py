"""Ports of an Open vSwitch bridge, through `ovs-vsctl`.

The command is the interface that Open vSwitch keeps stable; it is one transaction, waits until the
switch has taken it, and costs 10 ms. Its Python library would keep a copy of the whole database in
the agent, over a connection of its own, to do the same. What the switch could not do is not in the
exit status but in the port's `error` column, so that is read back.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from lark_agent.errors import KernelError, PrerequisiteError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SECONDS = 5
_COMMAND = "ovs-vsctl"


def installed() -> bool:
    """Tell whether this machine has Open vSwitch's command."""
    return shutil.which(_COMMAND) is not None


def datapath_type(bridge: str) -> str:
    """Return "netdev" for the userspace datapath, "system" or "" for the kernel's.

    Raises PrerequisiteError if there is no such bridge, or no switch to ask.
    """
    if not installed():
        raise PrerequisiteError(
            f"cannot look at the Open vSwitch bridge '{bridge}': there is no {_COMMAND} here; "
            "install openvswitch-switch"
        )
    try:
        return _run("get", "Bridge", bridge, "datapath_type").strip('"')
    except KernelError as error:
        raise PrerequisiteError(
            f"{error}; make it with `ovs-vsctl add-br {bridge}`, or start openvswitch-switch"
        ) from error


def add_port(bridge: str, interface: str, tag: int) -> None:
    """Make an interface a port, in VLAN `tag` (0: a port of all). Raises KernelError."""
    tags = [f"tag={tag}"] if tag else []
    _run("--may-exist", "add-port", bridge, interface, *tags)
    problem = _run("get", "Interface", interface, "error").strip('"')
    if problem != "[]":
        raise KernelError(
            f"making {interface} a port of the Open vSwitch bridge {bridge}", problem,
            "see the log of ovs-vswitchd",
        )  # fmt: skip


def delete_ports(interfaces: Sequence[str]) -> None:
    """Remove ports from whatever bridge they are on; missing ones are ignored."""
    commands = [word for name in interfaces for word in ("--", "--if-exists", "del-port", name)]
    if commands:
        _run(*commands[1:])


def _run(*words: str) -> str:
    tried = f"{_COMMAND} {' '.join(words)}"
    try:
        done = subprocess.run(
            [_COMMAND, "--no-syslog", f"--timeout={_SECONDS}", *words],
            capture_output=True, text=True, check=False, timeout=2 * _SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(tried, str(error), "is openvswitch-switch running?") from error
    if done.returncode != 0:
        raise KernelError(tried, (done.stderr or done.stdout).strip() or "no answer in time")
    return done.stdout.strip()
