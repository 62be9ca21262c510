"""What a job may ask for itself: LARK's attributes, held against what the site's rules gave.

A job asks by attributes of its ad, or for a profile also by `lark-run --profile`. It gets what it
asks for where the site allows it, else it is refused with the reason: a job must not run in the
belief of a network that it does not have. What nobody can have here, a network without accounting,
is refused too, unless the site says that such requests are to be ignored.

A job may always ask for less than the rules give it. Asking for a profile that allows more works
where a rule gives it (rules see RequestedProfile) or the site lists it under [requests] profiles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lark_agent.config import Unsupported, Wish
from lark_agent.errors import PolicyRefusal
from lark_agent.model import Connectivity, Family, Inbound, Peers, Rates
from lark_agent.policy.comparing import no_more_than
from lark_agent.policy.vocabulary import UnusableValue
from lark_agent.quantities import NotAQuantity, rates, rates_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lark_agent.config import Requests
    from lark_agent.model import NetworkPlan
    from lark_agent.policy.ads import Ad, Value
    from lark_agent.policy.vocabulary import Vocabulary

OUTBOUND, INBOUND, PROFILE = "OutboundConnectivity", "InboundConnectivity", "RequestedProfile"
VLAN, BANDWIDTH, PROTOCOL = "RequestedVLAN", "RequestBandwidth", "IPProtocol"
ACCOUNTING = "NetworkAccounting"
NAMES = frozenset(
    name.lower() for name in (OUTBOUND, INBOUND, PROFILE, VLAN, BANDWIDTH, PROTOCOL, ACCOUNTING)
)
"""Attributes by which a job asks; lower case. Their values must be literal to be understood."""
_PROTOCOLS = {
    frozenset({"ipv4"}): Family.IPV4,
    frozenset({"ipv6"}): Family.IPV6,
    frozenset({"ipv4", "ipv6"}): Family.BOTH,
}
_NARROWER = {Family.IPV4, Family.IPV6}

Change = tuple[str, "NetworkPlan", str]
"""Who asked, the plan from then on, and why."""


def fulfil(
    plan: NetworkPlan,
    set_by_rules: Callable[[NetworkPlan], NetworkPlan],
    requested: str,
    ad: Ad,
    allowed: Requests,
    words: Vocabulary,
) -> Iterator[Change]:
    """Yield what a job's requests make of the plan that the rules gave; raises PolicyRefusal.

    `set_by_rules` puts the values that rules computed over those of a profile.
    """
    asked = {name.lower(): value for name, value in ad.items() if name.lower() in NAMES}
    asked = _possible(asked, allowed, words)
    if requested and requested != plan.profile:
        plan, why = _profile(plan, set_by_rules, requested, allowed, words)
        yield PROFILE, plan, why
    for name, grant in _GRANTS:
        value = asked.get(name.lower())
        if value is None or value == "" or (value == 0 and name in {VLAN, BANDWIDTH}):
            continue
        after = grant(plan, value, allowed, words)
        if after is not plan:
            yield name, after, f"the job asks for {name} = {value}"
        plan = after


def _network(plan: NetworkPlan, value: Value, allowed: Requests, words: Vocabulary) -> NetworkPlan:
    """Put the job on the network that it names, by name or VLAN id."""
    try:
        there = words.check(words.put(plan, "network", value))
    except UnusableValue as error:
        raise PolicyRefusal(
            f"the job asks for {VLAN} = {value}: {error}; ask for one of the site's networks"
        ) from error
    if there.network == plan.network:
        return plan
    if there.network not in allowed.networks:
        raise PolicyRefusal(
            f"the site's rules do not put this job on network '{there.network}' ({VLAN} = "
            f"{value}); ask the site for a rule, or leave the request out"
        )
    return there


def _bandwidth(
    plan: NetworkPlan, value: Value, allowed: Requests, words: Vocabulary
) -> NetworkPlan:
    """Guarantee what the job asks for, both ways."""
    try:
        asked, free = rates(value), rates(allowed.bandwidth or 0)
    except NotAQuantity as error:
        raise PolicyRefusal(f"the job asks for {BANDWIDTH}: {error}") from error
    if not asked:
        return plan
    bounds = Rates(max(plan.guarantee.sent, free.sent), max(plan.guarantee.received, free.received))
    if asked.sent > bounds.sent or asked.received > bounds.received:
        raise PolicyRefusal(
            f"the job asks for {BANDWIDTH} = {value} ({rates_text(asked)}), and the site gives it "
            f"at most {rates_text(bounds)}; ask for less, or the site for a rule"
        )
    try:
        return words.check(replace(plan, guarantee=asked))
    except UnusableValue as error:
        raise PolicyRefusal(f"the job asks for {BANDWIDTH} = {value}: {error}") from error


def _protocol(plan: NetworkPlan, value: Value, allowed: Requests, words: Vocabulary) -> NetworkPlan:
    """Use the address families that the job names."""
    del words
    if allowed.ip_protocol is Wish.IGNORE:
        return plan
    named = value.lower().replace(" ", "") if isinstance(value, str) else ""
    family = _PROTOCOLS.get(frozenset(named.split(",")))
    if allowed.ip_protocol is Wish.REFUSE or family is None:
        raise PolicyRefusal(
            f"the job asks for {PROTOCOL} = {value}, which "
            + ("this site does not let jobs ask for" if family else "is not IPv4, IPv6 or both")
            + "; leave the request out of the job"
        )
    if plan.ip in _NARROWER and family is not plan.ip:
        raise PolicyRefusal(
            f"the job asks for {PROTOCOL} = {value}, and the site's rules give it {plan.ip} only"
        )
    return replace(plan, ip=family) if family is not plan.ip else plan


def _outbound(plan: NetworkPlan, value: Value, allowed: Requests, words: Vocabulary) -> NetworkPlan:
    del words
    wish = _wish(OUTBOUND, value, allowed.outbound_connectivity)
    if wish is False and plan.connectivity is not Connectivity.NONE:
        return replace(plan, connectivity=Connectivity.NONE, network="")
    if wish is True and plan.connectivity is Connectivity.NONE:
        raise PolicyRefusal(
            f"the job asks for {OUTBOUND} = true, and the site's rules give it no network "
            f"(profile '{plan.profile}'); ask the site for a rule, or leave the request out"
        )
    return plan


def _inbound(plan: NetworkPlan, value: Value, allowed: Requests, words: Vocabulary) -> NetworkPlan:
    del words
    wish = _wish(INBOUND, value, allowed.inbound_connectivity)
    opened = plan.inbound in {Inbound.PORTS, Inbound.ALL}
    if wish is False and (opened or plan.peers is not Peers.NONE):
        kept = Inbound.ESTABLISHED if opened else plan.inbound
        return replace(plan, peers=Peers.NONE, inbound=kept, ports=())
    if wish is not True or opened:
        return plan
    if allowed.inbound is not Inbound.ALL:
        raise PolicyRefusal(
            f"the job asks for {INBOUND} = true, and the site's rules let nothing in but answers; "
            "ask the site for a rule, or leave the request out"
        )
    return replace(plan, inbound=Inbound.ALL)


_GRANTS: tuple[
    tuple[str, Callable[[NetworkPlan, Value, Requests, Vocabulary], NetworkPlan]], ...
] = (
    (VLAN, _network),
    (OUTBOUND, _outbound),
    (INBOUND, _inbound),
    (PROTOCOL, _protocol),
    (BANDWIDTH, _bandwidth),
)
"""Attribute → what granting it makes of a plan, the same plan if nothing; raises PolicyRefusal."""


def _possible(asked: Ad, allowed: Requests, words: Vocabulary) -> Ad:
    """Return the requests without those that this worker can fulfil for nobody."""
    # in LARK, NetworkAccounting = true asks for what every job has here
    lacking = {
        ACCOUNTING: asked.get(ACCOUNTING.lower()) is False and "every job is accounted for here",
        VLAN: not words.networks and "this worker has no [networks]",
        BANDWIDTH: not words.uplink and "this worker has no [uplink] rate to guarantee it of",
    }
    possible = dict(asked)
    for name, why in lacking.items():
        value = possible.get(name.lower())
        if not why or value is None or (name != ACCOUNTING and value in {"", 0}):
            continue
        if allowed.unsupported is Unsupported.REFUSE:
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


def _profile(
    plan: NetworkPlan,
    set_by_rules: Callable[[NetworkPlan], NetworkPlan],
    requested: str,
    allowed: Requests,
    words: Vocabulary,
) -> tuple[NetworkPlan, str]:
    """Return the plan of the requested profile and why the job may have it."""
    try:
        alone = words.check(words.plan(requested))
    except UnusableValue as error:
        raise PolicyRefusal(str(error)) from error
    if no_more_than(alone, plan):
        return alone, "it allows no more than the rules do"
    if requested in allowed.profiles:
        return set_by_rules(alone), "[requests] profiles lists it"
    raise PolicyRefusal(
        f"the site's rules give this job network profile '{plan.profile}', not '{requested}'; "
        "ask the site for a rule, or leave the request out"
    )
