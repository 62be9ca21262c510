"""What a job may ask for itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lark_agent.errors import InvalidRequest, PolicyRefusal
from lark_agent.hooks.identity import Caller, identify
from lark_agent.hooks.request import RunRequest
from lark_agent.model import Connectivity, Family, Inbound, Job, Peers, Port, Rates, Scheduler
from lark_agent.policy.site import Asking
from tests.policy.test_site import ALICE, RULES, STUDENT, decide, site

if TYPE_CHECKING:
    from lark_agent.policy import ads
    from lark_agent.policy.ads import Ad
    from lark_agent.policy.site import SitePolicy

NO_NETWORK = "[[rules]]\nwhen = 'true'\nprofile = \"none\"\n"


def test_a_job_may_always_ask_for_less() -> None:
    """A profile that allows no more than the rules gave is granted, and is all there is to it."""
    policy = site(RULES)
    assert decide(policy, ALICE, option="none").connectivity == Connectivity.NONE
    assert decide(policy, ALICE, option="campus-only").reach == frozenset({"campus"})


def test_the_ad_asks_as_the_option_does() -> None:
    """`+RequestedProfile` in a submit file is a request; an option on the command line wins."""
    policy = site(RULES)
    ad: Ad = {"requestedprofile": "campus-only"}
    assert decide(policy, ALICE, ad).profile == "campus-only"
    assert decide(policy, ALICE, ad, "none").profile == "none"


def test_a_rule_can_grant_a_request() -> None:
    """Rules see which profile the job asks for, by either way."""
    policy = site(RULES)
    assert decide(policy, ALICE, option="analysis").profile == "analysis"
    assert decide(policy, ALICE, {"RequestedProfile": "analysis"}).profile == "analysis"


def test_a_request_that_no_rule_grants_is_refused() -> None:
    """The job does not run with another network than it believes to have."""
    policy = site(RULES)
    with pytest.raises(PolicyRefusal, match="'campus-only', not 'analysis'"):
        decide(policy, STUDENT, option="analysis")
    with pytest.raises(PolicyRefusal, match="no network profile 'fast'"):
        decide(policy, ALICE, option="fast")


@pytest.mark.parametrize(
    ("profile", "granted"),
    [
        ('connectivity = "nat"\nreach = ["campus"]\npeers = "none"', True),
        ('connectivity = "nat"\nreach = []\npeers = "owner"', True),
        ('connectivity = "none"\nreach = ["other"]\npeers = "all"', True),
        ('connectivity = "nat"\nreach = ["campus", "other"]', False),
        ('connectivity = "nat"\nreach = ["campus"]\npeers = "group"', False),
        ('connectivity = "nat"\nreach = ["campus"]\npeers = "all"', False),
        ('connectivity = "nat"\npeers = "none"', False),
    ],
)
def test_less_is_less_in_every_respect(profile: str, granted: bool) -> None:
    """One wider setting is enough to make a request one for more."""
    policy = site(f"""
default_profile = "given"
[classes]
campus = ["198.51.100.0/24"]
[profiles.given]
reach = ["campus"]
peers = "owner"
[profiles.wanted]
{profile}
""")
    if granted:
        assert decide(policy, ALICE, option="wanted").profile == "wanted"
    else:
        with pytest.raises(PolicyRefusal, match="'given', not 'wanted'"):
            decide(policy, ALICE, option="wanted")


def test_the_site_lists_what_everybody_may_have() -> None:
    """A listed profile is granted; values that rules computed still hold over it."""
    policy = site("""
default_profile = "none"
[profiles.open]
peers = "all"
[requests]
profiles = ["open"]
[[rules]]
when = 'true'
set = { peers = '"owner"' }
""")
    plan = decide(policy, ALICE, option="open")
    assert (plan.profile, plan.connectivity, plan.peers) == ("open", Connectivity.NAT, Peers.OWNER)


def test_no_outbound_is_no_network() -> None:
    """LARK's `+OutboundConnectivity = false` takes the network away, whatever the profile."""
    policy = site("")
    assert decide(policy, ALICE, {"OUTBOUNDconnectivity": False}).connectivity == Connectivity.NONE
    assert decide(policy, ALICE, {"OutboundConnectivity": True}).connectivity == Connectivity.NAT


