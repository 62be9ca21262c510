"""The worker's services as sandboxes see them, those of its loopback above all.

The site lists which ports of the worker jobs may use; the datapath asks each job's plan, the
firewall lets nothing else in. A service that listens on the worker's loopback appears at the same
port of the sandbox's own. In the sandbox, what is for such a port of 127.0.0.1 is sent to the
gateway, from the sandbox's address; on the worker, the firewall sends what comes for that port of
the gateway to 127.0.0.1, from 127.0.0.1 (`lark_agent.sandbox.firewall`). So a program in the job
needs no other address, and the service has what it takes for a local client. In between lies the
job's link, where the datapath counts, and asks the plan whether the job may have the service at
all. All sandboxes have the same table: it is written when the sandbox is built, before there is a
plan, and a job that may not have the service waits for its answer in vain.

Only these connections are tracked in the sandbox, so that no others pay for it. Both ends take the
path between them for their own loopback, and learn its MTU by the first segment that does not fit.

Not for IPv6: Linux has no route_localnet there, and ::1 cannot leave a host. Not on layer-2
networks, where the worker is no gateway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lark_agent.linux import namespaces, nftables, sysctl
from lark_agent.model import Port
from lark_agent.sandbox.addressing import INSIDE

if TYPE_CHECKING:
    from collections.abc import Collection
    from ipaddress import IPv4Address

    from lark_agent.config import AgentSettings

TABLE = "lark"
DNS = (Port("tcp", 53), Port("udp", 53))
"""Every worker's service: its resolver."""


@dataclass(frozen=True, slots=True)
class Services:
    """The ports of the worker that jobs may use."""

    ports: frozenset[Port]
    loopback: frozenset[Port]
    """Those that appear on the sandbox's loopback."""

    @classmethod
    def of(cls, settings: AgentSettings) -> Services:
        """Take what the site lists."""
        ports = settings.service_ports
        on_loopback = {ports[name] for name, each in settings.services.items() if each.loopback}
        return cls(frozenset({*DNS, *ports.values()}), frozenset(on_loopback))


def appear(name: str, gateway: IPv4Address, ports: Collection[Port]) -> None:
    """Give the sandbox `name` these ports of the worker's loopback, and no others.

    Raises KernelError; OSError if there is no such sandbox.
    """
    namespaces.run_inside(name, lambda: _write(gateway, ports))


def _write(gateway: IPv4Address, ports: Collection[Port]) -> None:
    sysctl.write(f"net/ipv4/conf/{INSIDE}/route_localnet", int(bool(ports)))
    nftables.run(ruleset(gateway, ports))


def ruleset(gateway: IPv4Address, ports: Collection[Port]) -> str:
    """Return the sandbox's table as one transaction that replaces an earlier one."""
    removal = f"table inet {TABLE}\ndelete table inet {TABLE}\n"
    if not ports:
        return removal
    listed = ", ".join(f"{port.protocol} . {port.number}" for port in sorted(ports))
    return f"""{removal}
table inet {TABLE} {{
  comment "LARK agent: services of the worker's loopback"
  set services {{ type inet_proto . inet_service; elements = {{ {listed} }}; }}
  chain track-output {{
    type filter hook output priority raw; policy accept;
    ip daddr 127.0.0.1 meta l4proto . th dport @services accept
    notrack
  }}
  chain track-prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname {INSIDE} ip saddr {gateway} meta l4proto . th sport @services accept
    notrack
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr 127.0.0.1 meta l4proto . th dport @services dnat ip to {gateway}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname {INSIDE} ip saddr 127.0.0.0/8 masquerade
  }}
}}
"""
