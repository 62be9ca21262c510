"""Tables of what plans refer to by name: networks, services, queues, quotas, prices."""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from lark_agent.config.section import Section, rate_findings
from lark_agent.model import DEFAULT_PRIORITY, LAYER2, Connectivity, Port
from lark_agent.quantities import NotAQuantity, rates, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PORT = re.compile(r"(tcp|udp)/(\d{1,5})(?:-(\d{1,5}))?")
MOST_PORTS = 64


def ports_of(text: str) -> tuple[Port, ...]:
    """Read "tcp/8000" or "udp/5000-5010"; raises ValueError."""
    match = _PORT.fullmatch(text.strip().lower())
    first = int(match[2]) if match else 0
    last = int(match[3] or first) if match else 0
    if match is None or not 1 <= first <= last <= 65535 or last - first >= MOST_PORTS:
        raise ValueError(
            f"'{text}' is no port; write one such as tcp/8000 or udp/5000-5010 "
            f"(at most {MOST_PORTS})"
        )
    return tuple(Port(match[1], number) for number in range(first, last + 1))


class AddressMode(StrEnum):
    """Where sandboxes on a network get their addresses from."""

    STATIC = "static"
    """Of the network's pools."""
    DHCP = "dhcp"
    """IPv4 of a DHCP server; leases are kept across jobs."""
    SLAAC = "slaac"
    """IPv6 of router advertisements."""
    DHCP_SLAAC = "dhcp+slaac"
    """Both."""


class Network(Section, frozen=True):
    """A network of the site that sandboxes can sit on, at layer 2."""

    connectivity: Connectivity
    """How: bridge, macvlan, vlan or ovs."""
    bridge: str = ""
    """The Linux or Open vSwitch bridge to join, for bridge and ovs."""
    parent: str = ""
    """Interface below macvlan or vlan; empty: the uplink."""
    vlan: int = 0
    """802.1Q id of vlan, or tag of the port of ovs; 0: untagged."""
    addresses: AddressMode = AddressMode.DHCP
    """Where sandboxes get their addresses from."""
    pool4: str = ""
    """First and last IPv4 address of static ones, and the prefix: "192.0.2.10-192.0.2.60/24"."""
    gateway4: str = ""
    """IPv4 router of static ones; empty: none."""
    pool6: str = ""
    """As pool4, for IPv6: "2001:db8::10-2001:db8::60/64"."""
    gateway6: str = ""
    """IPv6 router of static ones; empty: none."""
    dns: tuple[str, ...] = ()
    """Resolvers; empty: those of DHCP, else the worker's."""
    ready: int = 0
    """Idle sandboxes kept built; 0: built while the job waits."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check what belongs together."""
        if self.connectivity not in LAYER2:
            yield "connectivity", f"'{self.connectivity}' is none of {', '.join(sorted(LAYER2))}"
        bridged = self.connectivity in {Connectivity.BRIDGE, Connectivity.OVS}
        if bridged and not self.bridge:
            yield "bridge", "is missing: name the bridge that sandboxes join"
        if self.connectivity is Connectivity.VLAN and not self.vlan:
            yield "vlan", "is missing: give the 802.1Q id, 1 to 4094"
        if not 0 <= self.vlan <= 4094:
            yield "vlan", f"{self.vlan} is not between 1 and 4094"
        if not 0 <= self.ready <= 4096:
            yield "ready", f"{self.ready} is not between 0 and 4096"
        yield from self._address_findings()

    def _address_findings(self) -> Iterator[tuple[str, str]]:
        if self.addresses is AddressMode.STATIC and not (self.pool4 or self.pool6):
            yield "addresses", "static needs pool4 or pool6"
        forms: list[tuple[str, Callable[[str], object]]] = [
            ("pool4", lambda text: pool_of(text, IPv4Address)),
            ("pool6", lambda text: pool_of(text, IPv6Address)),
            ("gateway4", IPv4Address),
            ("gateway6", IPv6Address),
        ]
        written = [(key, getattr(self, key), form) for key, form in forms]
        for key, text, form in [*written, *(("dns", text, ip_address) for text in self.dns)]:
            try:
                form(text) if text else None
            except ValueError as error:
                yield key, f"{error}"


def pool_of(
    text: str, kind: type[IPv4Address | IPv6Address]
) -> tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address, int]:
    """Read "FIRST-LAST/PREFIX" into first and last address and prefix length; raises ValueError."""
    addresses, _, prefix = text.partition("/")
    first, _, last = addresses.partition("-")
    try:
        pool = kind(first.strip()), kind(last.strip()), int(prefix)
    except ValueError as error:
        raise ValueError(
            f"'{text}' is not FIRST-LAST/PREFIX, for example 192.0.2.10-192.0.2.60/24: {error}"
        ) from error
    if int(pool[0]) > int(pool[1]) or not 0 < pool[2] <= pool[0].max_prefixlen:
        raise ValueError(f"'{text}' is not FIRST-LAST/PREFIX with FIRST before LAST")
    return pool


