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
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import msgspec

from lark_agent.errors import ConfigurationError
from lark_agent.model import DEFAULT_CLASS, MAX_CLASSES, Connectivity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

AGENT_FILE = Path("/etc/lark/agent.toml")
COLLECTOR_FILE = Path("/etc/lark/collector.toml")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
"""A host name, qualified or not (RFC 1123, 2.1), with the underscores that sites use anyway."""
FOREVER = 36525.0
"""Days; bounds what is added to times."""


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
    """Private addresses of the sandboxes; they never leave the worker."""

    ipv4: str = "100.98.0.0/16"
    """Slot n has the n-th address after the gateway's."""
    ipv6: str = "fd6c:6172:6b00::/64"
    """As ipv4; used where the worker has an IPv6 default route."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check that both are networks of their family with enough addresses."""
        usual = Addresses()
        for key, kind, longest in (("ipv4", IPv4Network, 19), ("ipv6", IPv6Network, 112)):
            text, example = getattr(self, key), getattr(usual, key)
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
    """nat or none."""
    reach: tuple[str, ...] | None = None
    """Classes the job may exchange packets with; absent: all."""


class Rule(Section, frozen=True):
    """The first rule whose condition holds gives the job its profile."""

    when: str
    """ClassAd expression over the job ad, for example 'Owner == "alice"'."""
    profile: str
    """Name of a profile."""


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
    """In order; see [profiles]."""

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
        yield from self._class_findings()
        yield from self._profile_findings()

    def _class_findings(self) -> Iterator[tuple[str, str]]:
        if len(self.classes) > MAX_CLASSES - 1:
            yield (
                "classes",
                (
                    f"{len(self.classes)} classes; at most {MAX_CLASSES - 1} fit "
                    f"beside '{DEFAULT_CLASS}'"
                ),
            )
        owner: dict[IPv4Network | IPv6Network, str] = {}
        for name, prefixes in self.classes.items():
            if name == DEFAULT_CLASS or not NAME.fullmatch(name):
                yield (
                    f"classes.{name}",
                    "not a usable name; use letters, digits, '_', '-', not 'other'",
                )
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
        for number, rule in enumerate(self.rules, 1):
            if rule.profile not in known:
                yield (
                    f"rules[{number}].profile",
                    f"no profile '{rule.profile}'; known: {', '.join(known)}",
                )


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


def parse(kind: type[Settings], text: str, file: str) -> Settings:
    """Decode and check one configuration text; `file` names it in errors."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file}: not valid TOML: {error}") from error
    _refuse(file, _mismatches(kind, table, ""))
    settings = msgspec.convert(table, kind)
    _refuse(file, _all_findings(settings, ""))
    return settings


def _refuse(file: str, findings: Iterable[tuple[str, str]]) -> None:
    """Raise ConfigurationError if there are findings: one line each."""
    lines = [f"{file}: {key}: {text}" if key else f"{file}: {text}" for key, text in findings]
    if lines:
        raise ConfigurationError("\n".join(lines))


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
