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
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_CLASSES = 16
"""Destination classes, built-in ones included (the width of the kernel's counters)."""

DEFAULT_CLASS = "other"
"""The class of every destination that no site class covers."""

JOBS_CLASS = "jobs"
"""The class of other jobs, which `Peers` and not `reach` admits."""

WORKER_CLASS = "worker"
"""The class of the worker's own addresses, which the plan's services and not `reach` admit."""

BUILT_IN_CLASSES = (DEFAULT_CLASS, JOBS_CLASS, WORKER_CLASS)

MAX_CHANGES = 64
"""Changes that a record keeps."""


class Scheduler(StrEnum):
    """Which batch system named the job."""

    HTCONDOR = "htcondor"
    SLURM = "slurm"
    PLAIN = "plain"
    """None: a person, or something that does not name its jobs, such as cron."""
    PBS = "pbs"
    LSF = "lsf"
    GRIDENGINE = "gridengine"


class Connectivity(StrEnum):
    """How a sandbox is connected."""

    NAT = "nat"
    NONE = "none"
    ROUTED = "routed"
    """Addresses of a prefix that is routed to the worker; no translation."""
    BRIDGE = "bridge"
    """A port of a Linux bridge of the site."""
    MACVLAN = "macvlan"
    """A link-layer address of its own on one of the worker's interfaces."""
    VLAN = "vlan"
    """A port of an 802.1Q network, made on demand."""
    OVS = "ovs"
    """A port of an Open vSwitch bridge."""
    HOST = "host"
    """No sandbox: the worker's own network, counted by cgroup."""


LAYER2 = frozenset({Connectivity.BRIDGE, Connectivity.MACVLAN, Connectivity.VLAN, Connectivity.OVS})
"""Connectivities whose sandboxes sit on a network of the site, which a name picks."""
UNSHAPED = frozenset({Connectivity.MACVLAN, Connectivity.HOST})
"""Connectivities without a link whose other end is the worker's, where packets could wait."""


class Peers(StrEnum):
    """Which other jobs of this worker a job may exchange packets with; both must agree."""

    NONE = "none"
    OWNER = "owner"
    """Jobs of the same owner (LARK: split pool)."""
    GROUP = "group"
    """Jobs of the same accounting group, if they have one."""
    ALL = "all"


class Family(StrEnum):
    """Which address families a job uses."""

    ANY = "any"
    """Those that its worker has."""
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    BOTH = "both"
    """Both, or the job does not run here."""


class Inbound(StrEnum):
    """What may come in to a job that others send without being asked."""

    NONE = "none"
    """Nothing comes in at all, not even answers."""
    ESTABLISHED = "established"
    """Answers to what the job sent."""
    PORTS = "ports"
    """Answers, and whatever is for the plan's ports."""
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
    """The plan does not let the job exchange packets with this destination class, or a source route
    hides which class the packet is for."""
    PEER_DENIED = 6
    """The sandboxes' own addresses: no job, or one that the two plans do not let have this one."""
    MARTIAN = 7
    """Loopback or multicast addresses, which have no business outside a sandbox."""
    QUOTA = 8
    """A quota of the job is used up, and its action is to cut."""
    INBOUND_DENIED = 9
    """The plan lets nothing in, or nothing that the job did not ask for, or not to this port."""
    SERVICE_DENIED = 10
    """The worker itself, but none of the services that it lists for the job."""
    FORGED_SERVICE = 11
    """What only the network may say: router advertisements, redirects, answers of DHCP servers."""


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
    cost: int = 0
    """By the site's prices when it moved, in millionths of the currency unit."""


class Refused(NamedTuple):
    """Packets to or from a destination class that the plan did not let through."""

    traffic_class: str
    packets: int


