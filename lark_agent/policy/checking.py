"""What is wrong with a policy that can be known before any job: `lark policy check`, and each load.

Expressions that do not parse, and every value that is the same for each job: those of profiles, and
those of rules that look at no attribute. What depends on a job is checked as it is decided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.config import Finding
from lark_agent.model import Connectivity, Inbound, NetworkPlan
from lark_agent.policy.expressions import Ads, Expression, NotAnExpression
from lark_agent.policy.facts import FACTS
from lark_agent.policy.vocabulary import SETTINGS, UnusableValue, Vocabulary, given

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
        for setting, why in found or _mismatched(profile, words):
            if setting not in known:
                yield Finding(f"profiles.{name}.{setting}".rstrip("."), why)


def _unusable(profile: Profile, words: Vocabulary) -> Iterator[tuple[str, str]]:
    """Yield (setting, why) for each value that cannot stand in a plan."""
    for setting, value in given(profile):
        try:
            words.put(_BLANK, setting, value)
        except UnusableValue as error:
            yield setting, f"{error}"


def _mismatched(profile: Profile, words: Vocabulary) -> Iterator[tuple[str, str]]:
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


def expressions(rule: Rule) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of everything that a rule has to evaluate."""
    yield "when", rule.when
    for setting in SETTINGS:
        if text := getattr(rule.set, setting):
            yield f"set.{setting}", text
