"""Which network a job gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lark_agent.config import AgentSettings, parse
from lark_agent.errors import ConfigurationError, PolicyRefusal
from lark_agent.model import Connectivity, Job, NetworkPlan, Peers, Scheduler
from lark_agent.policy.facts import FACTS
from lark_agent.policy.overrides import Overrides
from lark_agent.policy.site import Asking, SitePolicy, Step

if TYPE_CHECKING:
    from lark_agent.policy.ads import Ad

CLASSES = """
[classes]
campus = ["198.51.100.0/24"]
lhcone = ["203.0.113.0/24"]
"""
RULES = (
    CLASSES
    + """
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
)
ALICE = Job(Scheduler.HTCONDOR, "1.0", "alice", 1001, verified=True)
STUDENT = Job(Scheduler.HTCONDOR, "2.0", "bob", 1002, "students", verified=True)
MALLORY = Job(Scheduler.PLAIN, "pid-3", "mallory", 1003)


def site(text: str) -> SitePolicy:
    return SitePolicy.compile(parse(AgentSettings, text, "test"))


def decide(
    policy: SitePolicy,
    job: Job,
    ad: Ad | None = None,
    option: str = "",
    machine: Ad | None = None,
    overrides: Overrides = Overrides(),  # noqa: B008  frozen
) -> NetworkPlan:
    return policy.plan(Asking(job, ad or {}, machine or {}, option), overrides)


@pytest.fixture
def policy() -> SitePolicy:
    return site(RULES)


def test_the_first_rule_with_a_profile_decides(policy: SitePolicy) -> None:
    """A student's job that wants no network matches two rules: the first one decides."""
    plan = decide(policy, STUDENT, {"WantNetwork": False})
    assert (plan.profile, plan.connectivity) == ("campus-only", Connectivity.NAT)
    assert plan.reach == frozenset({"campus"})


def test_an_attribute_of_the_ad_decides(policy: SitePolicy) -> None:
    """What the ad says is seen by the rules."""
    assert decide(policy, ALICE, {"WantNetwork": False}).connectivity == Connectivity.NONE


def test_an_undefined_condition_does_not_hold(policy: SitePolicy) -> None:
    """A rule over an attribute that the ad lacks is skipped, and the default holds."""
    plan = decide(policy, ALICE)
    assert (plan.profile, plan.reach, plan.peers) == ("nat", None, Peers.NONE)


def test_the_ad_cannot_say_who_owns_the_job(policy: SitePolicy) -> None:
    """Owner and group in rules are the agent's, whatever either ad claims."""
    forged: Ad = {"AcctGroup": "staff", "acctgroup": "staff"}
    assert decide(policy, STUDENT, forged, machine=forged).profile == "campus-only"


@pytest.mark.parametrize("fact", FACTS)
def test_no_ad_can_speak_for_the_agent(fact: str) -> None:
    """Neither a bare name nor MY nor TARGET shows an ad's word for a fact."""
    for name in (fact, f"MY.{fact}", f"TARGET.{fact}"):
        strict = site(f"""
[[rules]]
when = '{name} == "forged" || {name} == "FORGED"'
profile = "none"
""")
        forged: Ad = {fact.upper(): "forged", fact.lower(): "forged"}
        job = STUDENT
        option = "nat" if fact == "RequestedProfile" else ""
        assert decide(strict, job, forged, option, machine=forged).profile == "nat"


def test_bare_names_are_looked_up_in_the_machine_first() -> None:
    """MY is the machine, TARGET the job, and each sees nothing of the other."""
    machine: Ad = {"Site": "machine", "Mine": 1}
    job: Ad = {"Site": "job", "Theirs": 1}

    def holds(when: str) -> bool:
        policy = site(f"[[rules]]\nwhen = '{when}'\nprofile = \"none\"")
        return decide(policy, ALICE, job, machine=machine).profile == "none"

    assert holds('MY.Site == "machine" && TARGET.Site == "job"')
    assert holds('Site == "machine" && Theirs == 1 && Mine == 1')
    assert holds("MY.Theirs is undefined && my.theirs is undefined")
    assert holds("TARGET.Mine is undefined")
    assert not holds("MY.Theirs == 1")


