"""The words of one site: what may stand in a plan, and how a value is read into it.

Profiles, rules and callouts give values, each of which is checked when it arrives: a plan never
holds a class, network or quota that the site does not have, or a connectivity that this worker does
not offer. Each setting is one row of `READERS`: how its value is read, from whoever gives it. Words
are read in any case, and LARK's "null" is none; names are the site's, to the letter.

What concerns several settings (a guarantee above the rate, ports that nothing opens) is checked
once the plan is whole, by `check`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import classad2

from lark_agent.config import ADMITTED_BY, EVERYWHERE, NOTHING, QuotaAction, ports_of
from lark_agent.model import (
    DEFAULT_CLASS,
    DEFAULT_PRIORITY,
    LAYER2,
    UNSHAPED,
    Connectivity,
    Family,
    Inbound,
    NetworkPlan,
    Peers,
    Port,
    Rates,
)
from lark_agent.policy.expressions import described
from lark_agent.policy.marking import OF_PRIORITY, marked
from lark_agent.quantities import NotAQuantity, rates, rates_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from lark_agent.config import AgentSettings, Network, Profile

MOST_PORTS = 64
MOST_QUOTAS = 8
"""Quotas that hold for one job: the datapath has room for so many."""
_LARK = {"null": Connectivity.NONE.value}
_PROTOCOLS = {
    frozenset({"ipv4"}): Family.IPV4,
    frozenset({"ipv6"}): Family.IPV6,
    frozenset({"ipv4", "ipv6"}): Family.BOTH,
}


class UnusableValue(ValueError):  # noqa: N818  says what the value is
    """A value cannot stand in a plan of this site; says what can."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What plans of one site are made of."""

    profiles: dict[str, Profile]
    classes: frozenset[str]
    connectivities: frozenset[Connectivity]
    networks: dict[str, Network]
    services: frozenset[str]
    queues: dict[str, int]
    """Name → priority."""
    quotas: frozenset[str]
    uplink: Rates
    """What can be guaranteed; nothing where the site does not say what the uplink has."""
    throttles: frozenset[str] = frozenset()
    """Quotas that lower the rate of a job."""
    code_points: tuple[int, ...] = ()
    """By priority; none where the site does not derive them."""
    loopbacks: frozenset[str] = frozenset()
    """Services that listen on the worker's loopback."""

    @classmethod
    def of(cls, settings: AgentSettings) -> Vocabulary:
        """Collect the words of a configuration."""
        return cls(
            settings.all_profiles,
            frozenset(settings.classes) | {DEFAULT_CLASS},
            settings.offered,
            settings.networks,
            frozenset(settings.services),
            {name: queue.priority for name, queue in settings.queues.items()},
            frozenset(settings.quotas),
            rates(settings.uplink.rate or 0),
            frozenset(n for n, q in settings.quotas.items() if q.action is QuotaAction.THROTTLE),
            settings.uplink.priority_dscp,
            frozenset(name for name, service in settings.services.items() if service.loopback),
        )

    def plan(self, profile: str) -> NetworkPlan:
        """Return what a profile alone allows; raises UnusableValue."""
        if profile not in self.profiles:
            known = ", ".join(sorted(self.profiles))
            raise UnusableValue(f"this site has no network profile '{profile}'; it has {known}")
        plan = NetworkPlan(profile, Connectivity.NAT, dscp_of_priority=bool(self.code_points))
        for setting, value in given(self.profiles[profile]):
            plan = self.put(plan, setting, value)
        return plan

    def put(self, plan: NetworkPlan, setting: str, value: object) -> NetworkPlan:
        """Return the plan with one of `SETTINGS` replaced; raises UnusableValue."""
        if isinstance(value, classad2.Value):
            raise UnusableValue(
                "guard the rule by its condition, or give the expression a default with ?:"
            )
        return replace(plan, **READERS[setting](self, value))

    def check(self, plan: NetworkPlan) -> NetworkPlan:
        """Return a plan whose settings go together; raises UnusableValue."""
        network = self.networks.get(plan.network)
        if plan.connectivity not in LAYER2:
            plan = replace(plan, network="")
        elif network is None or network.connectivity is not plan.connectivity:
            plan = replace(plan, network=self._only_network(plan.connectivity))
        if plan.inbound is not Inbound.PORTS:
            plan = replace(plan, ports=())
        elif not plan.ports:
            raise UnusableValue("inbound ports opens none; give ports, or inbound established")
        for sure, most, word in _directions(plan.guarantee, plan.rate):
            if most and sure > most:
                raise UnusableValue(
                    f"the guarantee {rates_text(plan.guarantee)} is more than the rate "
                    f"{rates_text(plan.rate)} ({word})"
                )
        if plan.connectivity in LAYER2 and (far := self.loopbacks & (plan.services or frozenset())):
            raise UnusableValue(
                f"connectivity {plan.connectivity} has no service '{min(far)}' of the worker's "
                "loopback; use nat, routed or none, or leave it out"
            )
        self._check_shapeable(plan)
        return self.bookable(marked(plan, self.code_points, self.queues))

    def bookable(self, plan: NetworkPlan) -> NetworkPlan:
        """Return a plan whose guarantee and queue this worker has; raises UnusableValue."""
        ranked = plan.priority != DEFAULT_PRIORITY
        if (plan.guarantee or plan.queue or ranked) and not self.uplink:
            raise UnusableValue(
                "guarantees, queues and priorities need [uplink] rate: nobody knows what there is "
                "to share"
            )
        for sure, most, word in _directions(plan.guarantee, self.uplink):
            if sure > most:
                raise UnusableValue(
                    f"the guarantee {rates_text(plan.guarantee)} is more than [uplink] rate "
                    f"{rates_text(self.uplink)} ({word})"
                )
        return plan

    def _check_shapeable(self, plan: NetworkPlan) -> None:
        """Raise UnusableValue if a plan wants rates where packets cannot wait."""
        if plan.connectivity is Connectivity.HOST:
            check_unsandboxed(plan, self.throttles.__contains__)
        if plan.connectivity not in UNSHAPED & LAYER2:
            return
        throttles = sorted(self.throttles.intersection(plan.quotas))
        asked = {
            f"rate {rates_text(plan.rate)}": plan.rate,
            f"guarantee {rates_text(plan.guarantee)}": plan.guarantee,
            f"queue '{plan.queue}'": plan.queue,
            f"priority {plan.priority}": plan.priority != DEFAULT_PRIORITY,
            f"quota '{', '.join(throttles)}', which throttles": throttles,
        }
        if names := ", ".join(name for name, wanted in asked.items() if wanted):
            raise UnusableValue(
                f"connectivity {plan.connectivity} has no {names}: its links have no end on the "
                "worker where packets could wait; use nat, routed, bridge, vlan or ovs, or leave "
                "it out"
            )

    def _only_network(self, kind: Connectivity) -> str:
        found = [name for name, network in self.networks.items() if network.connectivity == kind]
        if len(found) != 1:
            raise UnusableValue(
                f"connectivity {kind} needs a network; the site has {', '.join(found) or 'none'}"
            )
        return found[0]


