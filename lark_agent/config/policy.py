"""Tables that say what jobs may do: profiles, rules, requests, the callout."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from lark_agent.config.section import Section, rate_findings
from lark_agent.model import DEFAULT_PRIORITY, Connectivity, Family, Inbound, Peers

if TYPE_CHECKING:
    from collections.abc import Iterator


class Profile(Section, frozen=True):
    """A named bundle of what a job may do."""

    connectivity: Connectivity = Connectivity.NAT
    """How the job is connected."""
    network: str = ""
    """Name of a network under `[networks]`, for the connectivities of layer 2."""
    ip: Family = Family.ANY
    """Address families: what the worker has, one of them, or insist on both."""
    reach: tuple[str, ...] | None = None
    """Classes the job may exchange packets with; absent: all."""
    peers: Peers = Peers.NONE
    """Other jobs that the job may exchange packets with, if theirs agree."""
    inbound: Inbound = Inbound.ESTABLISHED
    """What may come in unasked."""
    ports: tuple[str, ...] = ()
    """What `inbound = "ports"` opens: "tcp/8000", "udp/5000-5010"; at most 64 ports."""
    services: tuple[str, ...] | None = None
    """Services of the worker that the job may use; absent: all that `[services]` lists."""
    rate: str = ""
    """Most that the job gets: "100 Mbit/s", or "10 Mbit/s sent, 1 Gbit/s received"."""
    guarantee: str = ""
    """What the job gets whenever it wants it; written as a rate. Needs `[uplink] rate`."""
    queue: str = ""
    """Name of the queue under `[queues]` in which the job shares the uplink."""
    priority: int = DEFAULT_PRIORITY
    """Who borrows first what others leave; 0 (first) to 7."""
    dscp: int | None = None
    """Code point of what the job sends, 0 to 63; a job cannot set its own. Absent: that of its
    priority (`[uplink] priority_dscp`), else 0."""
    flow_label: int = 0
    """IPv6 flow label of what the job sends, 20 bits; a job cannot set its own."""
    quotas: tuple[str, ...] = ()
    """Names of quotas under `[quotas]` that hold for the job."""


class Values(Section, frozen=True):
    """Values that a rule computes: ClassAd expressions; a key left out is not set."""

    connectivity: str = ""
    """Gives one of the words of a profile's connectivity."""
    network: str = ""
    """Gives the name of a network, or its VLAN id; and with it the connectivity."""
    ip: str = ""
    """Gives one of the words of a profile's ip."""
    reach: str = ""
    """Gives a list of classes, or their names with commas in one string, or "all"."""
    peers: str = ""
    """Gives one of the words of a profile's peers."""
    inbound: str = ""
    """Gives one of the words of a profile's inbound."""
    ports: str = ""
    """Gives a list of ports, or the same with commas in one string."""
    services: str = ""
    """Gives a list of services, or their names with commas in one string, or "all"."""
    rate: str = ""
    """Gives a rate; a number is Mbit/s, 0 is none."""
    guarantee: str = ""
    """Gives a rate; a number is Mbit/s, 0 is none."""
    queue: str = ""
    """Gives the name of a queue, or "none"."""
    priority: str = ""
    """Gives a number from 0 to 7."""
    dscp: str = ""
    """Gives a number from 0 to 63, or "priority" for that of the job's priority."""
    flow_label: str = ""
    """Gives a number of 20 bits."""
    quotas: str = ""
    """Gives a list of quotas, or their names with commas in one string, or "none"."""


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
    """InboundConnectivity in job ads: false asks for answers only and no peers, true to be
    reached."""
    inbound: Inbound = Inbound.ESTABLISHED
    """Most that InboundConnectivity = true may open where the rules open nothing."""
    networks: tuple[str, ...] = ()
    """Networks that every job may ask for by RequestedVLAN, besides what its rules give."""
    bandwidth: str = ""
    """Most that every job may ask for by RequestBandwidth; more only where its rules give it."""
    ip_protocol: Wish = Wish.ALLOW
    """IPProtocol in job ads: "IPv4" or "IPv6" asks for one family, "IPv4,IPv6" insists on both."""
    profiles: tuple[str, ...] = ()
    """Profiles that every job may ask for, besides those that allow less than its rules do."""
    unsupported: Unsupported = Unsupported.REFUSE
    """What this worker can do for nobody: NetworkAccounting = false; RequestedVLAN without any
    `[networks]`; RequestBandwidth without an `[uplink] rate`."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check the rate, and that what a job opens by true or false is nothing or all."""
        yield from rate_findings(self, "bandwidth")
        if self.inbound not in {Inbound.ESTABLISHED, Inbound.ALL}:
            yield "inbound", f"'{self.inbound}' is no bound of a request; use established or all"


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
