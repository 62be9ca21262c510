"""What a service says to the manager that started it: sd_notify(3) in a few lines.

systemd hands a socket's name over in NOTIFY_SOCKET and expects datagrams of KEY=VALUE lines:
READY=1 when the service answers, STOPPING=1 when it goes, WATCHDOG=1 at half the interval of
`WatchdogSec=`. Without a manager nothing is sent, so services need not ask who started them. A
datagram that cannot be delivered is not an error either: the manager draws its own conclusions.
"""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> bool:
    """Tell the service manager KEY=VALUE lines such as READY=1; False if nobody took them."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # systemd writes the abstract namespace's leading zero as @
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        # a full queue must not stop the service's loop
        manager.setblocking(False)
        try:
            manager.sendto("\n".join(lines).encode(), address)
        except OSError:
            return False
    return True


def watchdog_interval() -> float | None:
    """Return the seconds between two WATCHDOG=1 (half of what systemd waits), None without one."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for the process that started us
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdecimal() and int(microseconds) else None