class Service(Section, frozen=True):
    """A service of the worker that jobs may use."""

    port: str
    """Its port: "tcp/3128"."""
    loopback: bool = False
    """It listens on the worker's 127.0.0.1, and appears there in the sandbox too."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check the port."""
        try:
            if len(ports_of(self.port)) > 1:
                yield "port", f"'{self.port}' is more than one port; list a service for each"
        except ValueError as error:
            yield "port", f"{error}"


class Queue(Section, frozen=True):
    """A share of the uplink for a group of jobs of this worker."""

    rate: str = ""
    """Most that its jobs together get; empty: what the uplink has."""
    guarantee: str = ""
    """What its jobs together get whenever they want it; empty: nothing."""
    priority: int = DEFAULT_PRIORITY
    """Which queue borrows first what others leave; 0 (first) to 7."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check rates and the range."""
        broken = list(rate_findings(self, "rate", "guarantee"))
        yield from broken
        if not 0 <= self.priority <= 7:
            yield "priority", f"{self.priority} is not between 0 and 7"
        if broken or not self.rate:
            return
        most, sure = rates(self.rate), rates(self.guarantee or 0)
        if 0 < most.sent < sure.sent or 0 < most.received < sure.received:
            yield "guarantee", f"{self.guarantee} is more than the queue's rate, {self.rate}"


class QuotaScope(StrEnum):
    """Whose bytes count together."""

    JOB = "job"
    OWNER = "owner"
    GROUP = "group"


class QuotaPeriod(StrEnum):
    """When counting begins anew, in UTC."""

    DAY = "day"
    MONTH = "month"


class QuotaDirection(StrEnum):
    """Which bytes count."""

    BOTH = "both"
    SENT = "sent"
    RECEIVED = "received"


class QuotaAction(StrEnum):
    """What happens when a quota is used up."""

    NOTIFY = "notify"
    THROTTLE = "throttle"
    CUT_CLASS = "cut-class"
    """The classes of the quota are closed to the job."""
    CUT_ALL = "cut-all"


class Unreachable(StrEnum):
    """What a worker does whose lease is used up while the collector cannot be asked."""

    CUT = "cut"
    """As if the quota were used up."""
    CONTINUE = "continue"
    """Go on counting; the pool can then pass the quota by what such workers move."""


class Quota(Section, frozen=True):
    """How many bytes may move."""

    bytes: str
    """How many: "500 GB", "2 TB" (powers of 1000) or "64 MiB"."""
    per: QuotaScope = QuotaScope.JOB
    """Whose bytes count together: each job's, or all of an owner or group in the pool."""
    period: QuotaPeriod | None = None
    """When counting begins anew (UTC), for owner and group; absent: each month."""
    classes: tuple[str, ...] | None = None
    """Classes that count, `jobs` and `worker` among them; absent: all."""
    direction: QuotaDirection = QuotaDirection.BOTH
    """Which bytes count, as the job sees them."""
    action: QuotaAction = QuotaAction.CUT_CLASS
    """What happens when it is used up."""
    throttle: str = ""
    """The job's rate from then on, with action throttle."""
    hook: bool = False
    """Run `[quota_hook]` as well."""
    unreachable: Unreachable | None = None
    """With owner or group: what to do when the collector cannot be asked for more; absent: cut."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check the size and the rate, and that nothing is set that a job's own does not have."""
        try:
            if size(self.bytes) == 0:
                yield "bytes", "is 0; a class that nobody may use is left out of reach instead"
        except NotAQuantity as error:
            yield "bytes", f"{error}"
        yield from rate_findings(self, "throttle")
        if (self.action is QuotaAction.THROTTLE) != bool(self.throttle):
            yield "throttle", "belongs to action throttle, which needs it"
        if self.per is QuotaScope.JOB and self.period:
            yield "period", "a job's own quota has none, it lasts as long as the job; leave it out"
        if self.per is QuotaScope.JOB and self.unreachable:
            yield "unreachable", "no collector is asked about a job's own quota; leave it out"


class QuotaHook(Section, frozen=True):
    """A program of the site that is run when a quota with `hook = true` is used up."""

    command: tuple[str, ...] = ()
    """Program (absolute path) and arguments; it reads what happened as JSON; empty: none."""
    user: str = "nobody"
    """Who the program runs as."""
    timeout_seconds: float = 10.0
    """How long it may take; then it is killed. 0.1 to 60."""
    per_hour: int = 60
    """Most runs an hour; what is over is logged only."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check the program's form and the ranges."""
        if self.command and not self.command[0].startswith("/"):
            yield "command", f"'{self.command[0]}' is not an absolute path"
        if not 0.1 <= self.timeout_seconds <= 60:
            yield "timeout_seconds", f"{self.timeout_seconds} is not between 0.1 and 60"
        if not 1 <= self.per_hour <= 3600:
            yield "per_hour", f"{self.per_hour} is not between 1 and 3600"


class Price(Section, frozen=True):
    """What a GB (1,000,000,000 bytes) exchanged with a class costs, in the site's currency."""

    sent: float = 0.0
    """Per GB that jobs send."""
    received: float = 0.0
    """Per GB that jobs receive."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check the ranges."""
        for key in ("sent", "received"):
            if not 0 <= getattr(self, key) <= 1e6:
                yield key, f"{getattr(self, key)} is not between 0 and 1000000"
