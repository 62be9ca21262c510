"""The lab's network: a worker, a router, a campus server and an internet server.

::

    worker uplink0 ────── worker0 router campus0 ────── eth0 campus
      192.0.2.10            .1      │      198.51.100.1       .10
      2001:db8:1::10       ::1      └ internet0 ──────── eth0 internet
                                      203.0.113.1         .10

The worker is the network namespace of the lab's process 1; the others are named namespaces made
by `ip netns`, so that `ip netns exec campus ...` works for whoever looks around. Addresses are
from the documentation ranges and never leave the namespaces.

A lab may have a second worker, on a link of its own to the router (198.51.100.128/25 would be taken
for the campus, so it has 192.0.3.10 and 2001:db8:4::10). Its processes see files of their own where
an agent keeps its state (`tests.lab.filesystem.second_worker`).

**Who segments where.** The worker keeps every offload a real one has, so its stack and the
datapath meet super-packets: TSO and UDP_SEGMENT outwards, GRO inwards (`uplink0` gro on). The far
hosts and all of the router have segmentation and GRO off: the router cuts super-packets before
they reach a far host, far hosts send single packets, and a capture at `eth0` of a far host sees
what a wire would carry, in both directions. (A veth does GRO only if its peer, here the router's
`worker0`, has TSO off.)

**Nothing is lost on the way**, or counting at the worker and capturing at a far end could not agree
to the byte. A veth's ring holds 256 packets and the kernel's backlog 1000 for all namespaces of
this machine together; a burst that is larger is dropped. So the router's links have a rate and
deep queues, and far hosts have small TCP windows. With that, 32 connections at once lose nothing,
at 4 Gbit/s down and 2 to 3 up. `Lab.lost` tells whether a test overdid it nevertheless.

Duplicate address detection is off on these links (not on what an agent makes later), or each lab
would take two seconds to start.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CLONE_NEWNET = 0x40000000
NAMED = Path("/run/netns")
WIRE = ("tso", "gso", "gro", "tx-udp-segmentation")
"""Features that would show a capture something else than the wire."""

LINK = ("rate", "5gbit", "burst", "128k", "limit", "200m")
"""A link of the router: fast, but slower than the rings are filled."""
WINDOW = "4096 32768 65536"
"""Least, first and most bytes of a far host's TCP buffers (net.ipv4.tcp_rmem, tcp_wmem)."""


class BuildError(Exception):
    """The kernel refused a part of the network."""


@dataclass(frozen=True, slots=True)
class Host:
    """One host and its address; `network` is the third group of its IPv6 addresses."""

    name: str
    interface: str
    ipv4: str
    ipv6: str

    @property
    def gateway4(self) -> str:
        """The router's address on this host's link."""
        return self.ipv4.rpartition(".")[0] + ".1"

    @property
    def gateway6(self) -> str:
        """The router's address on this host's link."""
        return self.ipv6.rpartition(":")[0] + ":1"


WORKER = Host("worker", "uplink0", "192.0.2.10", "2001:db8:1::10")
CAMPUS = Host("campus", "eth0", "198.51.100.10", "2001:db8:2::10")
INTERNET = Host("internet", "eth0", "203.0.113.10", "2001:db8:3::10")
WORKER2 = Host("worker2", "uplink0", "192.0.3.10", "2001:db8:4::10")
FAR = (CAMPUS, INTERNET)
ROUTER = "router"
LINKS = {"uplink0", "worker0", "worker20", "campus0", "internet0", "eth0"}
"""Interfaces of the lab's own links, on whatever host."""
HOSTS = ("worker", ROUTER, "campus", "internet", "worker2")
"""The last only where a lab is made with two workers."""


def namespace(host: str) -> str:
    """Return the path of a host's network namespace, as seen inside the lab."""
    if host not in HOSTS:
        raise ValueError(f"no host '{host}' in the lab; there are {', '.join(HOSTS)}")
    return "/proc/1/ns/net" if host == WORKER.name else str(NAMED / host)


def enter(host: str) -> None:
    """Move the calling thread to a host's network namespace; needs CAP_SYS_ADMIN for setns(2)."""
    with Path(namespace(host)).open("rb") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot enter host {host}: {os.strerror(number)}")