def test_a_bare_name_in_one_rule_is_not_the_machines_in_the_next() -> None:
    """What one expression may see of the job, a later one does not see in MY."""
    policy = site("""
[[rules]]
when = 'Trusted && false'
set = { peers = '"all"' }
[[rules]]
when = 'MY.Trusted'
profile = "none"
""")
    assert decide(policy, ALICE, {"Trusted": True}).profile == "nat"


def test_only_the_batch_system_describes_the_machine() -> None:
    """The machine ad of a user at a prompt is that user's word, and is not seen."""
    policy = site("[[rules]]\nwhen = 'MY.Trusted'\nprofile = \"none\"")
    assert decide(policy, ALICE, machine={"Trusted": True}).profile == "none"
    assert decide(policy, MALLORY, machine={"Trusted": True}).profile == "nat"


def test_the_site_describes_its_machines() -> None:
    """[machine] is seen by every rule, and holds over the batch system's ad in any case."""
    policy = site("""
[machine]
Rack = 7
[[rules]]
when = 'MY.Rack == 7'
profile = "none"
""")
    assert decide(policy, ALICE, machine={"rack": 8}).profile == "none"
    assert decide(policy, MALLORY).profile == "none"


def test_values_add_up_and_the_first_word_holds() -> None:
    """Rules without a profile go on; what they set holds over later rules and the profile."""
    policy = site(
        CLASSES
        + """
[profiles.open]
peers = "all"
reach = ["lhcone"]
[[rules]]
when = 'true'
set = { peers = '"owner"' }
[[rules]]
when = 'Owner == "alice"'
set = { peers = '"group"', reach = '{"campus", "other"}' }
[[rules]]
when = 'true'
profile = "open"
[[rules]]
when = 'true'
set = { connectivity = '"none"' }
"""
    )
    reach = frozenset({"campus", "other"})
    expected = NetworkPlan("open", Connectivity.NAT, reach=reach, peers=Peers.OWNER)
    assert decide(policy, ALICE) == expected
    assert decide(policy, STUDENT).reach == frozenset({"lhcone"})


def test_htcondors_own_functions_work() -> None:
    """They are registered late by the bindings; a rule that uses them must not be an error."""
    policy = site(
        CLASSES
        + """
[[rules]]
when = 'stringListMember(Owner, "bob,alice") && size(split(Groups)) == 2'
set = { reach = 'split(Groups)' }
"""
    )
    plan = decide(policy, ALICE, {"Groups": "campus lhcone"})
    assert plan.reach == frozenset({"campus", "lhcone"})


def test_larks_published_policy_works() -> None:
    """The expression of the paper, with its "null" and its capitals."""
    policy = site("""
[requests]
outbound_connectivity = "ignore"
[[rules]]
when = 'TARGET.OutboundConnectivity isnt undefined'
set = { connectivity = 'ifThenElse(TARGET.OutboundConnectivity, "NAT", "null")' }
""")
    assert decide(policy, ALICE, {"OutboundConnectivity": True}).connectivity == Connectivity.NAT
    assert decide(policy, ALICE, {"OutboundConnectivity": False}).connectivity == Connectivity.NONE
    assert decide(policy, ALICE).connectivity == Connectivity.NAT


