"""Every setting of a plan, from each of the three that can give it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from lark_agent.cli import lark
from lark_agent.config import AgentSettings, Profile, Values, parse
from lark_agent.errors import ConfigurationError, PolicyRefusal
from lark_agent.model import Connectivity, Family, Inbound, Peers, Port, Rates
from lark_agent.policy.overrides import Overrides
from lark_agent.policy.vocabulary import SETTINGS
from tests.policy.test_site import ALICE, decide, site

if TYPE_CHECKING:
    from pathlib import Path

RESOURCES = """
[uplink]
rate = "10 Gbit/s"
[addresses]
routed6 = "2001:db8:7::/112"
[classes]
campus = ["198.51.100.0/24"]
[networks.licences]
connectivity = "vlan"
vlan = 312
[networks.lab]
connectivity = "bridge"
bridge = "br-lab"
[services]
squid = { port = "tcp/3128" }
flex = { port = "tcp/27000", loopback = true }
[queues.cms]
guarantee = "1 Gbit/s"
[quotas.monthly]
bytes = "2 TB"
[quotas.daily]
bytes = "10 GB"
"""
M = 10**6


class Row(NamedTuple):
    """One value of a setting, as each of the three writes it."""

    setting: str
    profile: str
    """TOML."""
    rule: str
    """ClassAd."""
    answer: str
    """ClassAd, literal."""
    expected: object


GOOD = [
    Row("connectivity", '"routed"', '"ROUTED"', '"Routed"', Connectivity.ROUTED),
    Row("connectivity", '"none"', '"null"', '"NULL"', Connectivity.NONE),
    Row("connectivity", '"host"', 'strcat("ho", "st")', '"host"', Connectivity.HOST),
    Row("connectivity", '"bridge"', '"bridge"', '"bridge"', Connectivity.BRIDGE),
    Row("network", '"licences"', "300 + 12", "312", "licences"),
    Row("network", '"lab"', '"lab"', '"lab"', "lab"),
    Row("network", '"licences"', '"312"', '"312"', "licences"),
    Row("ip", '"ipv6"', '"IPv6"', '"IPV6"', Family.IPV6),
    Row("ip", '"both"', '"both"', '"both"', Family.BOTH),
    Row("reach", '["campus"]', '{"campus"}', '"campus"', frozenset({"campus"})),
    Row("reach", "[]", "{}", '""', frozenset()),
    Row("reach", '["other", "campus"]', '"campus, other"', '"other,campus"',
        frozenset({"campus", "other"})),
    Row("peers", '"group"', '"Group"', '"GROUP"', Peers.GROUP),
    Row("inbound", '"none"', '"none"', '"None"', Inbound.NONE),
    Row("inbound", '"all"', '"all"', '"all"', Inbound.ALL),
    Row("services", '["squid"]', '{"squid"}', '"squid"', frozenset({"squid"})),
    Row("services", "[]", "{}", '""', frozenset()),
    Row("rate", '"100 Mbit/s"', "100", "100", Rates(100 * M, 100 * M)),
    Row("rate", '"1.5 Gbit/s"', "1500.0", "1500.0", Rates(1500 * M, 1500 * M)),
    Row("rate", '"10 Mbit/s sent, 1 Gbit/s received"', '"10 Mbit/s sent, 1 Gbit/s received"',
        '"1 Gbit/s received,10 mbps sent"', Rates(10 * M, 1000 * M)),
    Row("guarantee", '"5 Mbit/s sent"', '"5Mbit/s sent"', '"5 Mbit/s SENT"', Rates(5 * M, 0)),
    Row("guarantee", '"250 Mbit/s"', "2 * 125", "250", Rates(250 * M, 250 * M)),
    Row("queue", '"cms"', '"cms"', '"cms"', "cms"),
    Row("priority", "0", "0", "0", 0),
    Row("dscp", "46", "40 + 6", "46", 46),
    Row("flow_label", "65540", "(1 << 16) + 4", "65540", 65540),
    Row("quotas", '["monthly", "daily"]', '{"monthly", "daily"}', '"monthly, daily"',
        ("daily", "monthly")),
]  # fmt: skip
PORTS = Row(
    "ports", '["udp/5000-5001", "tcp/80"]', '"udp/5000-5001, tcp/80"', '"TCP/80,udp/5000-5001"',
    (Port("tcp", 80), Port("udp", 5000), Port("udp", 5001)),
)  # fmt: skip


def test_every_setting_is_in_the_table() -> None:
    """A setting without a row below would be one that nothing shows to work."""
    assert {row.setting for row in (*GOOD, PORTS)} == set(SETTINGS)
    assert set(SETTINGS) == set(Profile.__struct_fields__) == set(Values.__struct_fields__)


@pytest.mark.parametrize("row", GOOD, ids=[f"{row.setting}-{row.rule}" for row in GOOD])
def test_each_setting_means_the_same_from_profile_rule_and_callout(row: Row) -> None:
    """Numbers, lists, one text with commas, words in any case: the plan is the same."""
    by_profile = site(
        f'default_profile = "p"\n{RESOURCES}[profiles.p]\n{row.setting} = {row.profile}\n'
    )
    by_rule = site(
        f"{RESOURCES}[[rules]]\nwhen = 'true'\nset = {{ {row.setting} = '{row.rule}' }}\n"
    )
    answer = Overrides.parse(f"{row.setting} = {row.answer}\n".encode())
    assert getattr(decide(by_profile, ALICE), row.setting) == row.expected
    assert getattr(decide(by_rule, ALICE), row.setting) == row.expected
    assert getattr(decide(site(RESOURCES), ALICE, overrides=answer), row.setting) == row.expected


def test_ports_are_opened_by_each_of_the_three() -> None:
    """With inbound ports, lists and ranges of ports arrive in order."""
    profile = f'[profiles.p]\ninbound = "ports"\nports = {PORTS.profile}\n'
    by_profile = site(f'default_profile = "p"\n{RESOURCES}{profile}')
    by_rule = site(
        f"{RESOURCES}[[rules]]\nwhen = 'true'\n"
        f"set = {{ inbound = '\"ports\"', ports = '{PORTS.rule}' }}\n"
    )
    answer = Overrides.parse(f'Inbound = "ports"\nPorts = {PORTS.answer}\n'.encode())
    assert decide(by_profile, ALICE).ports == PORTS.expected
    assert decide(by_rule, ALICE).ports == PORTS.expected
    assert decide(site(RESOURCES), ALICE, overrides=answer).ports == PORTS.expected


@pytest.mark.parametrize(
    ("setting", "narrowed", "word"),
    [
        ("reach", '["campus"]', "None"),
        ("services", '["squid"]', "None"),
        ("queue", '"cms"', ""),
        ("quotas", '["monthly"]', "()"),
    ],
)
def test_a_rule_can_take_a_profiles_restriction_back(
    setting: str, narrowed: str, word: str
) -> None:
    """Words ("all", "none") stand for what a profile says by leaving a key out."""
    lifted = "all" if setting in {"reach", "services"} else "none"
    policy = site(
        f'default_profile = "p"\n{RESOURCES}[profiles.p]\n{setting} = {narrowed}\n'
        f"[[rules]]\nwhen = 'true'\nset = {{ {setting} = '\"{lifted}\"' }}\n"
    )
    assert str(getattr(decide(policy, ALICE), setting)) == word


BAD = [
    ("connectivity", '"macvlan"', "there is no network of connectivity macvlan under [networks]"),
    ("connectivity", '"warp"', '"warp" is not one of bridge, host, nat, none, routed, vlan'),
    ("network", '"moon"', "no network 'moon' is defined under [networks]; known: lab, licences"),
    ("network", "313", "0 networks under [networks] have VLAN id 313"),
    ("network", "0", "0 networks under [networks] have VLAN id 0"),
    ("network", "true", "true is not the name of a network"),
    ("network", '"none"', "it names no network; set connectivity for a job without one"),
    ("ip", '"ipx"', '"ipx" is not one of any, ipv4, ipv6, both'),
    ("reach", '"jobs"', "which other jobs a job reaches is its peers"),
    ("reach", '{"campus", "worker"}', "what of the worker a job reaches is its services"),
    ("reach", '{"mars"}', "no class 'mars' is defined under [classes]; known: campus, other"),
    ("reach", "3", 'it must be a list of classes, or one string "NAME, NAME"'),
    ("peers", "true", "true is not one of none, owner, group, all"),
    ("inbound", '"some"', '"some" is not one of none, established, ports, all'),
    ("ports", '"tcp/0"', "'tcp/0' is no port; write one such as tcp/8000 or udp/5000-5010"),
    ("ports", '{"sctp/80"}', "'sctp/80' is no port"),
    ("ports", "8000", "it must be a list of ports"),
    ("ports", '"tcp/1-64, tcp/100"', "65 ports; at most 64 can be opened"),
    ("services", '"ssh"', "no service 'ssh' is defined under [services]; known: flex, squid"),
    ("rate", '"fast"', "'fast' is not a rate; write one such as 100 Mbit/s"),
    ("rate", "-1", "-1 Mbit/s is no rate"),
    ("rate", "true", "'True' is not a rate"),
    ("guarantee", "10001", "the guarantee 10.001 Gbit/s is more than [uplink] rate 10 Gbit/s"),
    ("queue", '"atlas"', "no queue 'atlas' is defined under [queues]; known: cms"),
    ("queue", "1", "1 is not the name of a queue"),
    ("priority", "8", "8 is not a whole number from 0 to 7"),
    ("priority", '"1"', '"1" is not a whole number from 0 to 7'),
    ("dscp", "64", "64 is not a whole number from 0 to 63"),
    ("dscp", '"priority"', "the site gives priorities no code points: [uplink] priority_dscp"),
    ("dscp", "1.5", "1.5 is not a whole number from 0 to 63"),
    ("flow_label", "1048576", "1048576 is not a whole number from 0 to 1048575"),
    ("quotas", '{"yearly"}', "no quota 'yearly' is defined under [quotas]; known: daily, monthly"),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "value", "said"), BAD)
def test_a_value_that_no_plan_can_hold_is_told_with_its_remedy(
    setting: str, value: str, said: str
) -> None:
    """At load from a rule that looks at nothing, and to the job from one that looks at its ad."""
    rule = f"{RESOURCES}[[rules]]\nwhen = 'true'\nset = {{ {setting} = '%s' }}\n"
    with pytest.raises(ConfigurationError) as caught:
        site(rule % value)
    assert str(caught.value).startswith(f"rules[1].set.{setting}: ")
    assert said in str(caught.value)
    with pytest.raises(PolicyRefusal) as refused:
        decide(site(rule % f"Nothing isnt undefined ? 0 : {value}"), ALICE)
    assert said in str(refused.value)
    assert "lark policy explain" in str(refused.value)


CROSSED = [
    ('inbound = "ports"', "profiles.p: inbound ports opens none; give ports, or inbound"),
    ('ports = ["tcp/80"]', 'profiles.p.ports: opens nothing; give inbound = "ports" as well'),
    ('connectivity = "bridge"\nnetwork = "licences"',
     "profiles.p.connectivity: network 'licences' is vlan; leave connectivity out"),
    ('connectivity = "macvlan"', "profiles.p.connectivity: this worker offers bridge, host, nat"),
    ('rate = "1 Mbit/s"\nguarantee = "2 Mbit/s"',
     "profiles.p: the guarantee 2 Mbit/s is more than the rate 1 Mbit/s (sent)"),
    ('guarantee = "11 Gbit/s received"', "is more than [uplink] rate 10 Gbit/s (received)"),
    ('guarantee = "2 Gbit/s sent"\nqueue = "cms"',
     "profiles.p.guarantee: 2 Gbit/s sent is more than the 1 Gbit/s that queue 'cms' has for all"),
    ('connectivity = "host"\nrate = "1 Mbit/s"', "profiles.p: connectivity host has no rate; "),
    ('connectivity = "host"\npeers = "owner"\ndscp = 8',
     "profiles.p: connectivity host has no peers, dscp; leave that out"),
]  # fmt: skip


@pytest.mark.parametrize(("profile", "said"), CROSSED)
def test_settings_of_a_profile_that_do_not_go_together_are_found(profile: str, said: str) -> None:
    """What concerns two settings is told of the profile, before any job."""
    with pytest.raises(ConfigurationError) as caught:
        site(f"{RESOURCES}[profiles.p]\n{profile}\n")
    (line,) = str(caught.value).splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("kind", "there"),
    [('network = "lab"\n', False), ("", True), ('connectivity = "none"\n', True)],
    ids=["bridge", "nat", "none"],
)
def test_a_service_of_the_loopback_is_named_only_where_it_appears(kind: str, there: bool) -> None:
    """On a network of the site the worker is no neighbour: who names one is told, not ignored."""
    text = f'default_profile = "p"\n{RESOURCES}[profiles.p]\n{kind}services = ["flex"]\n'
    if there:
        assert decide(site(text), ALICE).services == frozenset({"flex"})
        return
    with pytest.raises(ConfigurationError, match=r"profiles\.p: .* no service 'flex' of the"):
        site(text)


def test_what_nothing_holds_without_a_sandbox_is_refused_by_the_policy() -> None:
    """`lark policy explain` gives no job of connectivity host what the agent would refuse it."""
    rule = """[[rules]]\nwhen = 'true'\nset = { connectivity = '"host"', rate = '10' }\n"""
    with pytest.raises(PolicyRefusal, match="connectivity host has no rate; leave that out"):
        decide(site(f"{RESOURCES}{rule}"), ALICE)


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("set = { guarantee = '2000', queue = '\"cms\"' }", True),
        ("profile = 'queued'\nset = { guarantee = '2000' }", True),
        ("profile = 'sure'\nset = { queue = '\"cms\"' }", True),
        ("profile = 'queued'\nset = { guarantee = '1000' }", False),
        ("profile = 'queued'\nset = { guarantee = '2000', queue = '\"none\"' }", False),
        ("profile = 'queued'\nset = { guarantee = '2000', queue = 'Wanted' }", False),
        ("set = { guarantee = '2000' }", False),
    ],
)
def test_a_guarantee_that_its_queue_never_has_is_found(rule: str, found: bool) -> None:
    """Where queue and guarantee are the same for every job, it is told before the first."""
    profiles = '[profiles.queued]\nqueue = "cms"\n[profiles.sure]\nguarantee = "3 Gbit/s"\n'
    text = f"{RESOURCES}{profiles}[[rules]]\nwhen = 'true'\n{rule}\n"
    if not found:
        site(text)
        return
    with pytest.raises(ConfigurationError, match=r"rules\[1\]: the guarantee .* queue 'cms' has"):
        site(text)


def test_a_worker_without_a_rate_has_nothing_to_guarantee() -> None:
    """Guarantees, queues, ranks and a bound for requests are found at load; computed at the job."""
    for text, key in (
        ('[profiles.p]\nguarantee = "1 Mbit/s"', "profiles.p"),
        ('[queues.q]\nrate = "1 Mbit/s"\n[profiles.p]\nqueue = "q"', "profiles.p"),
        ("[profiles.p]\npriority = 0", "profiles.p"),
        ("[[rules]]\nwhen = 'true'\nset = { guarantee = '5' }", "rules[1].set.guarantee"),
        ('[requests]\nbandwidth = "5 Mbit/s"', "requests.bandwidth"),
    ):
        with pytest.raises(ConfigurationError, match=r"\[uplink\] rate") as caught:
            site(text)
        assert str(caught.value).startswith(f"{key}: ")
    computed = site("[[rules]]\nwhen = 'true'\nset = { guarantee = 'Uid / 100' }")
    with pytest.raises(PolicyRefusal, match=r"need \[uplink\] rate"):
        decide(computed, ALICE)


def test_the_network_and_its_connectivity_are_one() -> None:
    """Who names either gets both, and the first word holds for the two."""
    two = RESOURCES + "[[rules]]\nwhen = 'true'\nset = { %s }\n" * 2
    named, worded = "network = '\"lab\"'", "connectivity = '\"vlan\"'"
    plan = decide(site(two % (named, worded)), ALICE)
    assert (plan.connectivity, plan.network) == (Connectivity.BRIDGE, "lab")
    plan = decide(site(RESOURCES), ALICE, overrides=Overrides("", {"connectivity": "vlan"}))
    assert (plan.connectivity, plan.network) == (Connectivity.VLAN, "licences")
    profile = f'default_profile = "p"\n{RESOURCES}[profiles.p]\nnetwork = "lab"\n'
    nat = f"{profile}[[rules]]\nwhen = 'true'\nset = {{ connectivity = '\"nat\"' }}\n"
    plan = decide(site(nat), ALICE)
    assert (plan.connectivity, plan.network) == (Connectivity.NAT, "")
    plan = decide(site(profile + nat[len(profile) :].replace("nat", "vlan")), ALICE)
    assert (plan.connectivity, plan.network) == (Connectivity.VLAN, "licences")


def test_a_connectivity_of_two_networks_needs_a_name() -> None:
    """Nobody guesses which one; the networks are listed."""
    twice = f'{RESOURCES}[networks.attic]\nconnectivity = "bridge"\nbridge = "br-attic"\n'
    with pytest.raises(ConfigurationError, match="needs a network; the site has lab, attic"):
        site(f'{twice}[profiles.p]\nconnectivity = "bridge"\n')
    settings = parse(AgentSettings, twice, "f")
    assert Connectivity.BRIDGE in settings.offered


def test_all_mistakes_of_a_policy_are_found_in_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of every setting, from profiles and rules, each with its own line."""
    lines = RESOURCES.strip().splitlines()
    expected: dict[str, int] = {}
    for setting, value, _ in BAD:
        lines += ["[[rules]]", "when = 'true'", f"set = {{ {setting} = '{value}' }}"]
        number = len(expected) + 1
        expected[f"rules[{number}].set.{setting}"] = len(lines)
    for number, (profile, _) in enumerate(CROSSED):
        lines += [f"[profiles.p{number}]", *profile.splitlines()]
    file = tmp_path / "agent.toml"
    file.write_text("\n".join(lines) + "\n")
    assert lark.status(["policy", "check", str(file)]) == 2
    found = capsys.readouterr().out.splitlines()
    assert len(found) == len(BAD) + len(CROSSED)
    for key, line in expected.items():
        assert any(text.startswith(f"{file}:{line}: {key}: ") for text in found), key
