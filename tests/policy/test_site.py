"""Which network a job gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lark_agent.config import AgentSettings, parse
from lark_agent.errors import ConfigurationError, PolicyRefusal
from lark_agent.model import Connectivity, Job, Scheduler
from lark_agent.policy.site import SitePolicy

if TYPE_CHECKING:
    from lark_agent.policy.ads import Ad

RULES = """
default_profile = "nat"
[classes]
campus = ["198.51.100.0/24"]
[profiles.campus-only]
reach = ["campus"]
[profiles.analysis]
[[rules]]
when = 'AcctGroup == "students"'
profile = "campus-only"
[[rules]]
when = 'WantNetwork =?= false'
profile = "none"
[[rules]]
when = 'RequestedProfile == "analysis" && IdentityVerified'
profile = "analysis"
[[rules]]
when = 'NoSuchAttribute > 3'
profile = "none"
"""
ALICE = Job(Scheduler.HTCONDOR, "1.0", "alice", 1001, verified=True)
STUDENT = Job(Scheduler.HTCONDOR, "2.0", "bob", 1002, "students", verified=True)


@pytest.fixture
def policy() -> SitePolicy:
    return SitePolicy.compile(parse(AgentSettings, RULES, "test"))


def test_the_first_rule_that_holds_gives_the_profile(policy: SitePolicy) -> None:
    """A student's job that wants no network matches two rules: the first one decides."""
    plan = policy.plan(STUDENT, {"WantNetwork": False}, "")
    assert (plan.profile, plan.connectivity) == ("campus-only", Connectivity.NAT)
    assert plan.reach == frozenset({"campus"})


def test_an_attribute_of_the_ad_decides(policy: SitePolicy) -> None:
    """What the ad says is seen by the rules."""
    assert policy.plan(ALICE, {"WantNetwork": False}, "").connectivity == Connectivity.NONE


def test_an_undefined_condition_does_not_match(policy: SitePolicy) -> None:
    """A rule over an attribute that the ad lacks is skipped, and the default holds."""
    plan = policy.plan(ALICE, {}, "")
    assert (plan.profile, plan.reach) == ("nat", None)


def test_the_ad_cannot_say_who_owns_the_job(policy: SitePolicy) -> None:
    """Owner and group in rules are the agent's, whatever the ad claims."""
    forged: Ad = {"AcctGroup": "staff", "acctgroup": "staff"}
    assert policy.plan(STUDENT, forged, "").profile == "campus-only"


def test_a_job_may_always_ask_for_less(policy: SitePolicy) -> None:
    """The profile `none` is granted on request."""
    assert policy.plan(ALICE, {}, "none").connectivity == Connectivity.NONE


def test_a_rule_can_grant_a_request(policy: SitePolicy) -> None:
    """Rules see which profile the job asks for."""
    assert policy.plan(ALICE, {}, "analysis").profile == "analysis"


def test_a_request_that_no_rule_grants_is_refused(policy: SitePolicy) -> None:
    """The job does not run with another network than it believes to have."""
    with pytest.raises(PolicyRefusal, match="'campus-only', not 'analysis'"):
        policy.plan(STUDENT, {}, "analysis")
    with pytest.raises(PolicyRefusal, match="no network profile 'fast'"):
        policy.plan(ALICE, {}, "fast")


def test_broken_expressions_are_found_at_once() -> None:
    """Every rule that is not a ClassAd expression is named when the policy is loaded."""
    broken = """
[[rules]]
when = 'Owner =='
profile = "none"
[[rules]]
when = '(('
profile = "none"
"""
    with pytest.raises(ConfigurationError) as caught:
        SitePolicy.compile(parse(AgentSettings, broken, "test"))
    assert "rules[1].when" in str(caught.value)
    assert "rules[2].when" in str(caught.value)
