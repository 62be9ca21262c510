"""What traffic costs: exact over any number of samples, and never priced anew."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lark_agent.accounting.answers import Answers
from lark_agent.accounting.journal import Journal, Launch, Process
from lark_agent.accounting.prices import Prices
from lark_agent.accounting.questions import GroupBy, JobFilter
from lark_agent.collector.answers import Answers as CollectorAnswers
from lark_agent.collector.schema import open_engine
from lark_agent.collector.store import Store
from lark_agent.config import Price
from lark_agent.model import ClassUsage, Connectivity, Count, NetworkPlan, Record, Usage
from tests.collector.world import record

if TYPE_CHECKING:
    from pathlib import Path

GB = 10**9
CLOUD = Prices.of({"cloud": Price(sent=0.09, received=0.01)})


def usage(sent: int, received: int, name: str = "cloud") -> Usage:
    return Usage((ClassUsage(name, Count(1, sent), Count(1, received)),))


def priced(first: Record, prices: Prices, *steps: Usage) -> list[Record]:
    found = [first]
    for number, step in enumerate(steps, 1):
        last = found[-1]
        now = last.sampled_ns + number * 10**9
        found.append(last.sampled(prices.priced(last.usage, step), now))
    return found


def test_a_gb_costs_its_price() -> None:
    """2 GB sent at 0.09 and 3 GB received at 0.01 cost 0.21, in millionths; other classes none."""
    assert CLOUD.priced(Usage(), usage(2 * GB, 3 * GB)).cost == 210_000
    assert CLOUD.priced(Usage(), usage(2 * GB, 3 * GB, "campus")).cost == 0


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)), max_size=40))
def test_however_often_it_is_sampled(steps: list[tuple[int, int]]) -> None:
    """Many small samples cost what one large one does, to the millionth below."""
    sent = received = 0
    before = Usage()
    for more_sent, more_received in steps:
        sent, received = sent + more_sent, received + more_received
        before = CLOUD.priced(before, usage(sent, received))
    exact = (Fraction(sent) * 90_000 + Fraction(received) * 10_000) / GB
    assert before.cost == exact // 1


def test_a_new_price_holds_for_what_moves_from_then_on() -> None:
    """The first GB keeps its price when the second becomes dearer or free."""
    first = CLOUD.priced(Usage(), usage(GB, 0))
    dearer = Prices.of({"cloud": Price(sent=1.0)}).priced(first, usage(2 * GB, 0))
    assert (first.cost, dearer.cost) == (90_000, 1_090_000)
    assert Prices({}).priced(dearer, usage(9 * GB, 0)).cost == 1_090_000


@pytest.mark.parametrize("kind", ["journal", "store"])
def test_totals_add_up_what_jobs_cost(tmp_path: Path, kind: str) -> None:
    """Summed by class, owner or not at all, the cost of totals is the cost of the records."""
    mixed = Usage((*usage(3 * GB, 0).classes, *usage(5 * GB, 0, "campus").classes))
    steps = priced(record(), CLOUD, usage(GB, 0), mixed)
    source: Answers | CollectorAnswers
    if kind == "journal":
        journal = Journal(tmp_path / "journal.sqlite")
        launch = Launch(members=(Process(1, 1, "boot"),))
        journal.begin(steps[0], launch, NetworkPlan("nat", Connectivity.NAT))
        for step in steps[1:]:
            journal.save([step])
        source = Answers(tmp_path / "journal.sqlite")
    else:
        engine = open_engine(f"sqlite:///{tmp_path}/usage.sqlite")
        for number, step in enumerate(steps, 1):
            assert Store(engine).apply([(step,)]) == [number]
        source = CollectorAnswers(engine)
    (kept,) = source.list_jobs(JobFilter(), None, 10, "")
    assert kept == steps[-1]
    assert kept.cost == 270_000
    by_class = source.totals((GroupBy.CLASS,), JobFilter(), None).rows
    assert {row.key: row.cost for row in by_class} == {("cloud",): 270_000, ("campus",): 0}
    assert [row.cost for row in source.totals((), JobFilter(), None).rows] == [270_000]
    assert [row.cost for row in source.totals((GroupBy.OWNER,), JobFilter(), "bob").rows] == []


def test_a_cost_that_falls_is_refused(tmp_path: Path) -> None:
    """A worker cannot make its jobs' past cheaper."""
    engine = open_engine(f"sqlite:///{tmp_path}/usage.sqlite")
    dear = priced(record(), CLOUD, usage(GB, 0))[-1]
    cheap = dear.sampled(usage(GB, 0), dear.sampled_ns + 1)
    (verdict,) = Store(engine).apply([(dear, cheap)])
    assert "cost of class 'cloud' fell" in str(verdict)
