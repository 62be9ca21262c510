"""The policies of docs/policy.md do what the document says of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent.config import AgentSettings, parse
from lark_agent.errors import PolicyRefusal
from lark_agent.model import Job, Scheduler
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
    scheduler: Scheduler = Scheduler.HTCONDOR,
) -> NetworkPlan:
    job = Job(scheduler, "1.0", owner, 1001, group, verified)
    return GALLERY[name].plan(Asking(job, ad or {}, machine or {}))


def shown(plan: NetworkPlan) -> tuple[str, str, str]:
    reach = ALL if plan.reach is None else " ".join(sorted(plan.reach))
    return plan.connectivity.value, reach, plan.peers.value


def test_every_policy_is_exercised() -> None:
    """Each block of the gallery has its test below, and each test its block."""
    here = Path(__file__).read_text()
    assert len(GALLERY) >= 8
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


def test_lark() -> None:
    """The paper's attribute decides."""
    assert shown(decide("lark"))[0] == "nat"
    assert shown(decide("lark", {"OutboundConnectivity": False}))[0] == "none"
    assert shown(decide("lark", {"OutboundConnectivity": True}))[0] == "nat"


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
