"""The words that every room shares: frozen, typed, without input or output.

A **job** is what the batch system started. The site's policy turns it into a **network plan**.
Plan and **slot** together become an **attachment**: one job in one sandbox from claim to final
record. What an attachment moved is its **usage**, cumulative since the claim; a **record** is
the attachment with its usage at one instant, and is the only thing that travels to collectors
and people. Slots are small integers: addresses, ports, names and map indices all follow from
them by arithmetic (see `lark_agent.sandbox.addressing`).

Units: bytes are IP bytes on the wire (sum of IP packet lengths); times are UTC nanoseconds
since the epoch; directions are as the job sees them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum

MAX_CLASSES = 16
"""Destination classes, built-in ones included (the width of the kernel's counters)."""

DEFAULT_CLASS = "other"
"""The class of every destination that no site class covers."""

JOBS_CLASS = "jobs"
"""The class of the other jobs of this worker, which `Peers` and not `reach` admits."""

BUILT_IN_CLASSES = (DEFAULT_CLASS, JOBS_CLASS)


class Scheduler(StrEnum):
    """Which batch system named the job."""

    HTCONDOR = "htcondor"
    SLURM = "slurm"
    PLAIN = "plain"


class Connectivity(StrEnum):
    """How a sandbox is connected."""

    NAT = "nat"
    NONE = "none"
    ROUTED = "routed"
    """Addresses of a prefix that is routed to the worker; no translation."""


class Peers(StrEnum):
    """Which other jobs of this worker a job may exchange packets with; both must agree."""

    NONE = "none"
    OWNER = "owner"
    """Jobs of the same owner (LARK: split pool)."""
    GROUP = "group"
    """Jobs of the same accounting group, if they have one."""
    ALL = "all"


class Direction(IntEnum):
    """Seen from the job; the value is the index in the kernel's counters."""

    SENT = 0
    RECEIVED = 1


class DropReason(IntEnum):
    """Why the datapath dropped a packet; the value is the index in the kernel's counters."""

    NO_PLAN = 0
    """The slot had no living attachment: before the claim or after the end."""
    LINK_LAYER = 1
    """Neither IP nor the job's own ARP, or a VLAN tag of the job's making."""
    MALFORMED = 2
    """Headers that do not parse."""
    SPOOFED_MAC = 3
    """A source link-layer address that is not the sandbox's."""
    SPOOFED_ADDRESS = 4
    """A source address that is not the sandbox's."""
    CLASS_DENIED = 5
    """The plan does not let the job exchange packets with this destination class."""
    PEER_DENIED = 6
    """The sandboxes' own addresses: no job, or one that the two plans do not let have this one."""
    MARTIAN = 7
    """Loopback or multicast addresses, which have no business outside a sandbox."""


class ExitReason(StrEnum):
    """How an attachment ended."""

    EXITED = "exited"
    SIGNALED = "signaled"
    ENDED = "ended"
    """The process is gone and the kernel no longer says how."""
    NOT_STARTED = "not-started"
    """The wrapper got a sandbox but could not start the job in it."""
    AGENT_ABSENT = "agent-absent"
    """The job ended while no agent was running; totals are the kernel's, the end time is late."""
    TRUNCATED = "truncated"
    """The kernel's counters were lost (reboot); totals are the last durable ones."""


@dataclass(frozen=True, slots=True)
class Count:
    """Packets and bytes."""

    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.packets + other.packets, self.bytes + other.bytes)

    def __sub__(self, other: Count) -> Count:
        return Count(self.packets - other.packets, self.bytes - other.bytes)

    def __bool__(self) -> bool:
        return bool(self.packets or self.bytes)


@dataclass(frozen=True, slots=True)
class ClassUsage:
    """What a job exchanged with one destination class."""

    traffic_class: str
    sent: Count = Count()
    received: Count = Count()


@dataclass(frozen=True, slots=True)
class Drop:
    """What the datapath dropped for one reason (a `DropReason` in lower case, dashes between)."""

    reason: str
    count: Count


@dataclass(frozen=True, slots=True)
class Usage:
    """Everything counted for one attachment, cumulative.

    Classes and reasons without a packet are left out.
    """

    classes: tuple[ClassUsage, ...] = ()
    drops: tuple[Drop, ...] = ()
    non_ip_sent: Count = Count()
    """Frames that are not IP (ARP), in frame bytes without the link-layer header; in no class."""
    non_ip_received: Count = Count()

    @property
    def sent(self) -> Count:
        """Sum over the classes."""
        return sum((c.sent for c in self.classes), Count())

    @property
    def received(self) -> Count:
        """Sum over the classes."""
        return sum((c.received for c in self.classes), Count())

    @property
    def dropped(self) -> Count:
        """Sum over the reasons."""
        return sum((d.count for d in self.drops), Count())


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the batch system names it."""

    scheduler: Scheduler
    job_id: str
    owner: str
    """Who pays: the batch system's word where it launched the job, else the name of `uid`."""
    uid: int
    accounting_group: str = ""
    verified: bool = False
    """True if a process of the batch system itself, not of the job's user, launched the job."""


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """What one job may do on the network: the policy's complete, validated answer."""

    profile: str
    connectivity: Connectivity
    reach: frozenset[str] | None = None
    """Names of the classes the job may exchange packets with; None means all."""
    peers: Peers = Peers.NONE


@dataclass(frozen=True, slots=True)
class Record:
    """One attachment and its usage at one instant.

    Of two with the same `attachment_id` the one with the higher `sequence` holds.
    """

    attachment_id: str
    """UUIDv7: sorts by start time."""
    worker: str
    slot: int
    job: Job
    profile: str
    connectivity: Connectivity
    started_ns: int
    sequence: int = 0
    """Grows by one with every sample of this attachment."""
    sampled_ns: int = 0
    """When the counters were read."""
    ended_ns: int = 0
    """0 while the job runs."""
    final: bool = False
    """No later packet can change the usage."""
    exit_reason: ExitReason | None = None
    exit_status: int = 0
    """Exit code, or signal number if `exit_reason` is signaled."""
    first_port: int = 0
    """The job's NAT port block, inclusive; 0 where the job has none."""
    last_port: int = 0
    ipv4: str = ""
    """The sandbox's address; with routed what others see, with nat private; "" if it has none."""
    ipv6: str = ""
    """As ipv4."""
    usage: Usage = field(default_factory=Usage)

    def sampled(self, usage: Usage, now_ns: int) -> Record:
        """Return the next record of this attachment."""
        return replace(self, usage=usage, sampled_ns=now_ns, sequence=self.sequence + 1)


def new_attachment_id(now_ns: int, randomness: bytes) -> str:
    """Make a UUIDv7 (RFC 9562, 5.7) from a UTC time in nanoseconds and ten random bytes."""
    value = (now_ns // 1_000_000) << 80 | int.from_bytes(randomness[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
