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

The launcher of a job may listen on the worker's loopback as well, for that job alone: HTCondor's
starter does, for chirp, on a port that the kernel chose. Then the port joins the set in that job's
sandbox when the job starts (`Loopbacks.add`), and that is all that is written: on the worker, one
rule of the firewall sends on whatever the datapath has marked.

Only these connections are tracked in the sandbox, so that no others pay for it. Both ends take the
path between them for their own loopback, and learn its MTU by the first segment that does not fit.

Not for IPv6: Linux has no route_localnet there, and ::1 cannot leave a host; so a sandbox that has
no IPv4 gets an address for this alone (`Sandbox.local4`). Not on layer-2 networks, where the worker
is no gateway.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import structlog

from lark_agent import trouble
from lark_agent.errors import KernelError
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
log = structlog.get_logger(__name__)


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


class Loopbacks:
    """What of the worker's loopback appears on that of each sandbox.

    Sandboxes are built, and services offered, in one thread; any other may use the rest.
    """

    def __init__(self, gateway: IPv4Address, ports: frozenset[Port], *, launchers: bool) -> None:
        """Offer the site's `ports`; with `launchers`, jobs may have more of their own."""
        self.gateway = gateway
        """The worker's address on all links, by which sandboxes reach it."""
        self._ports = ports
        self._launchers = launchers
        self._lock = Lock()
        self._own: dict[str, frozenset[Port]] = {}
        self._built: set[str] = set()

    @property
    def used(self) -> bool:
        """Tell whether anything may appear at all."""
        return self._launchers or bool(self._ports)

    def build(self, name: str) -> None:
        """Prepare a new sandbox, in the thread that offers. Raises KernelError."""
        with self._lock:
            self._built.add(name)
        if self.used:  # not under the lock: it takes the kernel 15 ms, and jobs start meanwhile
            self._write(name)

    def renew(self, name: str, launcher: Collection[int]) -> None:
        """Take over the sandbox of a job; `launcher` are the ports that are its own."""
        with self._lock:
            self._built.add(name)
            self._own[name] = _tcp(launcher)
            self._try_to_write(name)

    def offer(self, ports: frozenset[Port]) -> None:
        """Let all sandboxes have these of the site's services from now on."""
        with self._lock:
            if ports == self._ports:
                return
            self._ports = ports
            for name in sorted(self._built):
                self._try_to_write(name)

    def add(self, name: str, launcher: Collection[int]) -> None:
        """Let a sandbox have ports of its own, besides those of before, until it is dismantled.

        Raises KernelError; OSError if there is no such sandbox.
        """
        with self._lock:
            ports = _tcp(launcher)
            self._own[name] = self._own.get(name, frozenset()) | ports
            listed = _listed(ports)
            change = f"add element inet {TABLE} services {{ {listed} }}"
            namespaces.run_inside(name, lambda: nftables.run(change))

    def forget(self, name: str) -> None:
        """Let go of a sandbox that is dismantled. Repeatable."""
        with self._lock:
            self._built.discard(name)
            self._own.pop(name, None)

    def _try_to_write(self, name: str) -> None:
        try:
            self._write(name)
        except (KernelError, OSError) as error:  # most likely dismantled just now
            trouble.met("offer services")
            log.warning("cannot offer services on the loopback", sandbox=name, error=str(error))

    def _write(self, name: str) -> None:
        ports, used = self._ports | self._own.get(name, frozenset()), self.used
        namespaces.run_inside(name, lambda: _replace(self.gateway, ports, used=used))


def _replace(gateway: IPv4Address, ports: Collection[Port], *, used: bool) -> None:
    sysctl.write(f"net/ipv4/conf/{INSIDE}/route_localnet", int(used))
    nftables.run(ruleset(gateway, ports) if used else removal())


def _tcp(numbers: Collection[int]) -> frozenset[Port]:
    return frozenset(Port("tcp", number) for number in numbers)


def removal() -> str:
    """Return the transaction that removes the sandbox's table, if there is one."""
    return f"table inet {TABLE}\ndelete table inet {TABLE}\n"


def ruleset(gateway: IPv4Address, ports: Collection[Port]) -> str:
    """Return the sandbox's table as one transaction that replaces an earlier one."""
    elements = f"elements = {{ {_listed(ports)} }};" if ports else ""
    return f"""{removal()}
table inet {TABLE} {{
  comment "LARK agent: services of the worker's loopback"
  set services {{ type inet_proto . inet_service; {elements} }}
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


def _listed(ports: Collection[Port]) -> str:
    return ", ".join(f"{port.protocol} . {port.number}" for port in sorted(ports))