def build(
    *, ipv6: bool, mtu: int, delegated: list[str], second: bool, delegated2: list[str]
) -> None:
    """Make hosts, links, addresses and routes; called once, by the lab's process 1.

    `delegated` prefixes are what the router sends on to the worker, `delegated2` to the `second`.
    """
    hosts = (WORKER, *FAR, WORKER2) if second else (WORKER, *FAR)
    names = [ROUTER, *(host.name for host in hosts[1:])]
    _ip(
        "link set lo up",
        *(f"netns add {name}" for name in names),
        f"link add uplink0 mtu {mtu} type veth peer name worker0 netns {ROUTER} mtu {mtu}",
    )
    _at(ROUTER, partial(_ip, *(_far_link(host) for host in hosts[1:])))
    for name in (WORKER.name, *names):
        _at(name, _settle_at_once)
    _at(ROUTER, partial(_configure_router, hosts, ipv6))
    for host in hosts:
        _at(host.name, partial(_configure_host, host, ipv6))
    given = [*((WORKER, prefix) for prefix in delegated), *((WORKER2, p) for p in delegated2)]
    routes = [
        f"route add {prefix} via {worker.ipv6 if ':' in prefix else worker.ipv4}"
        for worker, prefix in given
    ]
    if routes:
        _at(ROUTER, partial(_ip, *routes))


def _far_link(host: Host) -> str:
    return f"link add {host.name}0 type veth peer name {host.interface} netns {host.name}"


def _settle_at_once() -> None:
    """Make addresses usable at once, and keep the namespace's own chatter off the wire."""
    for interface in Path("/proc/sys/net/ipv6/conf").iterdir():
        if interface.name in {"all", "default", "lo"}:
            continue
        for key in ("accept_dad", "accept_ra", "router_solicitations"):
            (interface / key).write_text("0")


def _configure_router(hosts: Sequence[Host], ipv6: bool) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
    commands = ["link set lo up"]
    for host in hosts:
        commands.append(f"address add {host.gateway4}/24 dev {host.name}0")
        if ipv6:
            commands.append(f"address add {host.gateway6}/64 dev {host.name}0 nodad")
        commands.append(f"link set {host.name}0 up")
    _ip(*commands)
    for host in hosts:
        _offloads(f"{host.name}0", "off", *WIRE)
        _run("tc", "qdisc", "add", "dev", f"{host.name}0", "root", "tbf", *LINK)


def _configure_host(host: Host, ipv6: bool) -> None:
    commands = ["link set lo up", f"address add {host.ipv4}/24 dev {host.interface}"]
    if ipv6:
        commands.append(f"address add {host.ipv6}/64 dev {host.interface} nodad")
    commands += [
        f"link set {host.interface} up",
        f"route add default via {host.gateway4} dev {host.interface}",
    ]
    if ipv6:
        commands.append(f"route add ::/0 via {host.gateway6} dev {host.interface}")
    _ip(*commands)
    if host in {WORKER, WORKER2}:
        _offloads(host.interface, "on", "gro")
    else:
        _offloads(host.interface, "off", *WIRE)
        for key in ("tcp_rmem", "tcp_wmem"):
            Path("/proc/sys/net/ipv4", key).write_text(WINDOW)


def _at(host: str, work: Callable[[], None]) -> None:
    """Do `work` in a host's namespace, in a thread of its own that ends there."""
    errors: list[Exception] = []

    def there() -> None:
        try:
            enter(host)
            work()
        except (OSError, BuildError) as error:
            errors.append(error)

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _ip(*commands: str) -> None:
    batch = "\n".join(commands)
    command = ["ip", "-batch", "-"]
    done = subprocess.run(command, input=batch, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        failed = re.search(r"Command failed -:(\d+)", done.stderr)
        refused = commands[int(failed[1]) - 1] if failed else batch
        raise BuildError(f"ip {refused}: {done.stderr.strip()}")


def _offloads(interface: str, state: str, *features: str) -> None:
    pairs = [word for feature in features for word in (feature, state)]
    _run("ethtool", "-K", interface, *pairs)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}: {done.stderr.strip()}")
