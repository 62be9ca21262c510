"""Services of the worker: what jobs may reach of the machine that they run on.

A plan allows services by number, and the programs find the number by protocol and port. As with
classes, numbers must not wander while there are jobs: a name that stays keeps its number, and that
of a name that goes is free when no restricted plan uses it. `dns` is always number 0: the resolver
that the sandboxes ask.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from lark_agent.datapath.layout import MOST_SERVICES, NAME_SIZE, u32
from lark_agent.errors import ConfigurationError, PrerequisiteError
from lark_agent.model import Port

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from lark_agent.linux.bpf import Map

DNS = "dns"
_KEY = struct.Struct("=II")
_PROTOCOLS = {"tcp": (6,), "udp": (17,), "icmp": (1, 58)}
_DNS_PORTS = (Port("udp", 53), Port("tcp", 53))


def number_services(
    before: Sequence[str], in_use: Collection[int], wanted: Iterable[str]
) -> tuple[str, ...]:
    """Give numbers to names ("" is free); pure. Raises PrerequisiteError if there are too many."""
    wanted = [name for name in wanted if name != DNS]
    names = [DNS] + [""] * (MOST_SERVICES - 1)
    for number, name in enumerate(before):
        if number and name and (name in wanted or number in in_use):
            names[number] = name
    for name in wanted:
        if name in names:
            continue
        if "" not in names:
            raise PrerequisiteError(
                f"no number is free for service '{name}': jobs still use removed services; add it "
                "after they have ended"
            )
        names[names.index("")] = name
    return tuple(names)


class ServiceTable:
    """The services in force."""

    def __init__(self, services: Map, names: Map) -> None:
        self._services = services
        self._names = names
        self._listed: frozenset[str] = frozenset({DNS})

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each number; retired ones included."""
        entries = (self._names.get(u32(number)) or b"" for number in range(MOST_SERVICES))
        return (DNS, *(entry.rstrip(b"\0").decode() for entry in list(entries)[1:]))

    def set(self, services: Mapping[str, Port], in_use: Collection[int]) -> None:
        """Put the site's services (name → port) in force; `dns` is there without being listed.

        Port("icmp", 0) is ping. `in_use` are the numbers that restricted plans allow. What stays
        is never without a number. Raises PrerequisiteError, having changed nothing.
        """
        names = number_services(self.names, in_use, services)
        ports = {DNS: _DNS_PORTS, **{name: (port,) for name, port in services.items()}}
        wanted = {
            _KEY.pack(protocol, port.number): u32(names.index(name))
            for name, listed in ports.items()
            for port in listed
            for protocol in _PROTOCOLS[port.protocol]
        }
        for number, name in enumerate(names):
            self._names.set(u32(number), name.encode().ljust(NAME_SIZE, b"\0"))
        for key in set(self._services.keys()) - wanted.keys():
            self._services.delete(key)
        for key, value in wanted.items():
            self._services.set(key, value)
        self._listed = frozenset(ports)

    def mask(self, allowed: Collection[str]) -> int:
        """Return the mask of a plan that allows these; raises ConfigurationError for others."""
        if unknown := sorted(set(allowed) - self._listed):
            raise ConfigurationError(
                f"no service '{unknown[0]}'; known: {', '.join(sorted(self._listed))}"
            )
        names = self.names
        return sum(1 << names.index(name) for name in set(allowed))
