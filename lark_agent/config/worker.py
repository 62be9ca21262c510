"""Tables about the worker itself: links, sandboxes, addresses, where state lives."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING

from lark_agent.config.section import (
    FOREVER,
    Section,
    is_endpoint,
    network_of,
    overlap,
    rate_findings,
)
from lark_agent.quantities import NotAQuantity, size

if TYPE_CHECKING:
    from collections.abc import Iterator

_SMALLEST_JOURNAL = 10**6


class Uplink(Section, frozen=True):
    """The worker's own connection."""

    interface: str = ""
    """Interface towards the network; empty: that of the default route."""
    rate: str = ""
    """What all jobs together may use, for example "10 Gbit/s" or "1 Gbit/s sent, 10 Gbit/s
    received"; empty: whatever there is, and no guarantees."""
    priority_dscp: tuple[int, ...] = ()
    """Code points of what jobs without a `dscp` of their own send, by their place (priority,
    counted from their queue's), from 0 to 7: eight numbers; empty: 0 for all."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check the rate, and that there is a code point for each priority."""
        yield from rate_findings(self, "rate")
        points = self.priority_dscp
        if not points:
            return
        if len(points) != 8:
            yield "priority_dscp", f"{len(points)} code points; give eight, for priority 0 to 7"
        for point in points:
            if not 0 <= point <= 63:
                yield "priority_dscp", f"{point} is no code point; they go from 0 to 63"
        if not self.rate:
            yield "priority_dscp", "needs [uplink] rate, as priorities do"


class Pool(Section, frozen=True):
    """Sandboxes."""

    slots: int = 64
    """Most jobs with a sandbox at one time; also divides the NAT ports. 1 to 4096."""
    ready: int = 8
    """Idle sandboxes kept built, so that a job starts at once."""
    per_user: int = 16
    """Most jobs with a sandbox that one user has outside the batch system; at least 1."""
    wait_seconds: float = 30.0
    """How long a job waits for a sandbox when all slots are taken; then it is refused. Users who
    wait take turns. 0 to 240."""
    reserve_seconds: float = 120.0
    """How long a sandbox waits for the job that the batch system announced. 1 to 3600."""
    hold_seconds: float = 3600.0
    """How long a Slurm job without any task keeps its sandbox for the next step, unless Slurm says
    that the job has ended. 1 to 86400."""
    drain_seconds: float = 5.0
    """How long what a finished job had under way may take to arrive and fall quiet."""
    own_namespaces: bool = True
    """Let jobs for which file capabilities have no effect (no_new_privs, containers) make the
    namespace of their sandbox themselves; else they are refused."""

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
        if not 1 <= self.reserve_seconds <= 3600:
            yield "reserve_seconds", f"{self.reserve_seconds} is not between 1 and 3600"
        if not 1 <= self.hold_seconds <= 86400:
            yield "hold_seconds", f"{self.hold_seconds} is not between 1 and 86400"
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
    pool: tuple[str, ...] = ()
    """Networks in which jobs of other workers have addresses (theirs of routed, or a bridged
    network): who lives there the collector says, and peers decide."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check that all are networks of their family with enough addresses, and none overlap."""
        yield from self._pool_findings()
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
            elif key.startswith("routed") and overlap(text, (self.ipv4, self.ipv6)):
                yield key, f"{text} overlaps the private addresses of nat; choose other ones there"

    def _pool_findings(self) -> Iterator[tuple[str, str]]:
        for text in self.pool:
            if network_of(text) is None:
                yield "pool", f"'{text}' is no network; for example 2001:db8:7::/48"
            elif overlap(text, (self.ipv4, self.ipv6)):
                yield "pool", f"{text} overlaps the private addresses of nat"


class Nat(Section, frozen=True):
    """Port blocks: slot n always uses the n-th block, so that a port names the job."""

    first_port: int = 10240
    """First port of the first block."""
    last_port: int = 32767
    """Last port of the last block; leave the worker some of net.ipv4.ip_local_port_range."""
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
    journal_size: str = "2 GB"
    """How large the journal may grow. Near it, the oldest ended jobs that the collector has are
    forgotten before their time; if the rest alone is as large, no new job begins."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check ranges."""
        if not 1 <= self.interval_seconds <= 3600:
            yield "interval_seconds", f"{self.interval_seconds} is not between 1 and 3600"
        if not 0 <= self.history_days <= FOREVER:
            yield "history_days", f"{self.history_days} is not between 0 and {FOREVER:.0f}"
        try:
            if size(self.journal_size) < _SMALLEST_JOURNAL:
                yield "journal_size", f"'{self.journal_size}' is less than 1 MB"
        except NotAQuantity as error:
            yield "journal_size", str(error)


class CollectorLink(Section, frozen=True):
    """Where to report."""

    address: str = ""
    """host:port of the collector; empty: keep records on this worker only."""
    identity: str = "/var/lib/lark/identity.json"
    """This worker's key and certificate; `lark-agent enroll` writes it."""
    insecure: bool = False
    """Report without TLS, to whoever answers there; the collector has to say the same."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check the form of the address."""
        if self.address and not is_endpoint(self.address):
            yield "address", f"'{self.address}' is not host:port or [address]:port"
        if not self.identity.startswith("/"):
            yield "identity", f"'{self.identity}' is not an absolute path"


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


class HTCondor(Section, frozen=True):
    """What `lark-agent htcondor-config` writes for HTCondor."""

    programs: str = "/usr/libexec/lark"
    """Directory of `lark-agent install-wrapper`."""
    libexec: str = "/usr/libexec/condor"
    """HTCondor's own LIBEXEC."""
    account_transfer: bool = False
    """Put the starter, which moves a job's files, into a sandbox of its own, so that the job's
    record says what it moved. Each job takes two of [pool] slots then."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check that the paths are absolute and can stand in a file of HTCondor's."""
        for key, path in (("programs", self.programs), ("libexec", self.libexec)):
            if not re.fullmatch(r"/[A-Za-z0-9._/+-]*", path):
                yield key, f"'{path}' is not an absolute path of letters, digits and . _ + - /"


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