def test_outbound_that_the_site_does_not_give_is_refused() -> None:
    """Who insists on a network does not run without one."""
    with pytest.raises(PolicyRefusal, match="the site's rules give it no network"):
        decide(site(NO_NETWORK), ALICE, {"OutboundConnectivity": True})


def test_no_inbound_is_no_peers() -> None:
    """LARK's `+InboundConnectivity = false` closes the one way in that there is."""
    policy = site("[[rules]]\nwhen = 'true'\nset = { peers = '\"all\"' }")
    assert decide(policy, ALICE).peers == Peers.ALL
    assert decide(policy, ALICE, {"InboundConnectivity": False}).peers == Peers.NONE


@pytest.mark.parametrize(
    ("ad", "said"),
    [
        ({"InboundConnectivity": True}, "let nothing in but answers"),
        ({"OutboundConnectivity": "false"}, "neither true nor false"),
        ({"RequestedVLAN": 312}, "RequestedVLAN = 312, and this worker has no [networks]"),
        ({"requestbandwidth": 100}, "RequestBandwidth = 100, and this worker has no [uplink] rate"),
        ({"IPProtocol": "IPX"}, "is not IPv4, IPv6 or both"),
        ({"NetworkAccounting": False}, "NetworkAccounting = False, and every job is accounted for"),
        ({"NetworkAccounting": "no"}, "NetworkAccounting = no, and every job is accounted for"),
    ],
)
def test_what_cannot_be_given_is_refused_with_the_reason(ad: Ad, said: str) -> None:
    """Nothing that a job asks for is passed over in silence."""
    with pytest.raises(PolicyRefusal) as caught:
        decide(site(""), ALICE, ad)
    assert said in str(caught.value)


def test_no_request_is_no_request() -> None:
    """Zeros, empty texts and what everybody has anyway do not hold a job."""
    idle: Ad = {"RequestBandwidth": 0, "RequestedVLAN": "", "NetworkAccounting": True}
    assert decide(site(""), ALICE, idle).connectivity == Connectivity.NAT


def test_the_site_decides_what_becomes_of_requests() -> None:
    """Each kind of request can be refused or ignored."""
    ignoring = site("""
[requests]
outbound_connectivity = "ignore"
inbound_connectivity = "ignore"
unsupported = "ignore"
""")
    ad: Ad = {"OutboundConnectivity": False, "InboundConnectivity": True, "RequestedVLAN": 3}
    assert decide(ignoring, ALICE, ad).connectivity == Connectivity.NAT
    for name in ("outbound", "inbound"):
        refusing = site(f'[requests]\n{name}_connectivity = "refuse"')
        with pytest.raises(PolicyRefusal, match="does not let jobs ask by"):
            decide(refusing, ALICE, {f"{name.title()}Connectivity": False})


def test_a_request_must_be_literal() -> None:
    """An expression is not evaluated, and a request is not overlooked: the job is refused."""
    caller = Caller(3, 1001, "alice", by_root=True)
    for line in ("OutboundConnectivity = !true", "requestedvlan = MY.Cpus"):
        ad = f'GlobalJobId = "s#1.0#1"\nOwner = "alice"\n{line}\n'
        with pytest.raises(InvalidRequest, match="is an expression; write the value itself"):
            identify(RunRequest(job_ad=ad.encode()), caller)
    harmless = b'GlobalJobId = "s#1.0#1"\nRequestBandwidth = undefined\nRequirements = a > b\n'
    identify(RunRequest(job_ad=harmless), caller)