@dataclass(frozen=True, slots=True)
class Drop:
    """What the datapath dropped for one reason (a `DropReason` in lower case, dashes between)."""

    reason: str
    count: Count
    classes: tuple[Refused, ...] = ()
    """Of `CLASS_DENIED`, which classes; without what hides its class. Very large numbers stop."""

    def since(self, before: Drop) -> Drop:
        """Return what came after an earlier reading of the same counters."""
        earlier = dict(before.classes)
        classes = (
            Refused(name, packets - earlier.get(name, 0))
            for name, packets in self.classes
            if packets != earlier.get(name)
        )
        return Drop(self.reason, self.count - before.count, tuple(classes))


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
    def cost(self) -> int:
        """Sum over the classes, in millionths of the currency unit."""
        return sum(c.cost for c in self.classes)

    @property
    def dropped(self) -> Count:
        """Sum over the reasons."""
        return sum((d.count for d in self.drops), Count())

    def since(self, before: Usage) -> Usage:
        """Return what came after an earlier reading of the same counters."""
        classes = {each.traffic_class: each for each in before.classes}
        drops = {each.reason: each for each in before.drops}
        none = ClassUsage("")
        moved = [(each, classes.get(each.traffic_class, none)) for each in self.classes]
        return Usage(
            tuple(
                ClassUsage(
                    now.traffic_class, now.sent - then.sent, now.received - then.received,
                    now.cost - then.cost,
                )
                for now, then in moved
                if (now.sent, now.received) != (then.sent, then.received)
            ),
            tuple(
                each.since(drops.get(each.reason, Drop(each.reason, Count())))
                for each in self.drops
                if each != drops.get(each.reason)
            ),
            self.non_ip_sent - before.non_ip_sent,
            self.non_ip_received - before.non_ip_received,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the batch system names it."""

    scheduler: Scheduler
    job_id: str
    """Empty: no job, but what the batch system does for one (`Record.is_transfer`)."""
    owner: str
    """Who pays: the batch system's word where it launched the job, else the name of `uid`."""
    uid: int
    accounting_group: str = ""
    verified: bool = False
    """True if a process of the batch system itself, not of the job's user, launched the job."""


class Port(NamedTuple):
    """A transport protocol and one of its ports."""

    protocol: str
    """tcp or udp."""
    number: int

    @property
    def on_wire(self) -> tuple[int, int]:
        """IP protocol number and port."""
        return {"tcp": 6, "udp": 17}[self.protocol], self.number

    def __str__(self) -> str:
        return f"{self.protocol}/{self.number}"


@dataclass(frozen=True, slots=True)
class Rates:
    """Bit/s of IP packets in each direction, as the job sees them; 0: none given."""

    sent: int = 0
    received: int = 0

    def __bool__(self) -> bool:
        return bool(self.sent or self.received)

    def of(self, direction: Direction) -> int:
        """Return the rate of one direction."""
        return self.sent if direction is Direction.SENT else self.received


DEFAULT_PRIORITY = 4
"""Of 0 (first) to 7."""


def precedence(job: int, queue: int | None = None) -> int:
    """Return a job's place in the hierarchy, 0 (first) to 7: its priority counts from its queue's.

    None is the priority of a job outside all queues.
    """
    base = DEFAULT_PRIORITY if queue is None else queue
    return min(7, max(0, base + job - DEFAULT_PRIORITY))


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """What one job may do on the network: the policy's complete, validated answer."""

    profile: str
    connectivity: Connectivity
    network: str = ""
    """Name of the site's network that a sandbox of layer 2 sits on; else empty."""
    ip: Family = Family.ANY
    reach: frozenset[str] | None = None
    """Names of the classes the job may exchange packets with; None means all."""
    peers: Peers = Peers.NONE
    inbound: Inbound = Inbound.ESTABLISHED
    ports: tuple[Port, ...] = ()
    """What `Inbound.PORTS` opens."""
    services: frozenset[str] | None = None
    """Names of the worker's listed services that the job may use; None means all of them."""
    rate: Rates = Rates()
    """Most that the job gets."""
    guarantee: Rates = Rates()
    """What the job gets whenever it wants it, however busy the uplink is."""
    queue: str = ""
    """Name of the site's queue that the job shares the uplink in; empty: none."""
    priority: int = DEFAULT_PRIORITY
    """Who borrows first what others leave: 0 to 7, 0 first."""
    dscp: int = 0
    """Differentiated services code point (RFC 2474) of every packet the job sends, 0 to 63."""
    dscp_of_priority: bool = False
    """The code point is that of the job's place, as the site gives them, and follows it."""
    flow_label: int = 0
    """IPv6 flow label (RFC 6437) of every packet the job sends, 20 bits."""
    quotas: tuple[str, ...] = ()
    """Names of the site's quotas that hold for the job."""
    cut: bool = False
    """An admin has cut the job off: nothing passes, whatever else the plan says."""


def alike_but_for_reach(before: NetworkPlan, after: NetworkPlan) -> bool:
    """Tell whether plans differ in what is reached at most, which needs nothing of the worker."""
    return after == replace(before, cut=after.cut, reach=after.reach, services=after.services)


class Setting(NamedTuple):
    """One setting of a plan, as people write it."""

    name: str
    value: str


class Change(NamedTuple):
    """Something about an attachment that was changed while the job ran."""

    at_ns: int
    by: str
    """A person's name, or "quota NAME"."""
    setting: str
    value: str


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
    network: str = ""
    """The site's network that a sandbox of layer 2 sits on."""
    peers: Peers = Peers.NONE
    """Which other jobs it admits."""
    cost: int = 0
    """What the usage costs by the site's prices, in millionths of its currency unit."""
    plan: tuple[Setting, ...] = ()
    """What holds for it now: the settings that people ask about, and all that are not as usual."""
    changes: tuple[Change, ...] = ()
    """What was changed while the job ran, oldest first; the oldest go beyond `MAX_CHANGES`."""
    usage: Usage = field(default_factory=Usage)
    transfer: Usage | None = None
    """What the batch system's own process moved for the job, its files above all; in no other
    number. None: not accounted."""

    @property
    def is_transfer(self) -> bool:
        """Tell whether it is of no job, but of a process that moves files for one."""
        return not self.job.job_id

    def sampled(self, usage: Usage, now_ns: int) -> Record:
        """Return the next record of this attachment."""
        return replace(
            self, usage=usage, cost=usage.cost, sampled_ns=now_ns, sequence=self.sequence + 1
        )

    def changed(self, changes: Iterable[Change]) -> Record:
        """Return this record with further changes told."""
        return replace(self, changes=(*self.changes, *changes)[-MAX_CHANGES:])


def new_attachment_id(now_ns: int, randomness: bytes) -> str:
    """Make a UUIDv7 (RFC 9562, 5.7) from a UTC time in nanoseconds and ten random bytes."""
    value = (now_ns // 1_000_000) << 80 | int.from_bytes(randomness[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
