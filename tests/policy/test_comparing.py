"""When a plan allows no more than another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lark_agent.model import Connectivity, Family, Inbound, NetworkPlan, Peers, Port, Rates
from lark_agent.policy.comparing import no_more_than

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = st.frozensets(st.sampled_from("abc"))
PORTS = st.lists(st.sampled_from([Port("tcp", 1), Port("tcp", 2), Port("udp", 1)]), unique=True)
RATES = st.builds(Rates, st.sampled_from([0, 5, 10]), st.sampled_from([0, 5, 10]))
PLANS = st.builds(
    NetworkPlan,
    profile=st.just("p"),
    connectivity=st.sampled_from([Connectivity.NAT, Connectivity.NONE, Connectivity.BRIDGE]),
    network=st.sampled_from(["", "lab"]),
    ip=st.sampled_from(Family),
    reach=st.none() | NAMES,
    peers=st.sampled_from(Peers),
    inbound=st.sampled_from(Inbound),
    ports=PORTS.map(lambda ports: tuple(sorted(ports))),
    services=st.none() | NAMES,
    rate=RATES,
    guarantee=RATES,
    queue=st.sampled_from(["", "cms"]),
    priority=st.sampled_from([0, 4, 7]),
    dscp=st.sampled_from([0, 1, 8, 46]),
    flow_label=st.sampled_from([0, 4]),
    quotas=NAMES.map(lambda names: tuple(sorted(names))),
    cut=st.booleans(),
)

Narrowing = tuple[str, "Callable[[NetworkPlan], dict[str, Any]]"]
NARROWER: list[Narrowing] = [
    ("no network", lambda _: {"connectivity": Connectivity.NONE, "network": "", "services": None}),
    ("nowhere", lambda _: {"reach": frozenset()}),
    ("no peers", lambda _: {"peers": Peers.NONE}),
    ("nothing in", lambda _: {"inbound": Inbound.NONE, "ports": ()}),
    ("fewer ports", lambda plan: {"ports": plan.ports[1:]}),
    ("no services", lambda _: {"services": frozenset()}),
    ("half the rate", lambda plan: {"rate": Rates(plan.rate.sent // 2 or 3, plan.rate.received)}),
    ("no guarantee", lambda _: {"guarantee": Rates()}),
    ("last", lambda _: {"priority": 7}),
    ("lower effort", lambda _: {"dscp": 1}),
    ("no label", lambda _: {"flow_label": 0}),
    ("every quota", lambda _: {"quotas": ("a", "b", "c")}),
    ("cut", lambda _: {"cut": True}),
]

WIDER: list[tuple[NetworkPlan, dict[str, Any]]] = [
    (NetworkPlan("p", Connectivity.NONE), {"connectivity": Connectivity.NAT}),
    (NetworkPlan("p", Connectivity.NONE), {"services": frozenset({"squid"})}),
    (NetworkPlan("p", Connectivity.NAT), {"connectivity": Connectivity.HOST}),
    (NetworkPlan("p", Connectivity.BRIDGE, "lab"), {"network": "office"}),
    (NetworkPlan("p", Connectivity.NAT, ip=Family.IPV4), {"ip": Family.ANY}),
    (NetworkPlan("p", Connectivity.NAT, ip=Family.IPV4), {"ip": Family.IPV6}),
    (NetworkPlan("p", Connectivity.NAT, reach=frozenset({"a"})), {"reach": frozenset("ab")}),
    (NetworkPlan("p", Connectivity.NAT, reach=frozenset({"a"})), {"reach": None}),
    (NetworkPlan("p", Connectivity.NAT, peers=Peers.OWNER), {"peers": Peers.GROUP}),
    (NetworkPlan("p", Connectivity.NAT, peers=Peers.GROUP), {"peers": Peers.ALL}),
    (NetworkPlan("p", Connectivity.NAT, inbound=Inbound.NONE), {"inbound": Inbound.ESTABLISHED}),
    (NetworkPlan("p", Connectivity.NAT), {"inbound": Inbound.PORTS, "ports": (Port("tcp", 1),)}),
    (NetworkPlan("p", Connectivity.NAT, inbound=Inbound.PORTS), {"inbound": Inbound.ALL}),
    (NetworkPlan("p", Connectivity.NAT, inbound=Inbound.PORTS), {"ports": (Port("udp", 1),)}),
    (NetworkPlan("p", Connectivity.NAT, services=frozenset()), {"services": frozenset("a")}),
    (NetworkPlan("p", Connectivity.NAT, services=frozenset("a")), {"services": None}),
    (NetworkPlan("p", Connectivity.NAT, rate=Rates(5, 5)), {"rate": Rates(5, 6)}),
    (NetworkPlan("p", Connectivity.NAT, rate=Rates(5, 5)), {"rate": Rates(0, 5)}),
    (NetworkPlan("p", Connectivity.NAT), {"guarantee": Rates(0, 1)}),
    (NetworkPlan("p", Connectivity.NAT), {"queue": "cms"}),
    (NetworkPlan("p", Connectivity.NAT), {"priority": 3}),
    (NetworkPlan("p", Connectivity.NAT), {"dscp": 46}),
    (NetworkPlan("p", Connectivity.NAT, dscp=8), {"dscp": 0}),
    (NetworkPlan("p", Connectivity.NAT), {"flow_label": 4}),
    (NetworkPlan("p", Connectivity.NAT, quotas=("a", "b")), {"quotas": ("b",)}),
    (NetworkPlan("p", Connectivity.NAT, cut=True), {"cut": False}),
]


@given(PLANS)
def test_a_plan_allows_no_more_than_itself(plan: NetworkPlan) -> None:
    """Who asks for what the rules give anyway gets it."""
    assert no_more_than(plan, plan)


@given(PLANS, PLANS, PLANS, st.sampled_from(NARROWER), st.sampled_from(NARROWER))
def test_less_than_less_is_less(
    one: NetworkPlan, two: NetworkPlan, plan: NetworkPlan, first: Narrowing, second: Narrowing
) -> None:
    """No detour through a plan between gives a job more than it could ask for at once."""
    # plans made by narrowing are comparable, independent ones hardly ever
    near = replace(plan, **first[1](plan))
    nearer = replace(near, **second[1](near))
    for least, less, more in ((one, two, plan), (nearer, near, plan), (one, near, plan)):
        if no_more_than(least, less) and no_more_than(less, more):
            assert no_more_than(least, more)


@given(PLANS, st.sampled_from(NARROWER))
def test_a_plan_with_one_setting_narrowed_is_never_more(
    plan: NetworkPlan, narrower: Narrowing
) -> None:
    """Whatever else the plan says."""
    assert no_more_than(replace(plan, **narrower[1](plan)), plan)


@pytest.mark.parametrize(("plan", "wider"), WIDER, ids=["-".join(wider) for _, wider in WIDER])
def test_a_plan_with_one_setting_widened_is_more(plan: NetworkPlan, wider: dict[str, Any]) -> None:
    """Each setting alone is enough to need the site's word."""
    assert not no_more_than(replace(plan, **wider), plan)


def test_every_setting_is_compared() -> None:
    """A setting that nobody compares would be one that jobs can take for themselves."""
    compared = {setting for _, wider in WIDER for setting in wider}
    # where a code point comes from allows nothing; the code point is compared
    fields = set(NetworkPlan.__dataclass_fields__) - {"profile", "dscp_of_priority"}
    assert compared == fields