NETWORKS = """
[networks.licences]
connectivity = "vlan"
vlan = 312
[networks.lab]
connectivity = "bridge"
bridge = "br-lab"
[networks.attic]
connectivity = "ovs"
bridge = "ovs0"
vlan = 312
[requests]
networks = ["lab"]
"""
UPLINK = '[uplink]\nrate = "1 Gbit/s"\n'


def ruled(*values: str, profile: str = "") -> str:
    """Write a rule that holds for every job."""
    named = f'profile = "{profile}"\n' if profile else ""
    return f"[[rules]]\nwhen = 'true'\n{named}set = {{ {', '.join(values)} }}\n"


def refused(policy: SitePolicy, ad: Ad) -> str:
    """Return the words that the job's user reads."""
    with pytest.raises(PolicyRefusal) as caught:
        decide(policy, ALICE, ad)
    return str(caught.value)


def test_a_job_names_its_network() -> None:
    """LARK's `+RequestedVLAN`, by name or id: one that the site lists, or the rules give anyway."""
    plan = decide(site(NETWORKS), ALICE, {"RequestedVLAN": "lab"})
    assert (plan.network, plan.connectivity) == ("lab", Connectivity.BRIDGE)
    one = NETWORKS.replace("vlan = 312\n[requests]", "[requests]")
    given = site(one + ruled("network = '\"licences\"'"))
    for same in (312, "312", "licences"):
        assert decide(given, ALICE, {"RequestedVLAN": same}).network == "licences"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("licences", "do not put this job on network 'licences' (RequestedVLAN = licences)"),
        ("cellar", "no network 'cellar' is defined under [networks]; known: attic, lab, licences"),
        (312, "2 networks under [networks] have VLAN id 312; give a name"),
        (313, "0 networks under [networks] have VLAN id 313"),
        (True, "true is not the name of a network"),
        (3.5, "3.5 is not the name of a network"),
    ],
)
def test_another_network_is_refused(wanted: ads.Value, said: str) -> None:
    """With what there is, or whom to ask."""
    assert said in refused(site(NETWORKS), {"RequestedVLAN": wanted})


@pytest.mark.parametrize(
    "rule",
    [
        ruled("network = '\"attic\"'"),
        ruled("connectivity = '\"nat\"'"),
        ruled("connectivity = '\"none\"'"),
        ruled(profile="none"),
    ],
)
def test_a_listed_network_is_not_had_against_the_rules(rule: str) -> None:
    """Where rules say the connectivity themselves, or give no network, the list grants nothing."""
    said = refused(site(NETWORKS + rule), {"RequestedVLAN": "lab"})
    assert "the site's rules do not put this job on network 'lab'" in said


def test_a_job_books_bandwidth() -> None:
    """LARK's RequestBandwidth in Mbit/s is a guarantee both ways, within the site's bound."""
    policy = site(f'{UPLINK}[requests]\nbandwidth = "100 Mbit/s sent, 200 Mbit/s received"')
    assert decide(policy, ALICE, {"RequestBandwidth": 100}).guarantee == Rates(10**8, 10**8)
    asked: Ad = {"RequestBandwidth": "1 Mbit/s sent, 200 Mbit/s received"}
    assert decide(policy, ALICE, asked).guarantee == Rates(10**6, 2 * 10**8)
    said = refused(policy, {"RequestBandwidth": 101.0})
    assert "RequestBandwidth = 101.0 (101 Mbit/s), and the site gives it at most" in said


