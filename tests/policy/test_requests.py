"""What a job may ask for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lark_agent.errors import InvalidRequest, PolicyRefusal
from lark_agent.hooks.identity import Caller, identify
from lark_agent.hooks.request import RunRequest
from lark_agent.model import Connectivity, Peers
from tests.policy.test_site import ALICE, RULES, STUDENT, decide, site

if TYPE_CHECKING:
    from lark_agent.policy.ads import Ad

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
    caller = Caller(3, 1001, "alice", trusted_launcher=True)
    for line in ("OutboundConnectivity = !true", "requestedvlan = MY.Cpus"):
        ad = f'GlobalJobId = "s#1.0#1"\nOwner = "alice"\n{line}\n'
        with pytest.raises(InvalidRequest, match="is an expression; write the value itself"):
            identify(RunRequest(job_ad=ad.encode()), caller)
    harmless = b'GlobalJobId = "s#1.0#1"\nRequestBandwidth = undefined\nRequirements = a > b\n'
    identify(RunRequest(job_ad=harmless), caller)
