"""Configuration: TOML into frozen typed settings; the embedded default works without any file.

The structs below are the whole truth: their fields are the keys, their defaults are the embedded
default, and the attribute docstrings are the reference text (`lark_agent.cli.reference` prints
docs/configuration.md from them). Decoding refuses unknown keys and wrong types (msgspec), then
each settings object checks what one type cannot say: ranges, overlaps, names that must exist. All
findings of either step are reported together, each with the file, the key and a remedy.

What depends on the machine (does the uplink exist, is an address range in use) is checked by the
rooms that touch it.
"""

from __future__ import annotations

import re
import socket
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import msgspec

from lark_agent.errors import ConfigurationError
from lark_agent.model import BUILT_IN_CLASSES, DEFAULT_CLASS, MAX_CLASSES, Connectivity, Peers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

AGENT_FILE = Path("/etc/lark/agent.toml")
COLLECTOR_FILE = Path("/etc/lark/collector.toml")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
"""A host name, qualified or not (RFC 1123, 2.1), with the underscores that sites use anyway."""
ATTRIBUTE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
"""A name in a ClassAd."""
FOREVER = 36525.0
"""Days; bounds what is added to times."""
EVERYWHERE = "all"
"""The word for every class where a computed value names the classes a job may reach."""


def is_endpoint(text: str) -> bool:
    """Say whether a text is host:port or [IPv6 address]:port."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:/\s\[\]]+):(\d{1,5})", text)
    return found is not None and int(found[2]) <= 65535


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the configuration file."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Yield (key, what is wrong and what to do) for each value that cannot be used."""
        yield from ()


class Uplink(Section, frozen=True):
    """The worker's own connection."""

    interface: str = ""
    """Interface towards the network; empty: that of the default route."""


class Pool(Section, frozen=True):
    """Sandboxes."""

    slots: int = 64
    """Most jobs with a sandbox at one time; also divides the NAT ports. 1 to 4096."""
    ready: int = 8
    """Idle sandboxes kept built, so that a job starts at once."""
    per_user: int = 16
    """Most jobs with a sandbox that one user has outside the batch system; at least 1."""
    wait_seconds: float = 30.0
    """How long a job waits for a sandbox when all slots are taken; then it is refused. 0 to 240."""
    drain_seconds: float = 5.0
    """How long what a finished job had under way may take to arrive and fall quiet."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check ranges."""
        if not 1 <= self.slots <= 4096:
            yield "slots", f"{self.slots} is not between 1 and 4096"
        if not 0 <= self.ready <= self.slots:
            yield "ready", f"{self.ready} is not between 0 and slots ({self.slots})"
        if self.per_user < 1:
            yield "per_user", f"{self.per_user} is less than 1"
        if not 0 <= self.wait_seconds <= 240:
            yield "wait_seconds", f"{self.wait_seconds} is not between 0 and 240"
        if not 0 <= self.drain_seconds <= 60:
            yield "drain_seconds", f"{self.drain_seconds} is not between 0 and 60"


class Addresses(Section, frozen=True):
    """Addresses of the sandboxes: private ones for nat, of delegated prefixes for routed."""

    ipv4: str = "100.98.0.0/16"
    """Of nat, private to the worker. Slot n has the n-th address after the gateway's."""
    ipv6: str = "fd6c:6172:6b00::/64"
    """As ipv4; used where the worker has an IPv6 default route."""
    routed4: str = ""
    """Of routed: an IPv4 prefix that the site's router routes to this worker; empty: none."""
    routed6: str = ""
    """Of routed: an IPv6 prefix that the site's router routes to this worker; empty: none."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check that all are networks of their family with enough addresses, and none overlap."""
        ranges = (
            ("ipv4", IPv4Network, 19, "100.98.0.0/16"),
            ("ipv6", IPv6Network, 112, "fd6c:6172:6b00::/64"),
            ("routed4", IPv4Network, 30, "198.18.7.0/24"),
            ("routed6", IPv6Network, 126, "2001:db8:7::/112"),
        )
        for key, kind, longest, example in ranges:
            text = getattr(self, key)
            if not text and key.startswith("routed"):
                continue
            try:
                network = ip_network(text)
            except ValueError as error:
                yield key, f"{error}; write a network such as {example}"
                continue
            if not isinstance(network, kind):
                yield key, f"{text} is of the other address family; for example {example}"
            elif network.prefixlen > longest:
                yield key, f"{text} is too small; use a prefix of at most /{longest}"
            elif network.is_multicast or network.is_loopback or network.is_link_local:
                yield key, f"{text} cannot be routed to a sandbox; for example {example}"
            elif network.prefixlen < 8:
                yield key, f"{text} takes the addresses of others; for example {example}"
            elif key.startswith("routed") and _overlap(text, (self.ipv4, self.ipv6)):
                yield key, f"{text} overlaps the private addresses of nat; choose other ones there"


