"""The policies of docs/policy.md do what the document says of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent.config import AgentSettings, parse
from lark_agent.errors import PolicyRefusal
from lark_agent.model import Connectivity, Family, Inbound, Job, Peers, Rates, Scheduler
from lark_agent.policy.facts import FACTS
from lark_agent.policy.requests import NAMES
from lark_agent.policy.site import Asking, SitePolicy

if TYPE_CHECKING:
    from lark_agent.model import NetworkPlan
    from lark_agent.policy.ads import Ad

DOCUMENT = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
BLOCKS: list[str] = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
GALLERY = {
    block.splitlines()[0].removeprefix("# gallery: "): SitePolicy.compile(
        parse(AgentSettings, block, "docs/policy.md")
    )
    for block in BLOCKS
    if block.startswith("# gallery: ")
}
ALL = "all"


def decide(
    name: str,
    ad: Ad | None = None,
    *,
    owner: str = "alice",
    group: str = "",
    verified: bool = True,
    machine: Ad | None = None,
    option: str = "",
    scheduler: Scheduler = Scheduler.HTCONDOR,
) -> NetworkPlan:
    job = Job(scheduler, "1.0", owner, 1001, group, verified)
    return GALLERY[name].plan(Asking(job, ad or {}, machine or {}, option))


def shown(plan: NetworkPlan) -> tuple[str, str, str]:
    reach = ALL if plan.reach is None else " ".join(sorted(plan.reach))
    return plan.connectivity.value, reach, plan.peers.value


def test_every_policy_is_exercised() -> None:
    """Each block of the gallery has its test below, and each test its block."""
    here = Path(__file__).read_text()
    assert len(GALLERY) >= 25
    assert set(re.findall(r'decide\(\s*"([a-z-]+)"', here)) == set(GALLERY)


def test_every_block_of_the_document_can_be_loaded() -> None:
    """Fragments in the text are good configurations as well."""
    for block in BLOCKS:
        SitePolicy.compile(parse(AgentSettings, block, "docs/policy.md"))


@pytest.mark.parametrize("name", [*FACTS, *sorted(NAMES)])
def test_the_document_names_every_attribute(name: str) -> None:
    """What rules can believe and what jobs may ask by is all there."""
    assert f"`{name.lower()}`" in DOCUMENT.lower()


def test_students() -> None:
    """Groups below students too, and no group that only begins so."""
    assert shown(decide("students", group="students.physics")) == ("nat", "campus", "none")
    assert shown(decide("students", group="students")) == ("nat", "campus", "none")
    assert shown(decide("students", group="studentship")) == ("nat", ALL, "none")


def test_verified() -> None:
    """A job at a prompt has no network."""
    assert shown(decide("verified")) == ("nat", ALL, "none")
    assert shown(decide("verified", verified=False))[0] == "none"


def test_lhcone() -> None:
    """The first part of the group decides, if the batch system launched the job."""
    assert decide("lhcone", group="cms.higgs").profile == "physics"
    assert decide("lhcone", group="cmsx").profile == "public"
    assert decide("lhcone", group="").profile == "public"
    assert decide("lhcone", group="cms", verified=False).profile == "public"
    assert shown(decide("lhcone", group="atlas")) == ("nat", "campus lhcone", "none")


def test_split_pool() -> None:
    """Peers are the owner's jobs; a private pool has nothing else."""
    assert shown(decide("split-pool")) == ("nat", ALL, "owner")
    assert shown(decide("split-pool", {"PrivatePool": True})) == ("nat", "", "owner")


@pytest.mark.parametrize(
    ("outbound", "inbound", "connectivity", "opened"),
    [
        (True, True, Connectivity.BRIDGE, Inbound.ALL),
        (True, False, Connectivity.NAT, Inbound.ESTABLISHED),
        (False, False, Connectivity.NONE, Inbound.ESTABLISHED),
    ],
)
def test_lark(outbound: bool, inbound: bool, connectivity: Connectivity, opened: Inbound) -> None:
    """The paper's attributes decide; who says nothing has NAT, and nobody is both off and open."""
    plan = decide("lark", {"OutboundConnectivity": outbound, "InboundConnectivity": inbound})
    assert (plan.connectivity, plan.inbound) == (connectivity, opened)
    assert plan.network == ("lab" if inbound else "")
    assert decide("lark").connectivity is Connectivity.NAT
    with pytest.raises(PolicyRefusal, match="let nothing in but answers"):
        decide("lark", {"OutboundConnectivity": False, "InboundConnectivity": True})