def check_unsandboxed(plan: NetworkPlan, throttles: Callable[[str], bool]) -> None:
    """Raise UnusableValue for what nothing enforces on a job without a sandbox.

    `throttles` tells of a quota's name whether it lowers rates.
    """
    asked = {
        "network": plan.network,
        "peers": plan.peers is not Peers.NONE,
        "inbound": plan.inbound is not Inbound.ESTABLISHED,
        "services": plan.services is not None,
        "rate": plan.rate,
        "guarantee": plan.guarantee,
        "queue": plan.queue,
        "priority": plan.priority != DEFAULT_PRIORITY,
        "dscp": plan.dscp,
        "flow_label": plan.flow_label,
        "quota that throttles": any(map(throttles, plan.quotas)),
    }
    if names := ", ".join(name for name, wanted in asked.items() if wanted):
        raise UnusableValue(
            f"connectivity host has no {names}; leave that out, or choose another connectivity"
        )


def given(profile: Profile) -> Iterable[tuple[str, object]]:
    """Yield (setting, value) for what a profile says; what it leaves out is as in any plan."""
    for setting in SETTINGS:
        value = getattr(profile, setting)
        if value is not None and value != "":
            yield setting, list(value) if isinstance(value, tuple) else value


def family_of(value: object) -> Family | None:
    """Read LARK's IPProtocol, as "IPv4,IPv6"; None if it is not one."""
    named = value.lower().replace(" ", "") if isinstance(value, str) else ""
    return _PROTOCOLS.get(frozenset(named.split(",")))


def _directions(one: Rates, other: Rates) -> Iterable[tuple[int, int, str]]:
    yield one.sent, other.sent, "sent"
    yield one.received, other.received, "received"


def _word(value: object, known: Collection[str]) -> str:
    word = value.lower() if isinstance(value, str) else ""
    word = _LARK.get(word, word)
    if word not in known:
        raise UnusableValue(f"{described(value)} is not one of {', '.join(known)}")
    return word