def test_no_more_bandwidth_than_the_batch_system_gave() -> None:
    """A job that asks for more than was negotiated is refused; machine ads count of the verified.

    What was provisioned stands in the ad of a job that is announced, and counts there alone: later
    that ad is a file of the job's user.
    """
    policy = site(f'{UPLINK}[requests]\nbandwidth = "400 Mbit/s"')
    job = Job(Scheduler.HTCONDOR, "1.0", "alice", 1001, verified=True)
    given: Ad = {"bandwidth": 100}
    asked: Ad = {"RequestBandwidth": 100}
    assert policy.plan(Asking(job, asked, given)).guarantee == Rates(10**8, 10**8)
    with pytest.raises(PolicyRefusal, match="the batch system gave it 100 Mbit/s"):
        policy.plan(Asking(job, {"RequestBandwidth": 101}, given))
    raised: Ad = {"Bandwidth": 400}
    told: Ad = {"RequestBandwidth": 101, "BandwidthProvisioned": 100}
    with pytest.raises(PolicyRefusal, match="the batch system gave it 100 Mbit/s"):
        policy.plan(Asking(job, told, raised, announced=True))
    raised_too: Ad = {"RequestBandwidth": 101, "BandwidthProvisioned": 400}
    with pytest.raises(PolicyRefusal, match="the batch system gave it 100 Mbit/s"):
        policy.plan(Asking(job, raised_too, given))
    unverified = replace(job, verified=False)
    more: Ad = {"RequestBandwidth": 400}
    assert policy.plan(Asking(unverified, more, given)).guarantee.sent == 4 * 10**8
    assert "at most 400 Mbit/s" in refused(policy, {"RequestBandwidth": 401})


def test_a_rule_gives_more_bandwidth_than_the_bound() -> None:
    """What the rules guarantee can be asked for, all or less; more cannot."""
    policy = site(UPLINK + ruled("guarantee = '400'", "rate = '500'"))
    assert decide(policy, ALICE).guarantee == Rates(4 * 10**8, 4 * 10**8)
    assert decide(policy, ALICE, {"RequestBandwidth": 50}).guarantee == Rates(5 * 10**7, 5 * 10**7)
    assert "at most 400 Mbit/s" in refused(policy, {"RequestBandwidth": 401})


@pytest.mark.parametrize(
    ("rules", "asked", "said"),
    [
        ("", 1, "and the site gives it at most none"),
        ("", "much", "'much' is not a rate; write one such as 100 Mbit/s"),
        ("", True, "'True' is not a rate"),
        ('[requests]\nbandwidth = "2 Gbit/s"', 1001, "is more than [uplink] rate 1 Gbit/s"),
        (
            '[requests]\nbandwidth = "1 Gbit/s"\n' + ruled("rate = '10'"),
            11,
            "the guarantee 11 Mbit/s is more than the rate 10 Mbit/s",
        ),
        (
            '[requests]\nbandwidth = "1 Gbit/s"\n' + ruled(profile="none"),
            1,
            "and the site gives it at most none",
        ),
    ],
)
def test_bandwidth_beyond_the_bounds_is_refused(rules: str, asked: ads.Value, said: str) -> None:
    """The text tells the bound that was met."""
    assert said in refused(site(UPLINK + rules), {"RequestBandwidth": asked})


@pytest.mark.parametrize(
    ("asked", "family"),
    [
        ("IPv4", Family.IPV4),
        ("ipv6", Family.IPV6),
        ("IPv6, IPv4", Family.BOTH),
        ("IPv4,IPv6", Family.BOTH),
    ],
)
def test_a_job_chooses_its_address_families(asked: str, family: Family) -> None:
    """LARK's IPProtocol: one of them, or insist on both."""
    assert decide(site(""), ALICE, {"IPProtocol": asked}).ip is family
    both = site(ruled("ip = '\"both\"'"))
    assert decide(both, ALICE, {"IPProtocol": asked}).ip is family


