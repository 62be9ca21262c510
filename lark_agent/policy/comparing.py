"""Plans side by side: does one allow more than the other, and how people read a setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.config import EVERYWHERE, NOTHING
from lark_agent.model import Connectivity, Family, Inbound, NetworkPlan, Peers, Setting
from lark_agent.policy.vocabulary import SETTINGS
from lark_agent.quantities import rates_text

if TYPE_CHECKING:
    from collections.abc import Collection

_WIDER = {
    Peers.NONE: set(Peers),
    Peers.OWNER: {Peers.OWNER, Peers.ALL},
    Peers.GROUP: {Peers.GROUP, Peers.ALL},
    Peers.ALL: {Peers.ALL},
}
_INBOUND = list(Inbound)  # from the narrowest
_LOWER_EFFORT = frozenset({1, 8})
"""Code points below the default 0: LE (RFC 8622) and CS1 (RFC 4594)."""


def no_more_than(less: NetworkPlan, more: NetworkPlan) -> bool:
    """Tell whether a plan allows nothing that the other does not.

    Reflexive and transitive. What cannot be ranked (queues, networks) must be the same.
    """
    if more.cut and not less.cut:
        return False
    if less.connectivity is Connectivity.NONE:
        return not less.services or (
            _subset(less.services, _services(more)) and _moves_no_more(less, more)
        )
    return (
        less.connectivity is more.connectivity
        and less.network == more.network
        and more.peers in _WIDER[less.peers]
        and _subset(less.reach, more.reach)
        and _subset(less.services, more.services)
        and _opens_no_more(less, more)
        and _moves_no_more(less, more)
        and more.ip in {Family.ANY, Family.BOTH, less.ip}
    )


def _services(plan: NetworkPlan) -> Collection[str] | None:
    """Return the services of a plan; without a network it has only those that it names."""
    if plan.connectivity is Connectivity.NONE and plan.services is None:
        return ()
    return plan.services


def _subset(less: Collection[str] | None, more: Collection[str] | None) -> bool:
    """Compare sets of names where None is every name."""
    return more is None or (less is not None and set(less) <= set(more))


def _opens_no_more(less: NetworkPlan, more: NetworkPlan) -> bool:
    if _INBOUND.index(less.inbound) > _INBOUND.index(more.inbound):
        return False
    return (
        less.inbound is not Inbound.PORTS
        or more.inbound is Inbound.ALL
        or (set(less.ports) <= set(more.ports))
    )


def _moves_no_more(less: NetworkPlan, more: NetworkPlan) -> bool:
    capped = all(
        not most or 0 < rate <= most
        for rate, most in (
            (less.rate.sent, more.rate.sent),
            (less.rate.received, more.rate.received),
        )
    )
    sure = (
        less.guarantee.sent <= more.guarantee.sent
        and less.guarantee.received <= more.guarantee.received
    )
    return (
        capped
        and sure
        and less.queue == more.queue
        and less.priority >= more.priority
        and _marks_no_more(less.dscp, more.dscp)
        and less.flow_label in {0, more.flow_label}
        and set(more.quotas) <= set(less.quotas)
    )


def _marks_no_more(less: int, more: int) -> bool:
    return less == more or less in _LOWER_EFFORT or (less == 0 and more not in _LOWER_EFFORT)


_SHOWN = ("reach", "inbound", "peers", "rate")
"""Settings that people ask about even if they are as usual."""
_LONGEST = 200
"""Characters of one value: of a long list of ports its beginning."""


def settings(plan: NetworkPlan) -> tuple[Setting, ...]:
    """Write what holds for a job: what people ask about, and what is not as usual.

    Profile, connectivity and network stand in a record beside it.
    """
    usual = NetworkPlan(plan.profile, plan.connectivity)
    found = [
        Setting(name, _short(written(plan, name)))
        for name in SETTINGS
        if name not in {"connectivity", "network"}
        and (name in _SHOWN or getattr(plan, name) != getattr(usual, name))
    ]
    return (*found, Setting("cut", "yes")) if plan.cut else tuple(found)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]} …"


def written(plan: NetworkPlan, setting: str) -> str:
    """Write one setting of a plan for people."""
    value = getattr(plan, setting)
    if setting in {"reach", "services"}:
        return EVERYWHERE if value is None else ", ".join(sorted(value)) or "nothing"
    if setting in {"rate", "guarantee"}:
        return rates_text(value)
    if setting in {"ports", "quotas"}:
        return ", ".join(map(str, value)) or NOTHING
    return str(value) or NOTHING