def _network(text: str) -> IPv4Network | IPv6Network | None:
    """Return the network that a text names, None if it names none."""
    try:
        return ip_network(text)
    except ValueError:
        return None


def _overlap(text: str, others: Iterable[str]) -> bool:
    """Say whether a network shares addresses with one of some others."""
    one = _network(text)
    return one is not None and any(
        other is not None and other.version == one.version and one.overlaps(other)
        for other in map(_network, others)
    )


class Nat(Section, frozen=True):
    """Port blocks: slot n always uses the n-th block, so that a port names the job."""

    first_port: int = 10240
    """First port of the first block."""
    last_port: int = 32767
    """Last port of the last block; keep all off the worker's own (net.ipv4.ip_local_port_range)."""
    rest_seconds: float = 120.0
    """How long a freed block rests while rested ones are left (RFC 6888, REQ-8)."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check the order of the ports."""
        if not 1024 <= self.first_port <= self.last_port <= 65535:
            yield "first_port", "ports must satisfy 1024 <= first_port <= last_port <= 65535"
        if not 0 <= self.rest_seconds <= 86400:
            yield "rest_seconds", f"{self.rest_seconds} is not between 0 and 86400"


class Accounting(Section, frozen=True):
    """Sampling and the journal."""

    interval_seconds: float = 10.0
    """Time between two readings of all counters; at least 1."""
    history_days: float = 7.0
    """How long ended jobs stay in this worker's journal after the collector has them."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check ranges."""
        if not 1 <= self.interval_seconds <= 3600:
            yield "interval_seconds", f"{self.interval_seconds} is not between 1 and 3600"
        if not 0 <= self.history_days <= FOREVER:
            yield "history_days", f"{self.history_days} is not between 0 and {FOREVER:.0f}"


class CollectorLink(Section, frozen=True):
    """Where to report."""

    address: str = ""
    """host:port of the collector; empty: keep records on this worker only."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check the form of the address."""
        if self.address and not is_endpoint(self.address):
            yield "address", f"'{self.address}' is not host:port or [address]:port"


class Datapath(Section, frozen=True):
    """How the eBPF programs get into the kernel."""

    loader: str = "libbpf"
    """libbpf (the object compiled with the package) or bcc (compiled on this worker)."""
    python: str = "/usr/bin/python3"
    """Interpreter that can import bcc; used by the bcc loader only."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check the choice."""
        if self.loader not in {"libbpf", "bcc"}:
            yield "loader", f"'{self.loader}' is neither libbpf nor bcc"


class Paths(Section, frozen=True):
    """Where state lives. lark-run always asks at /run/lark/run.sock."""

    run: str = "/run/lark"
    """Sockets, lock, resolv.conf of the sandboxes."""
    state: str = "/var/lib/lark"
    """The journal."""
    bpffs: str = "/sys/fs/bpf/lark"
    """Pinned maps and programs."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check that paths are absolute."""
        for key in ("run", "state", "bpffs"):
            if not getattr(self, key).startswith("/"):
                yield key, f"'{getattr(self, key)}' is not an absolute path"


class Profile(Section, frozen=True):
    """A named bundle of what a job may do."""

    connectivity: Connectivity = Connectivity.NAT
    """How the job is connected."""
    reach: tuple[str, ...] | None = None
    """Classes the job may exchange packets with; absent: all."""
    peers: Peers = Peers.NONE
    """Other jobs of this worker that the job may exchange packets with, if theirs agree."""


class Values(Section, frozen=True):
    """Values that a rule computes: ClassAd expressions; a key left out is not set."""

    connectivity: str = ""
    """Gives one of the words of a profile's connectivity."""
    reach: str = ""
    """Gives a list of classes, or their names with commas in one string, or "all"."""
    peers: str = ""
    """Gives one of the words of a profile's peers."""


