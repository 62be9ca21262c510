"""What is wrong with a policy that can be known before any job: `lark policy check`, and each load.

Expressions that do not parse, and every value that is the same for each job: those of profiles, and
those of rules that look at no attribute. What depends on a job is checked as it is decided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.config import Finding
from lark_agent.model import Connectivity, Direction, Inbound, NetworkPlan
from lark_agent.policy.expressions import Ads, Expression, NotAnExpression
from lark_agent.policy.facts import FACTS
from lark_agent.policy.vocabulary import SETTINGS, UnusableValue, Vocabulary, given
from lark_agent.quantities import rates, rates_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.config import AgentSettings, Profile, Rule

_BLANK = NetworkPlan("", Connectivity.NAT)


def findings(settings: AgentSettings) -> Iterator[Finding]:
    """Yield every expression and value of a configuration that cannot be used."""
    words = Vocabulary.of(settings)
    nobody = Ads({}, {})
    yield from _profile_findings(settings, words)
    for number, rule in enumerate(settings.rules, 1):
        for key, text in expressions(rule):
            where = f"rules[{number}].{key}"
            try:
                expression = Expression.compile(text)
                if expression.constant and key != "when":
                    value = expression.evaluate(nobody)
                    words.bookable(words.put(_BLANK, key.removeprefix("set."), value))
            except (NotAnExpression, UnusableValue) as error:
                yield Finding(where, f"{error}")
        for why in _beyond_queue(settings, _always(rule, words)):
            yield Finding(f"rules[{number}]", f"the guarantee {why}")
    if settings.requests.bandwidth and not words.uplink:
        yield Finding("requests.bandwidth", "needs [uplink] rate, which guarantees are booked of")
    taken = {name.lower() for name in FACTS}
    for name in settings.machine:
        if name.lower() in taken:
            yield Finding(f"machine.{name}", "is a fact about the job; use another name")


def _profile_findings(settings: AgentSettings, words: Vocabulary) -> Iterator[Finding]:
    """Yield what the site's profiles say that no plan can be made of."""
    for name, profile in settings.profiles.items():
        found = list(_unusable(profile, words))
        # what the settings found by themselves is not told twice
        known = {"reach"} | ({"connectivity"} if profile.connectivity == "routed" else set())
        for setting, why in found or _mismatched(profile, settings, words):
            if setting not in known:
                yield Finding(f"profiles.{name}.{setting}".rstrip("."), why)


def _unusable(profile: Profile, words: Vocabulary) -> Iterator[tuple[str, str]]:
    """Yield (setting, why) for each value that cannot stand in a plan."""
    for setting, value in given(profile):
        try:
            words.put(_BLANK, setting, value)
        except UnusableValue as error:
            yield setting, f"{error}"


def _mismatched(
    profile: Profile, settings: AgentSettings, words: Vocabulary
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with settings beside each other; the setting is empty if it is two's."""
    plan = _BLANK
    for setting, value in given(profile):
        plan = words.put(plan, setting, value)
    if profile.ports and profile.inbound is not Inbound.PORTS:
        yield "ports", 'opens nothing; give inbound = "ports" as well'
    if profile.network and profile.connectivity not in {Connectivity.NAT, plan.connectivity}:
        yield (
            "connectivity",
            f"network '{profile.network}' is {plan.connectivity}; leave connectivity out",
        )
    try:
        words.check(plan)
    except UnusableValue as error:
        yield "", f"{error}"
    for why in _beyond_queue(settings, plan):
        yield "guarantee", why


def _always(rule: Rule, words: Vocabulary) -> NetworkPlan:
    """Return what a rule says of guarantee and queue to every job that it holds for.

    Values that the profile of a later rule may give are not known, and count as none.
    """
    plan = _BLANK
    try:
        if rule.profile and (rule.set.guarantee or rule.set.queue):  # else the profile is told
            plan = words.plan(rule.profile)
        for setting in ("guarantee", "queue"):
            text = getattr(rule.set, setting)
            expression = Expression.compile(text) if text else None
            if expression and not expression.constant:
                return _BLANK
            if expression:
                plan = words.put(plan, setting, expression.evaluate(Ads({}, {})))
    except (NotAnExpression, UnusableValue):
        return _BLANK  # told of the expression or the profile itself
    return plan


def _beyond_queue(settings: AgentSettings, plan: NetworkPlan) -> Iterator[str]:
    """Yield why no job could ever have its guarantee: its queue has less for all of them."""
    if not (plan.queue and plan.guarantee):
        return
    queue = rates(settings.queues[plan.queue].guarantee or 0)
    if any(plan.guarantee.of(direction) > queue.of(direction) for direction in Direction):
        yield (
            f"{rates_text(plan.guarantee)} is more than the {rates_text(queue)} that queue "
            f"'{plan.queue}' has for all of its jobs; raise [queues.{plan.queue}] guarantee"
        )


def expressions(rule: Rule) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of everything that a rule has to evaluate."""
    yield "when", rule.when
    for setting in SETTINGS:
        if text := getattr(rule.set, setting):
            yield f"set.{setting}", text
