"""What a job may ask for itself: LARK's attributes, held against what the site's rules gave.

A job asks by attributes of its ad, or for a profile also by `lark-run --profile`. It gets what it
asks for where the site allows it, else it is refused with the reason: a job must not run in the
belief of a network that it does not have. What nobody can have here, a network without accounting,
is refused too, unless the site says that such requests are to be ignored.

Bandwidth may be the batch system's to give out as well (HTCondor: a machine resource): then a job
that it started has no more than it was given, whatever its ad says by then.

A job may always ask for less than the rules give it. Asking for a profile that allows more works
where a rule gives it (rules see RequestedProfile) or the site lists it under [requests] profiles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lark_agent.config import Unsupported, Wish
from lark_agent.errors import PolicyRefusal
from lark_agent.model import Connectivity, Family, Inbound, Peers, Rates
from lark_agent.policy.ads import integer_of
from lark_agent.policy.comparing import no_more_than
from lark_agent.policy.vocabulary import UnusableValue, family_of
from lark_agent.quantities import MOST_RATE, NotAQuantity, rates, rates_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lark_agent.config import Requests
    from lark_agent.model import NetworkPlan
    from lark_agent.policy.ads import Ad, Value
    from lark_agent.policy.vocabulary import Vocabulary

OUTBOUND, INBOUND, PROFILE = "OutboundConnectivity", "InboundConnectivity", "RequestedProfile"
VLAN, BANDWIDTH, PROTOCOL = "RequestedVLAN", "RequestBandwidth", "IPProtocol"
ACCOUNTING = "NetworkAccounting"
NEGOTIATED, PROVISIONED = "Bandwidth", "BandwidthProvisioned"
"""Of the machine ad, and of the job's."""
NAMES = frozenset(
    name.lower() for name in (OUTBOUND, INBOUND, PROFILE, VLAN, BANDWIDTH, PROTOCOL, ACCOUNTING)
)
"""Attributes by which a job asks; lower case. Their values must be literal to be understood."""
_NARROWER = {Family.IPV4, Family.IPV6}
_COUNTED = {VLAN, BANDWIDTH}
"""What zero asks nothing of."""

Change = tuple[str, "NetworkPlan", str]
"""Who asked, the plan from then on, and why."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one job's requests are held against."""

    allowed: Requests
    words: Vocabulary
    set_by_rules: Callable[[NetworkPlan], NetworkPlan]
    """Puts the values that rules computed over those of a plan; raises PolicyRefusal."""
    negotiated: Rates | None = None
    """What the batch system gave the job of the worker's bandwidth; None if it gives none out."""