class Rule(Section, frozen=True):
    """Rules are tried in order; those whose condition is true apply; see docs/policy.md."""

    when: str
    """ClassAd expression over the job ad and the machine ad, for example 'Owner == "alice"'."""
    profile: str = ""
    """Name of a profile: the job's; no later rule is tried. Empty: go on with the next rule."""
    set: Values = Values()
    """Values computed for this job; they hold over the profile's and over those of later rules."""


class Wish(StrEnum):
    """What the site does with something that a job asks for."""

    ALLOW = "allow"
    IGNORE = "ignore"
    """The job runs as if it had not asked."""
    REFUSE = "refuse"
    """The job does not run, and its user is told why."""


class Unsupported(StrEnum):
    """What happens to a job that asks for what this version cannot do."""

    REFUSE = "refuse"
    IGNORE = "ignore"


class Requests(Section, frozen=True):
    """What jobs may ask for themselves."""

    outbound_connectivity: Wish = Wish.ALLOW
    """OutboundConnectivity in job ads: false asks for no network, true insists on one."""
    inbound_connectivity: Wish = Wish.ALLOW
    """InboundConnectivity in job ads: false asks for no peers, true is refused: not built yet."""
    profiles: tuple[str, ...] = ()
    """Profiles that every job may ask for, besides those that allow less than its rules do."""
    unsupported: Unsupported = Unsupported.REFUSE
    """RequestedVLAN, RequestBandwidth, IPProtocol and NetworkAccounting = false in job ads."""


class OnFailure(StrEnum):
    """What happens to a job whose callout fails."""

    REFUSE = "refuse"
    CONTINUE = "continue"
    """The rules decide alone."""


class Callout(Section, frozen=True):
    """A program of the site that may overrule the rules for each job; see docs/policy.md."""

    command: tuple[str, ...] = ()
    """Program (absolute path) and arguments; empty: none."""
    user: str = "nobody"
    """Who the program runs as."""
    timeout_seconds: float = 5.0
    """How long it may take; then it is killed, and has failed. 0.1 to 60."""
    on_failure: OnFailure = OnFailure.REFUSE
    """What happens to the job if the program fails, is late, or answers nonsense."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check the program's form and the range."""
        if self.command and not self.command[0].startswith("/"):
            yield "command", f"'{self.command[0]}' is not an absolute path"
        if any("\0" in word for word in self.command):
            yield "command", "a word of it contains a zero byte"
        if not self.user:
            yield "user", "is empty; name a user without rights, for example nobody"
        if not 0.1 <= self.timeout_seconds <= 60:
            yield "timeout_seconds", f"{self.timeout_seconds} is not between 0.1 and 60"


class AgentSettings(Section, frozen=True):
    """Everything in /etc/lark/agent.toml."""

    worker: str = ""
    """Name of this worker in records; empty: the host name."""
    admin_group: str = "lark-admin"
    """Members see every job; others see their own."""
    trusted_launchers: tuple[str, ...] = ("condor_starter", "slurmstepd")
    """Commands of root that are the batch system: the jobs they start are named by it."""
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
    classes: dict[str, tuple[str, ...]] = {}
    """Destination classes: name = list of networks; longest prefix wins; the rest is `other`."""
    profiles: dict[str, Profile] = {}
    """Besides the built-in `nat` and `none`."""
    rules: tuple[Rule, ...] = ()
    """In order; each names a profile, sets values, or both."""
    requests: Requests = Requests()
    callout: Callout = Callout()
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
        return frozenset({Connectivity.NAT, Connectivity.NONE} | routed)

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check what concerns more than one table."""
        if self.worker and not HOST.fullmatch(self.worker):
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

    def _routed_findings(self) -> Iterator[tuple[str, str]]:
        """Check that the delegated prefixes reach for all slots, and are there if asked for."""
        prefixes = {key: getattr(self.addresses, key) for key in ("routed4", "routed6")}
        for key, network in [(key, _network(text)) for key, text in prefixes.items()]:
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
                    "not a usable name; use letters, digits, '_', '-', not 'other' or 'jobs'",
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
                    yield f"profiles.{name}.reach", f"no class '{reach}' is defined under [classes]"
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
        for name in self.machine:
            if not ATTRIBUTE.fullmatch(name):
                yield f"machine.{name}", "not an attribute name; use letters, digits and '_'"


class CollectorSettings(Section, frozen=True):
    """Everything in /etc/lark/collector.toml."""

    listen: str = "127.0.0.1:9620"
    """host:port where workers report."""
    socket: str = "/run/lark-collector/query.sock"
    """Unix socket where people ask."""
    store: str = "sqlite:////var/lib/lark-collector/usage.sqlite"
    """SQLAlchemy URL of the durable store."""
    admin_group: str = "lark-admin"
    """Members see every job; others see their own."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check forms."""
        if not is_endpoint(self.listen):
            yield "listen", f"'{self.listen}' is not host:port or [address]:port"
        if not self.socket.startswith("/"):
            yield "socket", f"'{self.socket}' is not an absolute path"
        if "://" not in self.store:
            yield (
                "store",
                f"'{self.store}' is not a URL such as {CollectorSettings().store}",
            )


