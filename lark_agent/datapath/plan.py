"""What the programs know of the job in a slot: a value of the map `plan`.

The agent resolves everything to numbers when a job claims its sandbox: names of classes to bits,
names of owners to hashes, queues to HTB classes, quotas to indices. The programs compare and never
search. Fields that a plan leaves out have the value that restricts nothing a job was ever allowed,
so that a plan of an older layout means what it meant.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntFlag
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from lark_agent.datapath.layout import ALL_CLASSES, MOST_QUOTAS, MOST_SERVICES, PLAN_SIZES, VERSION
from lark_agent.model import Inbound, Peers

if TYPE_CHECKING:
    from ipaddress import IPv4Address

ALL_SERVICES = (1 << MOST_SERVICES) - 1
"""Mask of a job that may use every listed service of the worker."""
BOTH_DIRECTIONS = 3
PEERS = {Peers.NONE: 0, Peers.OWNER: 1, Peers.GROUP: 2, Peers.ALL: 3}
_INBOUND = {Inbound.NONE: 0, Inbound.ESTABLISHED: 1, Inbound.PORTS: 2, Inbound.ALL: 3}
_WHO = struct.Struct("=II4s6s2x16sI8s8s")  # all of layout 2
_WHAT = struct.Struct("=16s7I4s")
_QUOTA = struct.Struct("=3I")
_STATE = struct.Struct("=II")  # how a plan begins, in every version


class Flag(IntFlag):
    """What kind of slot it is."""

    ACTIVE = 1
    LINK = 2
    SETUP = 4
    ROUTER = 8
    DHCP = 16


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """That a job's packets count against a quota."""

    quota: int
    """Index in the map of quotas."""
    classes: int = ALL_CLASSES
    """Bit n: what is exchanged with class n counts."""
    directions: int = BOTH_DIRECTIONS
    """Bit n: `Direction` n counts."""


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """Everything about one job, as numbers."""

    addr4: IPv4Address | None
    addr6: IPv6Address | None
    mac: bytes
    """The sandbox's link-layer address, 6 bytes."""
    classes: int = ALL_CLASSES
    """Bit n: the job may exchange packets with class n."""
    peers: Peers = Peers.NONE
    owner: str = ""
    group: str = ""
    """Accounting group. Nobody else has an empty owner or group."""
    link: bool = False
    """The sandbox sits on a layer-2 network of others, and finds its neighbours itself."""
    router: bool = False
    """Addresses come from router advertisements (SLAAC)."""
    dhcp: bool = False
    """Addresses come from DHCP."""
    dscp: int = 0
    """Of every packet that the job sends, 0 to 63."""
    flow_label: int = 0
    """Of every IPv6 packet that the job sends, 20 bits."""
    queues: tuple[int, int] = (0, 0)
    """HTB class (handle) of each `Direction`; 0: not shaped."""
    inbound: Inbound = Inbound.ESTABLISHED
    ports: frozenset[tuple[int, int]] = frozenset()
    """(IP protocol, port) of what `Inbound.PORTS` opens."""
    services: int = ALL_SERVICES
    """Bit n: service n of the worker is allowed."""
    quotas: tuple[QuotaUse, ...] = ()
    """At most MOST_QUOTAS."""
    local4: IPv4Address | None = None
    """Its IPv4 address where that is for services of the worker alone: instead of `addr4`."""
    launcher: frozenset[int] = frozenset()
    """TCP ports of the worker's loopback on which the job's launcher listens, for it alone."""
    gateway: IPv4Address | None = None
    """Address of the worker by which the job reaches those."""

    @property
    def link6(self) -> IPv6Address | None:
        """The link-local address on a layer-2 network, made from the MAC (RFC 4291, appendix A)."""
        if not self.link:
            return None
        identifier = bytes([self.mac[0] ^ 2]) + self.mac[1:3] + b"\xff\xfe" + self.mac[3:]
        return IPv6Address(b"\xfe\x80" + bytes(6) + identifier)

    def packed(self, *, active: bool = False, setup: bool = False, epoch: int = 0) -> bytes:
        """Return the map value: of a job, of a sandbox that gets its addresses, or of neither.

        `epoch` tells the flows and ports of this job from those of the slot's earlier ones.
        """
        if len(self.quotas) > MOST_QUOTAS:
            raise ValueError(
                f"{len(self.quotas)} quotas for one job; there is room for {MOST_QUOTAS}"
            )
        flags = Flag(0)
        for flag, given in (
            (Flag.ACTIVE, active), (Flag.LINK, self.link), (Flag.SETUP, setup),
            (Flag.ROUTER, self.router), (Flag.DHCP, self.dhcp),
        ):  # fmt: skip
            flags |= flag if given else 0
        who = _WHO.pack(
            *(flags, self.classes, _bytes(self.addr4, 4), self.mac, _bytes(self.addr6, 16)),
            *(PEERS[self.peers], identity(self.owner), identity(self.group)),
        )
        what = _WHAT.pack(
            *(_bytes(self.link6, 16), self.dscp, self.flow_label, *self.queues),
            *(_INBOUND[self.inbound], self.services, epoch, _bytes(self.local4, 4)),
        )
        quotas = (_QUOTA.pack(use.quota + 1, use.classes, use.directions) for use in self.quotas)
        return (who + what + b"".join(quotas)).ljust(PLAN_SIZES[VERSION], b"\0")


def plan_state(value: bytes | memoryview) -> tuple[bool, int]:
    """Return (is active, class mask) of a value of the map `plan`, of any version."""
    flags, classes = _STATE.unpack_from(value)
    return bool(flags & Flag.ACTIVE), classes


def knows_flows(value: bytes) -> bool:
    """Tell whether a value of the map `plan` lets in what answers a flow, or the worker's calls."""
    flags, *_ = _STATE.unpack_from(value)
    inbound = int(_WHAT.unpack_from(value, _WHO.size)[5])
    return bool(flags & Flag.LINK) or inbound in {_INBOUND[Inbound.PORTS], _INBOUND[Inbound.ALL]}


def plan_services(value: bytes) -> int:
    """Return the service mask of a value of the map `plan`, of this version."""
    return int(_WHAT.unpack_from(value, _WHO.size)[6])


def plan_epoch(value: bytes) -> int:
    """Return the epoch of a value of the map `plan`, of this version."""
    return int(_WHAT.unpack_from(value, _WHO.size)[7])


def plan_quotas(value: bytes) -> tuple[int, ...]:
    """Return the indices of the quotas of a value of the map `plan`, of this version, in order."""
    size = _WHO.size + _WHAT.size
    uses = _QUOTA.iter_unpack(value[size : size + MOST_QUOTAS * _QUOTA.size])
    return tuple(number - 1 for number, _, _ in uses if number)


def carried_plan(value: bytes) -> bytes:
    """Return a plan of an older layout in this one, restricting and allowing what it did.

    Jobs of layout 1 have no peers.
    """
    more = _WHAT.pack(
        bytes(16), 0, 0, 0, 0, _INBOUND[Inbound.ESTABLISHED], ALL_SERVICES, 0, bytes(4)
    )
    return (value.ljust(_WHO.size, b"\0") + more).ljust(PLAN_SIZES[VERSION], b"\0")


def identity(name: str) -> bytes:
    """Return what the programs compare instead of a name; zero for none.

    64 bits of a cryptographic hash: a job cannot make up a name that is taken for another's.
    """
    return hashlib.blake2b(name.encode(), digest_size=8).digest() if name else bytes(8)


def _bytes(address: IPv4Address | IPv6Address | None, size: int) -> bytes:
    return address.packed if address else bytes(size)