def test_destinations() -> None:
    """Within the bounds, out of them, and none."""
    assert shown(decide("destinations"))[1] == "campus"
    assert shown(decide("destinations", {"Destinations": "lhcone campus"}))[1] == "campus lhcone"
    assert shown(decide("destinations", {"Destinations": "lhcone"}))[1] == "lhcone"
    for wanted in ("lhcone cloud", "mars", "all"):
        with pytest.raises(PolicyRefusal, match=f"forbidden: {wanted}"):
            decide("destinations", {"Destinations": wanted})


def test_routed() -> None:
    """All three must be so; and the job cannot answer for the machine."""
    assert shown(decide("routed", {"WantRouted": True}))[0] == "routed"
    assert shown(decide("routed", {"WantRouted": True}, verified=False))[0] == "nat"
    assert shown(decide("routed", {"RoutedPrefix": True}))[0] == "nat"


def test_guests() -> None:
    """The machine decides before the group adds anything."""
    lent: Ad = {"LentToGuests": True}
    assert shown(decide("guests", group="cms", machine=lent)) == ("nat", "campus", "none")
    assert shown(decide("guests", lent, group="cms")) == ("nat", ALL, "group")
    assert shown(decide("guests")) == ("nat", ALL, "none")


def test_closed() -> None:
    """Everybody may ask for proxies, two for everything."""
    assert shown(decide("closed"))[0] == "none"
    assert shown(decide("closed", {"RequestedProfile": "proxied"})) == ("nat", "proxies", "none")
    assert decide("closed", {"RequestedProfile": "open"}, owner="carol").profile == "open"
    with pytest.raises(PolicyRefusal, match="'none', not 'open'"):
        decide("closed", {"RequestedProfile": "open"})


def test_listed() -> None:
    """The list beats the rest."""
    assert shown(decide("listed", owner="trudy", scheduler=Scheduler.SLURM))[0] == "none"
    assert shown(decide("listed", scheduler=Scheduler.SLURM)) == ("nat", ALL, "owner")


def test_cms() -> None:
    """One class, and a share that they have together."""
    plan = decide("cms", group="cms.higgs")
    assert (plan.reach, plan.queue) == (frozenset({"lhcone"}), "cms")
    for other in (decide("cms", group="cms", verified=False), decide("cms", group="cmsx")):
        assert (other.profile, other.queue) == ("nat", "")


def test_licences() -> None:
    """Carol gets there by asking, and stays where she was if she does not."""
    plan = decide("licences", {"RequestedVLAN": 312}, owner="carol")
    assert (plan.connectivity, plan.network) == (Connectivity.VLAN, "licences")
    assert decide("licences", owner="carol").connectivity is Connectivity.NAT
    for wanted in (312, "licences"):
        with pytest.raises(PolicyRefusal, match="do not put this job on network 'licences'"):
            decide("licences", {"RequestedVLAN": wanted})


def test_networks() -> None:
    """By name and by id; the rule's network is not left for another one, nor had by asking."""
    for wanted in ("storage", 20):
        assert decide("networks", {"RequestedVLAN": wanted}).network == "storage"
    assert decide("networks", group="beamline7").connectivity is Connectivity.MACVLAN
    for ad, group in (({"RequestedVLAN": "instruments"}, ""), ({"RequestedVLAN": 20}, "beamline")):
        with pytest.raises(PolicyRefusal, match="do not put this job on network"):
            decide("networks", dict(ad), group=group)


def test_cloud() -> None:
    """Everybody's plan has the quota; only who has no network at all is without."""
    assert decide("cloud").quotas == ("cloud",)
    assert decide("cloud", verified=False).quotas == ("cloud",)
    assert decide("cloud", option="none").connectivity is Connectivity.NONE


def test_caps() -> None:
    """A rate each way; who asks for the plain profile would have more."""
    plan = decide("caps", group="students.cs")
    assert plan.rate == Rates(20 * 10**6, 100 * 10**6)
    assert plan.quotas == ("daily",)
    assert decide("caps", group="staff").rate == Rates()
    with pytest.raises(PolicyRefusal, match="'student', not 'nat'"):
        decide("caps", group="students.cs", option="nat")


