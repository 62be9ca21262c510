"""The site's rules: which network a job gets, and why.

Three have a say, in this order. **Rules** are tried from the first: one whose condition is true
adds the values that it computes, unless an earlier rule set them, and if it names a profile, that
is the job's and no further rule is tried. Without one the default profile holds. Computed values
hold over the profile's. The **callout**'s answer, if the site has one, overrules the rules. What
the **job** asks for is then granted or refused (see `requests`). Every value is checked as it
arrives to be one of the site's words (see `vocabulary`).

Expressions come from the site's configuration alone and are compiled when it is loaded, so that a
mistake is found then and not by a job. A condition that is undefined or an error does not hold; a
computed value that is either refuses the job, because nothing sensible can stand in its place.

Facts that the agent vouches for stand in the job's ad over whatever the ad says of them, and are
absent from the machine ad, where a bare name would find them first. The machine ad is believed only
from the batch system itself: anyone else could write one. The site's `[machine]` holds over it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lark_agent.config import refuse
from lark_agent.errors import PolicyRefusal
from lark_agent.policy import marking, requests
from lark_agent.policy.checking import expressions, findings
from lark_agent.policy.comparing import written
from lark_agent.policy.expressions import Ads, Expression, described
from lark_agent.policy.facts import facts
from lark_agent.policy.overrides import Overrides
from lark_agent.policy.vocabulary import SETTINGS, UnusableValue, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lark_agent.config import AgentSettings, Callout, Requests, Rule
    from lark_agent.model import Job, NetworkPlan, Rates
    from lark_agent.policy.ads import Ad

NO_OBJECTION = Overrides()


class Step(NamedTuple):
    """One thing that had a say, for `lark policy explain`."""

    by: str
    """rules[2], default_profile, callout, or the attribute by which the job asked."""
    setting: str
    """profile or one of `vocabulary.SETTINGS`; empty where nothing was set."""
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Asking:
    """A job before the policy."""

    job: Job
    ad: Ad
    machine: Ad = field(default_factory=dict)
    """The batch system's machine ad."""
    option: str = ""
    """Profile named on the command line of lark-run."""
    announced: bool = False
    """The batch system asks, before there is a process of the job."""

    @property
    def requested(self) -> str:
        """The profile that the job asks for; "" if it does not."""
        ours = requests.PROFILE.lower()
        named = next((value for name, value in self.ad.items() if name.lower() == ours), "")
        return self.option or (named if isinstance(named, str) else f"{named}")


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A rule of the configuration, ready to be tried."""

    name: str
    """As in findings: rules[2]."""
    when: Expression
    profile: str
    values: tuple[tuple[str, Expression], ...]


@dataclass(frozen=True, slots=True)
class SitePolicy:
    """Compiled rules and everything else that decides about a job."""

    words: Vocabulary
    rules: tuple[CompiledRule, ...]
    default_profile: str
    requests: Requests
    machine: Ad
    callout: Callout

    @classmethod
    def compile(cls, settings: AgentSettings, file: Path | None = None) -> SitePolicy:
        """Compile the rules of a configuration; `file` names it in errors.

        Raises ConfigurationError naming every expression that cannot be used.
        """
        refuse(str(file or ""), findings(settings))
        rules = tuple(_compiled(n, rule) for n, rule in enumerate(settings.rules, 1))
        return cls(
            Vocabulary.of(settings), rules, settings.default_profile, settings.requests,
            dict(settings.machine), settings.callout,
        )  # fmt: skip

    def plan(
        self,
        asking: Asking,
        overrides: Overrides = NO_OBJECTION,
        steps: list[Step] | None = None,
    ) -> NetworkPlan:
        """Decide for one job; raises PolicyRefusal.

        What had a say is appended to `steps`, also if the job is refused in the end.
        """
        trace: list[Step] = [] if steps is None else steps
        job, machine = self.ads(asking)
        profile, values = self._by_rules(Ads(machine, job), trace)
        plan = _with(self.words, self.words.plan(profile), values)
        if overrides.profile:
            plan, values = self._overruled(overrides.profile), {}
            trace.append(Step("callout", "profile", plan.profile, "it answers so"))
        for setting, value in overrides.values.items():
            plan = self._put(plan, setting, value, "the callout's answer")
            values[setting] = value
            trace.append(Step("callout", setting, written(plan, setting), "it answers so"))
        bare, plan = plan, self._whole(plan)
        if plan.dscp != bare.dscp:
            why = f"priority {plan.priority}" + (f" in queue {plan.queue}" if plan.queue else "")
            trace.append(Step(marking.BY, "dscp", written(plan, "dscp"), why))
        if contradiction := overrides.contradiction(plan, self.words):
            raise PolicyRefusal(
                f"the site's policy cannot decide: the callout answers {contradiction}"
            )
        bounds = requests.Bounds(
            self.requests,
            self.words,
            lambda it: self._whole(_with(self.words, it, values)),
            _negotiated(asking),
        )
        for by, after, why in requests.fulfil(plan, asking.requested, asking.ad, bounds):
            trace.extend(_differences(by, plan, after, why))
            plan = after
        return plan

    def _whole(self, plan: NetworkPlan) -> NetworkPlan:
        """Check what concerns several settings."""
        try:
            return self.words.check(plan)
        except UnusableValue as error:
            raise PolicyRefusal(
                f"the site's policy cannot decide: {error} (for the site's admin: lark policy "
                "explain)"
            ) from error

    def ads(self, asking: Asking) -> tuple[Ad, Ad]:
        """Return the job ad and the machine ad as rules and the callout see them."""
        ours = {**facts(asking.job), requests.PROFILE: asking.requested}
        taken = {name.lower() for name in ours}
        # ClassAd names have no case: an "owner" of the ad must not stand beside our "Owner"
        job = {name: value for name, value in asking.ad.items() if name.lower() not in taken}
        hidden = taken | {name.lower() for name in self.machine}
        machine = asking.machine if asking.job.verified else {}
        machine = {name: value for name, value in machine.items() if name.lower() not in hidden}
        sites = {name: value for name, value in self.machine.items() if name.lower() not in taken}
        return {**job, **ours}, {**machine, **sites}

    def _by_rules(self, ads: Ads, trace: list[Step]) -> tuple[str, dict[str, object]]:
        """Return the profile that the rules give, and the values that they set over it."""
        values: dict[str, object] = {}
        blank = self.words.plan(self.default_profile)
        for rule in self.rules:
            verdict = rule.when.evaluate(ads)
            if verdict is not True:
                trace.append(Step(rule.name, "", "", f"{rule.when.text} is {described(verdict)}"))
                continue
            for setting, expression in rule.values:
                # a network was named with its connectivity
                if setting in values or (setting == "connectivity" and "network" in values):
                    trace.append(Step(rule.name, "", "", f"{setting} was set before"))
                    continue
                value = expression.evaluate(ads)
                where = f"{rule.name}: set.{setting} = '{expression.text}'"
                blank = self._put(blank, setting, value, where)
                values[setting] = value
                why = f"computed by {expression.text}"
                trace.append(Step(rule.name, setting, written(blank, setting), why))
            if rule.profile:
                trace.append(Step(rule.name, "profile", rule.profile, f"{rule.when.text} is true"))
                return rule.profile, values
        why = "no rule that holds names a profile"
        trace.append(Step("default_profile", "profile", self.default_profile, why))
        return self.default_profile, values

    def _put(self, plan: NetworkPlan, setting: str, value: object, where: str) -> NetworkPlan:
        try:
            return self.words.put(plan, setting, value)
        except UnusableValue as error:
            raise PolicyRefusal(
                f"the site's policy cannot decide: {where} gives {described(value)}: {error} "
                "(for the site's admin: lark policy explain)"
            ) from error

    def _overruled(self, profile: str) -> NetworkPlan:
        try:
            return self.words.plan(profile)
        except UnusableValue as error:
            raise PolicyRefusal(
                f"the site's policy cannot decide: the callout answers profile '{profile}': {error}"
            ) from error


def _negotiated(asking: Asking) -> Rates | None:
    if not asking.job.verified:
        return None
    return requests.negotiated(asking.ad, asking.machine, announced=asking.announced)


def _compiled(number: int, rule: Rule) -> CompiledRule:
    compiled = {key: Expression.compile(text) for key, text in expressions(rule)}
    when = compiled.pop("when")
    values = tuple((key.removeprefix("set."), value) for key, value in compiled.items())
    return CompiledRule(f"rules[{number}]", when, rule.profile, values)


def _with(words: Vocabulary, plan: NetworkPlan, values: dict[str, object]) -> NetworkPlan:
    """Put values that were read before over those of a profile."""
    for setting, value in values.items():
        plan = words.put(plan, setting, value)
    return plan


def _differences(by: str, before: NetworkPlan, after: NetworkPlan, why: str) -> Iterator[Step]:
    for setting in ("profile", *SETTINGS):
        if getattr(before, setting) != getattr(after, setting):
            yield Step(by, setting, written(after, setting), why)
