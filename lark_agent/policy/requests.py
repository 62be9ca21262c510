"""What a job may ask for itself: LARK's attributes, held against what the site's rules gave.

A job asks by attributes of its ad, or for a profile also by `lark-run --profile`. It gets what it
asks for where the site allows it, else it is refused with the reason: a job must not run in the
belief of a network that it does not have. So a request that this version cannot fulfil is refused
too, unless the site says that such requests are to be ignored.

A job may always ask for less than the rules give it. Asking for a profile that allows more works
where a rule gives it (rules see RequestedProfile) or the site lists it under [requests] profiles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lark_agent.config import Unsupported, Wish
from lark_agent.errors import PolicyRefusal
from lark_agent.model import Connectivity, Peers
from lark_agent.policy.vocabulary import UnusableValue, no_more_than

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lark_agent.config import Requests
    from lark_agent.model import NetworkPlan
    from lark_agent.policy.ads import Ad, Value
    from lark_agent.policy.vocabulary import Vocabulary

OUTBOUND, INBOUND, PROFILE = "OutboundConnectivity", "InboundConnectivity", "RequestedProfile"
UNSUPPORTED: dict[str, str] = {
    "RequestedVLAN": "a VLAN",
    "RequestBandwidth": "a bandwidth",
    "IPProtocol": "an IP version",
    "NetworkAccounting": "a network without accounting",
}
"""LARK's attributes that this version cannot fulfil, and what asks for it."""
NAMES = frozenset(name.lower() for name in (OUTBOUND, INBOUND, PROFILE, *UNSUPPORTED))
"""Attributes by which a job asks; lower case. Their values must be literal to be understood."""

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
    _check_unsupported(asked, allowed)
    if requested and requested != plan.profile:
        plan, why = _profile(plan, set_by_rules, requested, allowed, words)
        yield PROFILE, plan, why
    outbound = _wish(asked, OUTBOUND, allowed.outbound_connectivity)
    if outbound is False and plan.connectivity != Connectivity.NONE:
        plan = replace(plan, connectivity=Connectivity.NONE)
        yield OUTBOUND, plan, "the job asks for no network"
    if outbound is True and plan.connectivity == Connectivity.NONE:
        raise PolicyRefusal(
            f"the job asks for {OUTBOUND} = true, and the site's rules give it no network "
            f"(profile '{plan.profile}'); ask the site for a rule, or leave the request out"
        )
    inbound = _wish(asked, INBOUND, allowed.inbound_connectivity)
    if inbound is True:
        raise PolicyRefusal(
            f"the job asks for {INBOUND} = true, which this version cannot give: only answers to "
            "what the job sent come in; leave the request out"
        )
    if inbound is False and plan.peers != Peers.NONE:
        plan = replace(plan, peers=Peers.NONE)
        yield INBOUND, plan, "the job asks that no other job can reach it"


def _check_unsupported(asked: Ad, allowed: Requests) -> None:
    if allowed.unsupported is Unsupported.IGNORE:
        return
    for name, what in UNSUPPORTED.items():
        value = asked.get(name.lower())
        # in LARK, NetworkAccounting = true asks for what every job has here
        asks = value is False if name == "NetworkAccounting" else value not in {None, "", 0}
        if asks:
            raise PolicyRefusal(
                f"the job asks for {what} ({name} = {value}), which this version cannot give; "
                "leave the request out"
            )


def _wish(asked: Ad, name: str, allowed: Wish) -> bool | None:
    """Return what the job asks for by a boolean attribute; None if nothing that counts."""
    value: Value | None = asked.get(name.lower())
    if value is None or allowed is Wish.IGNORE:
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
        alone = words.plan(requested)
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
