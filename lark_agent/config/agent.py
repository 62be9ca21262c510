"""Everything in /etc/lark/agent.toml, and what concerns more than one of its tables."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.config.policy import Callout, Profile, Requests, Rule, Values
from lark_agent.config.resources import (
    Network,
    Price,
    Queue,
    Quota,
    QuotaHook,
    Service,
    ports_of,
)
from lark_agent.config.section import (
    ADMITTED_BY,
    ATTRIBUTE,
    EVERYWHERE,
    NAME,
    NOTHING,
    Section,
    network_of,
)
from lark_agent.config.section import HOST as HOST_NAME
from lark_agent.config.worker import (
    Accounting,
    Addresses,
    CollectorLink,
    Datapath,
    HTCondor,
    Nat,
    Paths,
    Pool,
    Uplink,
)
from lark_agent.model import (
    BUILT_IN_CLASSES,
    DEFAULT_CLASS,
    MAX_CLASSES,
    Connectivity,
    Direction,
    Rates,
)
from lark_agent.quantities import NotAQuantity, rate_text, rates
from lark_agent.schedulers import LAUNCHERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Network, IPv6Network

    from lark_agent.model import Port

AGENT_FILE = Path("/etc/lark/agent.toml")
BUILT_IN_SERVICE = "dns"
MOST_SERVICES = 30
"""Services that the site can list: the datapath has a bit for each, and two of its own."""


class AgentSettings(Section, frozen=True):
    """Everything in /etc/lark/agent.toml."""

    worker: str = ""
    """Name of this worker in records; empty: the host name."""
    admin_group: str = "lark-admin"
    """Members see every job; others see their own."""
    observers: tuple[str, ...] = ("condor",)
    """Accounts that see every job and change none: HTCondor's daemons publish usage; leave out
    one that jobs run as."""
    trusted_launchers: tuple[str, ...] = LAUNCHERS
    """Programs by which root starts jobs: what they say of a job is the batch system's word. A name
    counts for a file that is root's, in directories that are; a path for that file, whoever's."""
    shared_accounts: tuple[str, ...] = ("nobody", "slot*", "condor*")
    """Accounts (patterns) that run jobs of many: only there does the ad name the owner."""
    default_profile: str = "nat"
    """Profile of a job that no rule matches."""
    uplink: Uplink = Uplink()
    pool: Pool = Pool()
    addresses: Addresses = Addresses()
    nat: Nat = Nat()
    accounting: Accounting = Accounting()
    collector: CollectorLink = CollectorLink()
    datapath: Datapath = Datapath()
    paths: Paths = Paths()
    htcondor: HTCondor = HTCondor()
    classes: dict[str, tuple[str, ...]] = {}
    """Destination classes: name = list of networks; longest prefix wins; the rest is `other`."""
    profiles: dict[str, Profile] = {}
    """Besides the built-in `nat` and `none`."""
    rules: tuple[Rule, ...] = ()
    """In order; each names a profile, sets values, or both."""
    requests: Requests = Requests()
    callout: Callout = Callout()
    networks: dict[str, Network] = {}
    """Networks of layer 2 that sandboxes can sit on."""
    services: dict[str, Service] = {}
    """Services of the worker that jobs may use; nothing else of it can be reached."""
    queues: dict[str, Queue] = {}
    """Shares of the uplink."""
    quotas: dict[str, Quota] = {}
    """How much may move, and what happens then."""
    quota_hook: QuotaHook = QuotaHook()
    prices: dict[str, Price] = {}
    """Class (also `jobs`, `worker`, `other`) = what a GB costs; gives every record its cost."""
    machine: dict[str, str | int | float | bool] = {}
    """Attributes of the machine ad that rules see as MY.Name; they hold over the batch system's."""

    @property
    def worker_name(self) -> str:
        """The name of this worker in records."""
        return self.worker or socket.gethostname()

    @property
    def all_profiles(self) -> dict[str, Profile]:
        """The site's profiles and the built-in ones."""
        return {
            "nat": Profile(),
            "none": Profile(connectivity=Connectivity.NONE),
            **self.profiles,
        }

    @property
    def offered(self) -> frozenset[Connectivity]:
        """What this worker can connect a job by."""
        delegated = self.addresses.routed4 or self.addresses.routed6
        routed = {Connectivity.ROUTED} if delegated else set()
        layer2 = {network.connectivity for network in self.networks.values()}
        return frozenset({Connectivity.NAT, Connectivity.NONE, Connectivity.HOST} | routed | layer2)

    @property
    def bookable(self) -> Rates:
        """What jobs outside all queues can be guaranteed: the uplink without the queues' part."""
        have = rates(self.uplink.rate or 0)
        queues = [rates(queue.guarantee or 0) for queue in self.queues.values()]
        return Rates(*(have.of(way) - sum(each.of(way) for each in queues) for way in Direction))

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check what concerns more than one table."""
        if self.worker and not HOST_NAME.fullmatch(self.worker):
            yield "worker", f"'{self.worker}' is not a host name; leave it out to use this host's"
        ports = self.nat.last_port - self.nat.first_port + 1
        if self.pool.slots >= 1 and 0 < ports < 16 * self.pool.slots:
            yield (
                "nat",
                (
                    f"{ports} ports for {self.pool.slots} slots leave fewer than 16 a job; "
                    "widen the range"
                ),
            )
        yield from self._routed_findings()
        yield from self._class_findings()
        yield from self._profile_findings()
        yield from self._resource_findings()
        yield from self._service_findings()
        yield from self._queue_findings()

    def _routed_findings(self) -> Iterator[tuple[str, str]]:
        """Check that the delegated prefixes reach for all slots, and are there if asked for."""
        prefixes = {key: getattr(self.addresses, key) for key in ("routed4", "routed6")}
        for key, network in [(key, network_of(text)) for key, text in prefixes.items()]:
            # the network's own address, the gateway's, and with IPv4 the last are no sandbox's
            room = 0 if network is None else network.num_addresses - 2 - (network.version == 4)
            if network is not None and room < self.pool.slots:
                yield (
                    f"addresses.{key}",
                    (
                        f"{network} has room for {max(0, room)} sandboxes and [pool] slots is "
                        f"{self.pool.slots}; get a larger prefix or lower slots"
                    ),
                )
        if any(prefixes.values()):
            return
        for name, profile in self.profiles.items():
            if profile.connectivity == Connectivity.ROUTED:
                yield (
                    f"profiles.{name}.connectivity",
                    (
                        "routed needs a prefix that the site's router routes to this worker; "
                        "give [addresses] routed6 or routed4"
                    ),
                )

    def _class_findings(self) -> Iterator[tuple[str, str]]:
        most = MAX_CLASSES - len(BUILT_IN_CLASSES)
        if len(self.classes) > most:
            yield (
                "classes",
                (
                    f"{len(self.classes)} classes; at most {most} fit "
                    f"beside {' and '.join(BUILT_IN_CLASSES)}"
                ),
            )
        owner: dict[IPv4Network | IPv6Network, str] = {}
        for name, prefixes in self.classes.items():
            if name in BUILT_IN_CLASSES or not NAME.fullmatch(name):
                yield (
                    f"classes.{name}",
                    (
                        "not a usable name; use letters, digits, '_', '-', and none of "
                        f"{', '.join(BUILT_IN_CLASSES)}"
                    ),
                )
            if name == EVERYWHERE:
                yield f"classes.{name}", f"'{EVERYWHERE}' means every class; use another name"
            for text in prefixes:
                try:
                    network = ip_network(text)
                except ValueError as error:
                    yield f"classes.{name}", f"{error}"
                    continue
                if owner.setdefault(network, name) != name:
                    yield (
                        f"classes.{name}",
                        (
                            f"{network} is also in class '{owner[network]}'; "
                            "the same network can be in one class only"
                        ),
                    )

    def _profile_findings(self) -> Iterator[tuple[str, str]]:
        known = self.all_profiles
        for name, profile in self.profiles.items():
            if not NAME.fullmatch(name):
                yield f"profiles.{name}", "not a usable name"
            for reach in profile.reach or ():
                if reach != DEFAULT_CLASS and reach not in self.classes:
                    lacks = f"no class '{reach}' is defined under [classes]"
                    yield f"profiles.{name}.reach", ADMITTED_BY.get(reach, lacks)
        if self.default_profile not in known:
            yield (
                "default_profile",
                f"no profile '{self.default_profile}'; known: {', '.join(known)}",
            )
        yield from self._rule_findings(known)

    def _rule_findings(self, known: dict[str, Profile]) -> Iterator[tuple[str, str]]:
        for number, rule in enumerate(self.rules, 1):
            if rule.profile and rule.profile not in known:
                yield (
                    f"rules[{number}].profile",
                    f"no profile '{rule.profile}'; known: {', '.join(known)}",
                )
            if not rule.profile and rule.set == Values():
                yield f"rules[{number}]", "decides nothing; give it a profile, or values to set"
        for name in self.requests.profiles:
            if name not in known:
                yield "requests.profiles", f"no profile '{name}'; known: {', '.join(known)}"
        for name in self.requests.networks:
            if name not in self.networks:
                yield "requests.networks", f"no network '{name}' is defined under [networks]"
        for name in self.machine:
            if not ATTRIBUTE.fullmatch(name):
                yield f"machine.{name}", "not an attribute name; use letters, digits and '_'"

    def _resource_findings(self) -> Iterator[tuple[str, str]]:
        """Check names, and the classes that quotas and prices speak of."""
        for table in ("networks", "services", "queues", "quotas"):
            for name in getattr(self, table):
                if not NAME.fullmatch(name) or name in {EVERYWHERE, NOTHING}:
                    yield f"{table}.{name}", "not a usable name; use letters, digits, '_', '-'"
        known = {*BUILT_IN_CLASSES, *self.classes}
        for name, quota in self.quotas.items():
            for each in sorted(set(quota.classes or ()) - known):
                yield f"quotas.{name}.classes", f"no class '{each}' is defined under [classes]"
            if quota.hook and not self.quota_hook.command:
                yield f"quotas.{name}.hook", "needs a program: give [quota_hook] command"
        for each in sorted(set(self.prices) - known):
            yield f"prices.{each}", f"no class '{each}' is defined under [classes]"

    @property
    def service_ports(self) -> dict[str, Port]:
        """The port of each service."""
        return {name: ports_of(service.port)[0] for name, service in self.services.items()}

    def _service_findings(self) -> Iterator[tuple[str, str]]:
        """Check that services can be told apart."""
        if len(self.services) > MOST_SERVICES:
            yield "services", f"{len(self.services)} services; at most {MOST_SERVICES} fit"
        if BUILT_IN_SERVICE in self.services:
            yield (
                f"services.{BUILT_IN_SERVICE}",
                "is built in: every job may ask its gateway for names; use another name",
            )
        taken: dict[object, str] = {}
        for name, service in self.services.items():
            with contextlib.suppress(ValueError):  # its own table says so
                port = ports_of(service.port)[0]
                if taken.setdefault(port, name) != name:
                    yield f"services.{name}.port", f"{port} is also the service '{taken[port]}'"

    def _queue_findings(self) -> Iterator[tuple[str, str]]:
        """Check that what queues are guaranteed is there."""
        try:
            uplink = rates(self.uplink.rate or 0)
            booked = [rates(queue.guarantee or 0) for queue in self.queues.values()]
        except NotAQuantity:
            return  # its own table says so
        for direction in Direction:
            total = sum(each.of(direction) for each in booked)
            if total > uplink.of(direction):
                have = rate_text(uplink.of(direction)) if uplink else "not given"
                yield (
                    "queues",
                    (
                        f"the guarantees of all queues make {rate_text(total)} "
                        f"{direction.name.lower()}, and [uplink] rate is {have}"
                    ),
                )