def _names(value: object, known: Collection[str], kind: str, table: str) -> frozenset[str]:
    """Read a list of names, or one text with commas."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UnusableValue(f'it must be a list of {table}, or one string "NAME, NAME"')
    wanted = frozenset(name.strip() for name in names if name.strip())
    if unknown := sorted(wanted - frozenset(known)):
        if table == "classes" and unknown[0] in ADMITTED_BY:
            raise UnusableValue(ADMITTED_BY[unknown[0]])
        raise UnusableValue(
            f"no {kind} '{unknown[0]}' is defined under [{table}]; "
            f"known: {', '.join(sorted(known)) or 'none'}"
        )
    return wanted


def _one_name(value: object, known: Collection[str], kind: str, table: str) -> str:
    """Read one name, or none."""
    if value == NOTHING:
        return ""
    if not isinstance(value, str):
        raise UnusableValue(f"{described(value)} is not the name of a {kind}")
    return next(iter(_names([value], known, kind, table)), "")


def _number(value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise UnusableValue(f"{described(value)} is not a whole number from 0 to {most}")
    return value


def _dscp(words: Vocabulary, value: object) -> dict[str, Any]:
    if value != OF_PRIORITY:
        return {"dscp": _number(value, 63), "dscp_of_priority": False}
    if not words.code_points:
        raise UnusableValue("the site gives priorities no code points: [uplink] priority_dscp")
    return {"dscp_of_priority": True}


def _rates(value: object) -> Rates:
    try:
        return rates(value)
    except NotAQuantity as error:
        raise UnusableValue(str(error)) from error


def _connectivity(words: Vocabulary, value: object) -> dict[str, Any]:
    """Take a word that exists and that this worker offers."""
    offered = sorted(kind.value for kind in words.connectivities)
    try:
        kind = Connectivity(_word(value, list(Connectivity)))
    except UnusableValue as error:
        raise UnusableValue(f"{described(value)} is not one of {', '.join(offered)}") from error
    if kind in words.connectivities:
        return {"connectivity": kind}
    lacking = f"there is no network of connectivity {kind} under [networks]"
    if kind is Connectivity.ROUTED:
        lacking = "routed needs [addresses] routed6 or routed4"
    raise UnusableValue(f"this worker offers {', '.join(offered)}: {lacking}")


def _network(words: Vocabulary, value: object) -> dict[str, Any]:
    """Take a name, or the number of the only network with that VLAN id."""
    if isinstance(value, str) and value.isdecimal() and value not in words.networks:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        found = [name for name, net in words.networks.items() if value and net.vlan == value]
        if len(found) != 1:
            raise UnusableValue(
                f"{len(found)} networks under [networks] have VLAN id {value}; give a name"
            )
        value = found[0]
    name = _one_name(value, words.networks, "network", "networks")
    if not name:
        raise UnusableValue("it names no network; set connectivity for a job without one")
    return {"network": name, "connectivity": words.networks[name].connectivity}


def _reach(words: Vocabulary, value: object) -> dict[str, Any]:
    if value in (EVERYWHERE, [EVERYWHERE]):
        return {"reach": None}
    return {"reach": _names(value, words.classes, "class", "classes")}


def _services(words: Vocabulary, value: object) -> dict[str, Any]:
    if value in (EVERYWHERE, [EVERYWHERE]):
        return {"services": None}
    return {"services": _names(value, words.services, "service", "services")}


def _ports(_words: Vocabulary, value: object) -> dict[str, Any]:
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UnusableValue('it must be a list of ports, or one string "tcp/8000, udp/5000-5010"')
    try:
        found: list[Port] = [port for text in texts if text.strip() for port in ports_of(text)]
    except ValueError as error:
        raise UnusableValue(str(error)) from error
    if len(found) > MOST_PORTS:
        raise UnusableValue(f"{len(found)} ports; at most {MOST_PORTS} can be opened")
    return {"ports": tuple(sorted(set(found)))}


def _quotas(words: Vocabulary, value: object) -> dict[str, Any]:
    names: object = [] if value in (NOTHING, [NOTHING]) else value
    found = _names(names, words.quotas, "quota", "quotas")
    if len(found) > MOST_QUOTAS:
        raise UnusableValue(f"{len(found)} quotas; at most {MOST_QUOTAS} hold for one job")
    return {"quotas": tuple(sorted(found))}


READERS: dict[str, Callable[[Vocabulary, object], dict[str, Any]]] = {
    "connectivity": _connectivity,
    "network": _network,
    "ip": lambda _, value: {"ip": Family(_word(value, list(Family)))},
    "reach": _reach,
    "peers": lambda _, value: {"peers": Peers(_word(value, list(Peers)))},
    "inbound": lambda _, value: {"inbound": Inbound(_word(value, list(Inbound)))},
    "ports": _ports,
    "services": _services,
    "rate": lambda _, value: {"rate": _rates(value)},
    "guarantee": lambda _, value: {"guarantee": _rates(value)},
    "queue": lambda words, value: {"queue": _one_name(value, words.queues, "queue", "queues")},
    "priority": lambda _, value: {"priority": _number(value, 7)},
    "dscp": _dscp,
    "flow_label": lambda _, value: {"flow_label": _number(value, 0xFFFFF)},
    "quotas": _quotas,
}
"""Setting → how a value becomes fields of a plan; raises UnusableValue."""
SETTINGS = tuple(READERS)
"""The values of a plan that profiles, rules and callouts may give."""