@pytest.mark.parametrize(
    ("setting", "expression", "said"),
    [
        ("connectivity", "TARGET.Word", '"warp" is not one of host, nat, none'),
        ("connectivity", "TARGET.Word + 1", "error: guard the rule by its condition"),
        ("peers", "TARGET.Word", '"warp" is not one of none, owner, group, all'),
        ("reach", "TARGET.Word", "no class 'warp' is defined under"),
        ("reach", '{"campus", TARGET.Word}', "no class 'warp' is defined under"),
        ("reach", '{"campus", "all", TARGET.Owner}', "no class 'alice' is defined under"),
        ("reach", "TARGET.Uid", "it must be a list of classes"),
        ("reach", '{TARGET.Uid, "campus"}', "it must be a list of classes"),
        ("peers", "TARGET.NoSuch", "undefined: guard the rule by its condition"),
    ],
)
def test_a_value_that_is_none_refuses_the_job(setting: str, expression: str, said: str) -> None:
    """The refusal names the rule, the expression and what came out of it."""
    policy = site(
        f"{CLASSES}[[rules]]\nwhen = 'false'\nprofile = \"none\"\n"
        f"[[rules]]\nwhen = 'true'\nset = {{ {setting} = '{expression}' }}\n"
    )
    with pytest.raises(PolicyRefusal) as caught:
        decide(policy, ALICE, {"Word": "warp"})
    assert f"rules[2]: set.{setting} = '{expression}' gives " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("when", "values", "finding"),
    [
        ("Owner ==", "", "rules[1].when: 'Owner ==' is not a ClassAd expression"),
        ("((", "", "rules[1].when: '((' is not a ClassAd expression"),
        ("true; b = 3", "", "rules[1].when: 'true; b = 3' is not a ClassAd expression"),
        ("true]; [b = 3", "", "rules[1].when: 'true]; [b = 3' is not"),
        ('Eval ("x")', "", "calls eval()"),
        ("Rack == MY.rack", "", "uses 'rack' both bare and with MY"),
        ("self.Rack == 3", "", "only MY and TARGET have attributes"),
        (".Rack == 3", "", "only MY and TARGET have attributes"),
        ('MY["Rack"] == 3', "", "uses MY alone; write MY.Name"),
        ("true", "connectivity = '\"natt\"'", 'rules[1].set.connectivity: "natt" is not one of'),
        ("true", "connectivity = '\"routed\"'", "routed needs [addresses] routed6 or routed4"),
        ("true", "peers = '3'", "rules[1].set.peers: 3 is not one of"),
        ("true", "reach = '{\"home\"}'", "rules[1].set.reach: no class 'home' is defined"),
        ("true", "reach = '{'", "rules[1].set.reach: '{' is not a ClassAd expression"),
    ],
)
def test_what_can_be_known_is_found_when_the_policy_is_loaded(
    when: str, values: str, finding: str
) -> None:
    """Broken expressions and constants that no plan can hold do not wait for a job."""
    text = f"[[rules]]\nwhen = '{when}'\nprofile = \"none\"\nset = {{ {values} }}\n"
    with pytest.raises(ConfigurationError) as caught:
        site(text)
    assert finding in str(caught.value)


def test_all_broken_expressions_are_found_at_once() -> None:
    """Every rule that cannot be used is named, and so is a fact that the site would forge."""
    broken = "[machine]\nowner = 'x'\n" + "[[rules]]\nwhen = '(('\nprofile = \"none\"\n" * 2
    with pytest.raises(ConfigurationError) as caught:
        site(broken)
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "rules[1].when",
        "rules[2].when",
        "machine.owner",
    ]


def test_a_text_that_mentions_eval_is_no_call() -> None:
    """Only a call is refused, not a word in quotes."""
    site('[[rules]]\nwhen = \'Title == "eval(x)"\'\nprofile = "none"')


def test_the_callout_overrules_the_rules(policy: SitePolicy) -> None:
    """A profile replaces all that rules decided; a value replaces itself."""
    plan = decide(policy, STUDENT, overrides=Overrides("", {"reach": "campus, other"}))
    assert (plan.profile, plan.reach) == ("campus-only", frozenset({"campus", "other"}))
    plan = decide(policy, STUDENT, overrides=Overrides("analysis", {"peers": "Owner"}))
    assert (plan.profile, plan.reach, plan.peers) == ("analysis", None, Peers.OWNER)
    for wrong in (Overrides("fast"), Overrides("", {"reach": "mars"})):
        with pytest.raises(PolicyRefusal, match="the callout"):
            decide(policy, STUDENT, overrides=wrong)


def test_the_steps_say_who_set_what(policy: SitePolicy) -> None:
    """Rules that did not hold are told too, with what their condition was."""
    steps: list[Step] = []
    policy.plan(Asking(ALICE, {"OutboundConnectivity": False}), steps=steps)
    assert [(step.by, step.setting, step.value) for step in steps] == [
        ("rules[1]", "", ""),
        ("rules[2]", "", ""),
        ("rules[3]", "", ""),
        ("rules[4]", "", ""),
        ("default_profile", "profile", "nat"),
        ("OutboundConnectivity", "connectivity", "none"),
    ]
    assert steps[3].why == "NoSuchAttribute > 3 is undefined"
