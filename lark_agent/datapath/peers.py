"""Jobs without a slot here whom this worker's jobs may meet, by address.

Sandboxes of this worker find each other by arithmetic. Jobs of other workers, and jobs on networks
of layer 2, where addresses come from a pool or from the network, do not: the agent lists them. An
address that is not listed is nobody's, and denied.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from lark_agent.datapath.plan import PEERS, identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lark_agent.linux.bpf import Map
    from lark_agent.model import Peers

_JOB = struct.Struct("=8s8sI4x")
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, 2.5.5.2


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """What the rule for peers asks about a job."""

    owner: str
    group: str
    peers: Peers


class RemoteJobs:
    """The list in force."""

    def __init__(self, jobs: Map) -> None:
        self._jobs = jobs

    def addresses(self) -> frozenset[IPv4Address | IPv6Address]:
        """Return who is listed."""
        return frozenset(map(_address, self._jobs.keys()))

    def set(
        self,
        jobs: Mapping[IPv4Address | IPv6Address, RemoteJob],
        keep: Iterable[IPv4Address | IPv6Address] = (),
    ) -> None:
        """Replace the list; who stays is never without an entry.

        Addresses to `keep` stay as they are listed, by an earlier agent for example.
        """
        wanted = {
            _key(address): _JOB.pack(identity(job.owner), identity(job.group), PEERS[job.peers])
            for address, job in jobs.items()
        }
        for key in set(self._jobs.keys()) - wanted.keys() - set(map(_key, keep)):
            self._jobs.delete(key)
        for key, value in wanted.items():
            self._jobs.set(key, value)


def _address(key: bytes) -> IPv4Address | IPv6Address:
    address = IPv6Address(key)
    return address.ipv4_mapped or address


def _key(address: IPv4Address | IPv6Address) -> bytes:
    return _MAPPED + address.packed if isinstance(address, IPv4Address) else address.packed
