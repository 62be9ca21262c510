"""Which resolv.conf works inside a sandbox.

The sandbox's loopback is not the worker's, so a resolver that listens on 127.x must be replaced:

* no loopback address among the servers: the worker's file is used as it is;
* systemd-resolved's stub (127.0.0.53 and .54 answer on `lo` only): its list of the real servers,
  /run/systemd/resolve/resolv.conf, is used instead, as Docker does;
* another stub (dnsmasq, unbound, ...): the sandbox asks its gateway, and the firewall translates
  that to the stub (only port 53, only that address).

A sandbox on a network of the site asks that network's resolvers, if the configuration or a DHCP
server names any: it has a file of its own, written when it is built. Else it has the worker's, and
its gateway is not the worker: behind a stub that has to be translated, names do not resolve there.

A stub on ::1 alone cannot be reached that way: Linux has no route_localnet for IPv6.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lark_agent.sandbox.addressing import Address

RESOLV_CONF = Path("/etc/resolv.conf")
SYSTEMD_UPLINKS = Path("/run/systemd/resolve/resolv.conf")


@dataclass(frozen=True, slots=True)
class Resolver:
    """What the sandboxes are told."""

    text: str
    """Content of their /etc/resolv.conf."""
    stub: IPv4Address | None = None
    """Loopback address to translate the gateway's port 53 to."""
    problem: str = ""
    """Why names will not resolve, and what to do; "" if they will."""


def read(gateway: IPv4Address) -> Resolver:
    """Decide from the worker's files."""
    return decide(_text(RESOLV_CONF), _text(SYSTEMD_UPLINKS), gateway)


def decide(resolv_conf: str, systemd_uplinks: str, gateway: IPv4Address) -> Resolver:
    """Choose; all arguments are texts, "" for a file that does not exist."""
    servers = list(_servers(resolv_conf))
    loopback = [server for server in servers if server.is_loopback]
    if servers and not loopback:
        return Resolver(resolv_conf)
    if {str(server) for server in loopback} & {"127.0.0.53", "127.0.0.54"} and any(
        not server.is_loopback for server in _servers(systemd_uplinks)
    ):
        return Resolver(systemd_uplinks)
    # no nameserver line at all means 127.0.0.1 (resolv.conf(5))
    stubs = [s for s in loopback if isinstance(s, IPv4Address)] or (
        [] if servers else [IPv4Address("127.0.0.1")]
    )
    others = "".join(
        line + "\n"
        for line in resolv_conf.splitlines()
        if not line.strip().startswith("nameserver")
    )
    reachable = [server for server in servers if not server.is_loopback]
    if stubs:
        lines = "".join(f"nameserver {server}\n" for server in (gateway, *reachable))
        return Resolver(others + lines, stub=stubs[0])
    if reachable:
        return Resolver(others + "".join(f"nameserver {server}\n" for server in reachable))
    return Resolver(
        resolv_conf,
        problem=f"{RESOLV_CONF} names only {loopback[0]}, which a sandbox cannot reach; "
        "let the resolver listen on 127.0.0.1 too, or name an external server",
    )


def replaces(found: Resolver) -> bool:
    """Tell whether sandboxes need another resolv.conf than the worker's."""
    return found.text != _text(RESOLV_CONF)


def own_file(run_directory: Path, slot: int) -> Path:
    """Where the resolv.conf of a sandbox is that has its own; lark-enter knows the name too."""
    return run_directory / f"resolv.conf.{slot}"


def write_own(run_directory: Path, slot: int, servers: Iterable[Address]) -> bool:
    """Write what a sandbox's network gives; returns False, and writes nothing, if that is none."""
    lines = "".join(f"nameserver {server}\n" for server in servers)
    if lines:
        file = own_file(run_directory, slot)
        file.write_text("# written by lark-agent for one job sandbox\n" + lines, encoding="ascii")
        file.chmod(0o644)
    return bool(lines)


def _servers(text: str) -> Iterable[IPv4Address]:
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                yield ip_address(words[1].partition("%")[0])  # type: ignore[misc]  # both families have is_loopback
            except ValueError:
                continue


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