Settings = TypeVar("Settings", bound=Section)


def load(kind: type[Settings], path: Path | None, default: Path) -> Settings:
    """Read settings from `path`, or from `default` if that exists, or use the embedded default.

    Raises ConfigurationError with every finding if the file cannot be used.
    """
    if path is None and not default.exists():
        return kind()
    file = path or default
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {file}: {error}") from error
    return parse(kind, text, str(file))


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one key of a configuration, and what to do about it."""

    key: str
    """As in pool.slots or rules[2].when; empty: the whole file."""
    text: str


def parse(kind: type[Settings], text: str, file: str) -> Settings:
    """Decode and check one configuration text; `file` names it in errors."""
    settings, findings = examine(kind, text)
    refuse(file, findings)
    assert settings is not None, "settings that cannot be decoded have findings"
    return settings


def examine(kind: type[Settings], text: str) -> tuple[Settings | None, list[Finding]]:
    """Decode one configuration text and list everything that is wrong with it.

    The settings are None if they cannot be decoded at all; they must not be used if there are
    findings.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return None, [Finding("", f"not valid TOML: {error}")]
    if mismatches := [Finding(key, why) for key, why in _mismatches(kind, table, "")]:
        return None, mismatches
    settings = msgspec.convert(table, kind)
    return settings, [Finding(key, why) for key, why in _all_findings(settings, "")]


def refuse(file: str, findings: Iterable[Finding]) -> None:
    """Raise ConfigurationError if there are findings: one line each; `file` may be empty."""
    parts = [(file, found.key, found.text) for found in findings]
    if parts:
        raise ConfigurationError("\n".join(": ".join(filter(None, part)) for part in parts))


def _all_findings(section: Section, prefix: str) -> Iterator[tuple[str, str]]:
    for key, text in section.findings():
        yield prefix + key, text
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _all_findings(value, f"{prefix}{name}.")


def _mismatches(kind: Any, value: object, where: str) -> Iterator[tuple[str, str]]:
    """Yield what does not have the type of its key.

    msgspec stops at the first mismatch and does not name the key of a free-form table, so tables
    and lists are taken apart here and it judges the leaves.
    """
    origin = get_origin(kind)
    if origin is dict and isinstance(value, dict):
        for key, entry in value.items():
            yield from _mismatches(get_args(kind)[1], entry, f"{where}.{key}")
    elif origin is tuple and isinstance(value, list):
        for number, entry in enumerate(value, 1):
            yield from _mismatches(get_args(kind)[0], entry, f"{where}[{number}]")
    elif origin is None and issubclass(kind, Section) and isinstance(value, dict):
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        for key, entry in value.items():
            name = f"{where}.{key}".lstrip(".")
            if key in fields:
                yield from _mismatches(fields[key].type, entry, name)
            else:
                yield name, f"unknown key; this table has {', '.join(fields)}"
        for key in (k for k, field in fields.items() if field.required and k not in value):
            yield f"{where}.{key}".lstrip("."), "is missing; add it"
    else:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            text = str(error).partition(" - at ")[0]
            text = text.replace("`object`", "a table").replace("`array`", "a list")
            yield where, f"{text}; see docs/configuration.md for the type of this key"