def negotiated(ad: Ad, machine: Ad, *, announced: bool) -> Rates | None:
    """Return the bandwidth that the batch system gave the job here; Mbit/s in its ads.

    The machine ad is a file in a directory of the job's user. The job ad of a job that is only
    `announced` is not: HTCondor's starter gives it to the hook, and what was provisioned stands in
    it, as the schedd has it.
    """
    found = integer_of(ad, PROVISIONED) if announced else None
    found = integer_of(machine, NEGOTIATED) if found is None else found
    return None if found is None else rates(min(max(0, found), MOST_RATE // 10**6))


def fulfil(plan: NetworkPlan, requested: str, ad: Ad, bounds: Bounds) -> Iterator[Change]:
    """Yield what a job's requests make of the plan that the rules gave; raises PolicyRefusal.

    `requested` is the profile that the job asks for, "" if it does not.
    """
    asked = {name.lower(): value for name, value in ad.items() if name.lower() in NAMES}
    asked = _possible(asked, bounds)
    if requested and requested != plan.profile:
        plan, why = _profile(plan, requested, bounds)
        yield PROFILE, plan, why
    for name, grant in _GRANTS:
        value = asked.get(name.lower())
        if value is None or value == "" or (name in _COUNTED and _is_zero(value)):
            continue
        after = grant(plan, value, bounds)
        if after is not plan:
            yield name, after, f"the job asks for {name} = {value}"
        plan = after


def _is_zero(value: Value | None) -> bool:
    return not isinstance(value, bool) and value in {"0", 0}


def _network(plan: NetworkPlan, value: Value, bounds: Bounds) -> NetworkPlan:
    """Put the job on the network that it names, by name or VLAN id."""
    words = bounds.words
    try:
        there = words.check(words.put(plan, "network", value))
    except UnusableValue as error:
        raise PolicyRefusal(
            f"the job asks for {VLAN} = {value}: {error}; ask for one of the site's networks"
        ) from error
    if there.network == plan.network:
        return plan
    free = there.network in bounds.allowed.networks and plan.connectivity is not Connectivity.NONE
    if not free or bounds.set_by_rules(there).network != there.network:
        raise PolicyRefusal(
            f"the site's rules do not put this job on network '{there.network}' ({VLAN} = "
            f"{value}); ask the site for a rule, or leave the request out"
        )
    return there


def _bandwidth(plan: NetworkPlan, value: Value, bounds: Bounds) -> NetworkPlan:
    """Guarantee what the job asks for, both ways."""
    try:
        asked, free = rates(value), rates(bounds.allowed.bandwidth or 0)
    except NotAQuantity as error:
        raise PolicyRefusal(f"the job asks for {BANDWIDTH}: {error}") from error
    given = plan.guarantee
    most = Rates(max(given.sent, free.sent), max(given.received, free.received))
    if plan.connectivity is Connectivity.NONE:
        most = Rates()
    if asked.sent > most.sent or asked.received > most.received:
        raise PolicyRefusal(
            f"the job asks for {BANDWIDTH} = {value} ({rates_text(asked)}), and the site gives it "
            f"at most {rates_text(most)}; ask for less, or the site for a rule"
        )
    bought = bounds.negotiated
    if bought is not None and (asked.sent > bought.sent or asked.received > bought.received):
        raise PolicyRefusal(
            f"the job asks for {BANDWIDTH} = {value} ({rates_text(asked)}), and the batch system "
            f"gave it {rates_text(bought)} on this worker; submit it with request_bandwidth"
        )
    try:
        return bounds.words.check(replace(plan, guarantee=asked))
    except UnusableValue as error:
        raise PolicyRefusal(
            f"the job asks for {BANDWIDTH} = {value}: {error}; ask for less"
        ) from error


def _protocol(plan: NetworkPlan, value: Value, bounds: Bounds) -> NetworkPlan:
    """Use the address families that the job names."""
    if bounds.allowed.ip_protocol is Wish.IGNORE:
        return plan
    family = family_of(value)
    if bounds.allowed.ip_protocol is Wish.REFUSE or family is None:
        raise PolicyRefusal(
            f"the job asks for {PROTOCOL} = {value}, which "
            + ("this site does not let jobs ask for" if family else "is not IPv4, IPv6 or both")
            + "; leave the request out of the job"
        )
    if plan.ip in _NARROWER and family is not plan.ip:
        raise PolicyRefusal(
            f"the job asks for {PROTOCOL} = {value}, and the site's rules give it {plan.ip} only; "
            "leave the request out of the job"
        )
    return replace(plan, ip=family) if family is not plan.ip else plan


def _outbound(plan: NetworkPlan, value: Value, bounds: Bounds) -> NetworkPlan:
    """Take the network away, or insist on one that leads somewhere."""
    wish = _wish(OUTBOUND, value, bounds.allowed.outbound_connectivity)
    if wish is False:
        if plan.services is not None:
            plan = replace(plan, services=frozenset())
        alone = replace(plan, connectivity=Connectivity.NONE, network="")
        return replace(alone, guarantee=Rates(), queue="")
    if wish is True and (plan.connectivity is Connectivity.NONE or plan.reach == frozenset()):
        raise PolicyRefusal(
            f"the job asks for {OUTBOUND} = true, and the site's rules give it no network "
            f"(profile '{plan.profile}'); ask the site for a rule, or leave the request out"
        )
    return plan


def _inbound(plan: NetworkPlan, value: Value, bounds: Bounds) -> NetworkPlan:
    """Close every way in but for answers, or open all, where there is a network."""
    wish = _wish(INBOUND, value, bounds.allowed.inbound_connectivity)
    opened = plan.inbound in {Inbound.PORTS, Inbound.ALL}
    if wish is False and (opened or plan.peers is not Peers.NONE):
        kept = Inbound.ESTABLISHED if opened else plan.inbound
        return replace(plan, peers=Peers.NONE, inbound=kept, ports=())
    if wish is not True:
        return plan
    connected = plan.connectivity is not Connectivity.NONE
    if connected and opened:
        return plan
    there = replace(plan, inbound=Inbound.ALL)
    free = connected and bounds.allowed.inbound is Inbound.ALL
    if not free or bounds.set_by_rules(there).inbound is not Inbound.ALL:
        raise PolicyRefusal(
            f"the job asks for {INBOUND} = true, and the site's rules let nothing in but answers; "
            "ask the site for a rule, or leave the request out"
        )
    return there


_GRANTS: tuple[tuple[str, Callable[[NetworkPlan, Value, Bounds], NetworkPlan]], ...] = (
    (VLAN, _network),
    (OUTBOUND, _outbound),
    (INBOUND, _inbound),
    (PROTOCOL, _protocol),
    (BANDWIDTH, _bandwidth),
)
"""Attribute → what granting it makes of a plan, the same plan if nothing; raises PolicyRefusal."""


def _possible(asked: Ad, bounds: Bounds) -> Ad:
    """Return the requests without those that this worker can fulfil for nobody."""
    words = bounds.words
    # in LARK, NetworkAccounting = true asks for what every job has here
    accounting = asked.get(ACCOUNTING.lower(), True) is not True
    lacking = {
        ACCOUNTING: accounting and "every job is accounted for here",
        VLAN: not words.networks and "this worker has no [networks]",
        BANDWIDTH: not words.uplink and "this worker has no [uplink] rate to guarantee it of",
    }
    possible = dict(asked)
    for name, why in lacking.items():
        value = possible.get(name.lower())
        nothing = name in _COUNTED and (value == "" or _is_zero(value))
        if not why or value is None or nothing:
            continue
        if bounds.allowed.unsupported is Unsupported.REFUSE:
            raise PolicyRefusal(
                f"the job asks for {name} = {value}, and {why}; leave the request out"
            )
        del possible[name.lower()]
    return possible


def _wish(name: str, value: Value, allowed: Wish) -> bool | None:
    """Return what the job asks for by a boolean attribute; None if nothing that counts."""
    if allowed is Wish.IGNORE:
        return None
    if allowed is Wish.REFUSE:
        raise PolicyRefusal(
            f"this site does not let jobs ask by {name}; leave the request out of the job"
        )
    if not isinstance(value, bool):
        raise PolicyRefusal(f"{name} = {value} is neither true nor false; write one without quotes")
    return value


def _profile(plan: NetworkPlan, requested: str, bounds: Bounds) -> tuple[NetworkPlan, str]:
    """Return the plan of the requested profile and why the job may have it."""
    try:
        alone = bounds.words.plan(requested)
    except UnusableValue as error:
        raise PolicyRefusal(str(error)) from error
    alone = bounds.words.check(alone)  # sound, or the file would not have been loaded
    if no_more_than(alone, plan):
        return alone, "it allows no more than the rules do"
    if requested in bounds.allowed.profiles:
        return bounds.set_by_rules(alone), "[requests] profiles lists it"
    raise PolicyRefusal(
        f"the site's rules give this job network profile '{plan.profile}', not '{requested}'; "
        "ask the site for a rule, or leave the request out"
    )