def test_proxy() -> None:
    """Nowhere but the cache; others everywhere but the cache."""
    guest = decide("proxy", owner="guest")
    assert (guest.reach, guest.services) == (frozenset(), frozenset({"squid"}))
    other = decide("proxy")
    assert (other.reach, other.services) == (None, frozenset({"licence"}))


def test_uploads() -> None:
    """First and marked, if it is the group's; the user's word alone marks nothing."""
    plan = decide("uploads", {"Upload": True}, group="daq")
    assert (plan.priority, plan.dscp) == (0, 34)
    for other in (decide("uploads", {"Upload": True}), decide("uploads", group="daq")):
        assert (other.priority, other.dscp) == (4, 0)


def test_marks() -> None:
    """The code point is that of the place in the hierarchy; the one of a rule holds over it."""
    for urgent, group, expected in (
        (True, "daq", (0, 46)),
        (True, "theory", (4, 0)),
        (False, "daq", (4, 0)),
        (False, "background.scans", (7, 1)),
        (False, "voice", (0, 44)),
    ):
        plan = decide("marks", {"Urgent": urgent}, group=group)
        assert (plan.priority, plan.dscp) == expected, group


def test_queues() -> None:
    """Everybody is in one of the two."""
    assert decide("queues", group="cms.prod").queue == "cms"
    assert decide("queues").queue == "others"


def test_booking() -> None:
    """Within the bound of all, within the group's, and beyond."""
    mbit = 10**6
    assert decide("booking").guarantee == Rates()
    assert decide("booking", {"RequestBandwidth": 50}).guarantee == Rates(50 * mbit, 50 * mbit)
    assert decide("booking", group="analysis").guarantee == Rates(300 * mbit, 300 * mbit)
    small = decide("booking", {"RequestBandwidth": 100}, group="analysis")
    assert small.guarantee == Rates(100 * mbit, 100 * mbit)
    with pytest.raises(PolicyRefusal, match="at most 50 Mbit/s"):
        decide("booking", {"RequestBandwidth": 100})


def test_split_pool_wide() -> None:
    """Own addresses, of the owner's jobs alone."""
    plan = decide("split-pool-wide", {"PrivatePool": True})
    assert shown(plan) == ("routed", "", "owner")
    assert plan.ip is Family.IPV6
    assert shown(decide("split-pool-wide")) == ("nat", ALL, "none")


def test_mpi() -> None:
    """The group's, if it asks; every port of the range and no other."""
    plan = decide("mpi", {"RequestedProfile": "mpi"}, group="hpc")
    assert (plan.connectivity, plan.peers) == (Connectivity.ROUTED, Peers.GROUP)
    assert plan.inbound is Inbound.PORTS
    expected = {f"tcp/{number}" for number in range(5000, 5032)} | {"udp/5000"}
    assert {str(port) for port in plan.ports} == expected
    with pytest.raises(PolicyRefusal, match="'nat', not 'mpi'"):
        decide("mpi", {"RequestedProfile": "mpi"})


def test_scitags() -> None:
    """A collector of flow labels reads experiment and activity back from the bits."""

    def read(label: int) -> tuple[int, int]:
        return int(f"{label >> 9 & 0x1FF:09b}"[::-1], 2), label >> 2 & 0x3F

    for cluster in (0, 4711, -1):
        ad: Ad = {"ClusterId": cluster}
        assert read(decide("scitags", ad, group="atlas.prod").flow_label) == (2, 1)
        label = decide("scitags", ad, group="cms").flow_label
        assert (read(label), label & 3) == ((3, 1), cluster & 3)
    assert read(decide("scitags", {"ClusterId": "x"}, group="cms").flow_label) == (3, 1)
    assert decide("scitags", group="cms", verified=False).flow_label == 0


def test_path() -> None:
    """Network and mark for the listed, and for nobody else."""
    plan = decide("path", owner="erin")
    assert (plan.connectivity, plan.network, plan.dscp) == (Connectivity.VLAN, "detour", 1)
    assert (decide("path").network, decide("path").dscp) == ("", 0)


def test_host() -> None:
    """Only under that name, and only from the batch system."""
    assert decide("host", owner="sitedaemon").connectivity is Connectivity.HOST
    assert decide("host", owner="sitedaemon", verified=False).connectivity is Connectivity.NAT
    assert decide("host").connectivity is Connectivity.NAT