def test_a_family_that_the_rules_took_is_not_had_back() -> None:
    """A narrower plan can be asked for again, and no other; the site may also refuse or ignore."""
    six = ruled("ip = '\"ipv6\"'")
    assert decide(site(six), ALICE, {"IPProtocol": "IPv6"}).ip is Family.IPV6
    assert "give it ipv6 only" in refused(site(six), {"IPProtocol": "IPv4"})
    assert "give it ipv6 only" in refused(site(six), {"IPProtocol": "IPv4,IPv6"})
    refusing = site('[requests]\nip_protocol = "refuse"')
    assert "does not let jobs ask for" in refused(refusing, {"IPProtocol": "IPv4"})
    ignoring = site('[requests]\nip_protocol = "ignore"')
    assert decide(ignoring, ALICE, {"IPProtocol": "IPX"}).ip is Family.ANY
    assert "is not IPv4, IPv6 or both" in refused(site(""), {"IPProtocol": 4})


def test_inbound_is_opened_within_the_bound() -> None:
    """`+InboundConnectivity = true` opens everything where the site lets every job have that."""
    policy = site('[requests]\ninbound = "all"')
    assert decide(policy, ALICE, {"InboundConnectivity": True}).inbound is Inbound.ALL
    assert decide(policy, ALICE).inbound is Inbound.ESTABLISHED


def test_inbound_that_the_rules_opened_is_kept_or_closed() -> None:
    """True is content with listed ports; false closes them, and other jobs."""
    opened = ruled("inbound = '\"ports\"'", "ports = '\"tcp/80\"'", "peers = '\"all\"'")
    kept = decide(site(opened), ALICE, {"InboundConnectivity": True})
    assert (kept.inbound, kept.ports) == (Inbound.PORTS, (Port("tcp", 80),))
    closed = decide(site(opened), ALICE, {"InboundConnectivity": False})
    assert (closed.inbound, closed.ports, closed.peers) == (Inbound.ESTABLISHED, (), Peers.NONE)
    shut = site(ruled("inbound = '\"none\"'", "peers = '\"all\"'"))
    assert decide(shut, ALICE, {"InboundConnectivity": False}).inbound is Inbound.NONE


@pytest.mark.parametrize("rule", [ruled("inbound = '\"none\"'"), ruled(profile="none")])
def test_inbound_is_not_opened_against_the_rules(rule: str) -> None:
    """Where rules say what may come in, or there is no network, the bound grants nothing."""
    policy = site('[requests]\ninbound = "all"\n' + rule)
    assert "let nothing in but answers" in refused(policy, {"InboundConnectivity": True})


def test_no_outbound_takes_everything() -> None:
    """Neither a network, nor what it was guaranteed, nor a service of the worker is left."""
    services = '[services]\nsquid = { port = "tcp/3128" }\n'
    rule = ruled("guarantee = '5'", "services = '\"squid\"'", "network = '\"lab\"'")
    plan = decide(site(UPLINK + NETWORKS + services + rule), ALICE, {"OutboundConnectivity": False})
    assert (plan.connectivity, plan.network) == (Connectivity.NONE, "")
    assert (plan.guarantee, plan.services) == (Rates(), frozenset())


def test_a_network_that_leads_nowhere_is_no_outbound() -> None:
    """Who insists on going out does not run where only other jobs can be reached."""
    private = site(ruled("reach = '{}'", "peers = '\"owner\"'"))
    assert "give it no network" in refused(private, {"OutboundConnectivity": True})


def test_what_nobody_can_have_is_refused_or_ignored() -> None:
    """The site chooses once for all three."""
    ad: Ad = {"NetworkAccounting": False, "RequestedVLAN": "lab", "RequestBandwidth": 5}
    plan = decide(site('[requests]\nunsupported = "ignore"'), ALICE, ad)
    assert (plan.connectivity, plan.guarantee) == (Connectivity.NAT, Rates())
    for name, value in ad.items():
        assert f"the job asks for {name} = {value}, and" in refused(site(""), {name: value})


def test_ignored_wishes_are_not_read() -> None:
    """Not even for nonsense."""
    policy = site('[requests]\nip_protocol = "ignore"\ninbound_connectivity = "ignore"\n')
    ad: Ad = {"InboundConnectivity": "maybe", "IPProtocol": "maybe"}
    assert decide(policy, ALICE, ad) == decide(policy, ALICE)
