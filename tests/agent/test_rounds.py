"""What an agent that runs repairs: journal and pool are real, the kernel is made up."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lark_agent.accounting.journal import Journal, Launch, Process
from lark_agent.agent import observing, rounds
from lark_agent.agent.reconcile import Dismantle, Kernel, Silence, Truncate, Why
from lark_agent.agent.rounds import Rounds
from lark_agent.agent.tasks import Tasks
from lark_agent.model import ExitReason
from lark_agent.sandbox.connectivity import Sandbox
from lark_agent.sandbox.pool import Pool
from tests.accounting.test_journal import PLAN, record
from tests.sandbox.test_pool import NAT, Paper

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lark_agent.agent.reconcile import Repair
    from lark_agent.sandbox.addressing import Addressing

SLOTS = 6


class Worker:
    """An agent's parts around `Rounds`; slot 0 is a job's, slot 1 ready, the others free."""

    slots = SLOTS

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.driver = Paper(NAT)
        self.living: dict[str, object] = {}
        self.silenced: list[int] = []
        self.tasks = Tasks()
        self.pool = Pool(
            {NAT: self.driver}, self.driver, {NAT: 0}, SLOTS, range(2, SLOTS), 0.0, here,
            lambda: asyncio.get_running_loop().time(),
        )  # fmt: skip
        self.pool.put_back(Sandbox(1, NAT.connectivity))
        self.rounds = Rounds(
            journal, self, self.pool, self, None, None, here, here, self.tasks,  # type: ignore[arg-type]  # stands for attachments and datapath
        )  # fmt: skip

    def deactivate(self, slot: int) -> None:
        self.silenced.append(slot)


async def here(work: Callable[[], Any]) -> Any:
    return work()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def look(
    monkeypatch: pytest.MonkeyPatch, worker: Worker, kernel: Callable[[], Kernel]
) -> tuple[Repair, ...]:
    """Let the worker look once at such a kernel, and dismantle what it condemned."""

    def leftover(slot: int, _numbers: Addressing) -> Sandbox:
        return Sandbox(slot, NAT.connectivity)

    monkeypatch.setattr(observing, "kernel", lambda *_: kernel())
    monkeypatch.setattr(rounds, "leftover", leftover)
    return asyncio.run(worker.rounds.look())


def test_what_is_nobodys_goes_and_the_rest_stays(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan and a link of free slots go; a job's slot and a ready one are not touched."""
    worker = Worker(journal)
    mine = replace(record(), slot=0)
    journal.begin(mine, Launch(members=(Process(1, 1, "b"),)), PLAN)
    worker.living[mine.attachment_id] = object()
    kernel = Kernel(
        "b", frozenset(), frozenset({0, 1, 3}), frozenset({0, 1}), True, frozenset({0, 4}),
        frozenset({(10, 0), (11, 1)}),
    )  # fmt: skip
    done = look(monkeypatch, worker, lambda: kernel)
    assert done == (Silence(4), Dismantle(3, ("namespace",)))
    assert worker.silenced == [4, 3]
    assert worker.pool.busy == {0, 1, 3, 4}
    asyncio.run(worker.pool._dismantle())
    assert sorted(slot for batch in worker.driver.batches for slot in batch) == [3, 4]
    assert worker.pool.busy == {0, 1}, "their slots serve jobs again"
    assert worker.tasks.errors == {"reconcile": 2}
    assert journal.living()[0].record == mine


def test_a_slot_taken_while_it_looks_is_let_be(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was free and is being built when the kernel is read is no leftover."""
    worker = Worker(journal)

    def kernel() -> Kernel:
        worker.pool._free.popleft()  # a builder takes slot 2, and makes its namespace
        return Kernel("b", namespaces=frozenset({2}))

    assert look(monkeypatch, worker, kernel) == ()
    assert worker.silenced == []


def test_a_slot_taken_before_it_repairs_is_let_be(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool does not give up a slot that somebody has taken after the comparison."""
    worker = Worker(journal)
    free = worker.pool._free

    def leftover(slot: int, _numbers: Addressing) -> Sandbox:
        assert free.popleft()[0] == slot  # between the comparison and the repair
        return Sandbox(slot, NAT.connectivity)

    monkeypatch.setattr(observing, "kernel", lambda *_: Kernel("b", plans=frozenset({2})))
    monkeypatch.setattr(rounds, "leftover", leftover)
    assert asyncio.run(worker.rounds.look()) == (Silence(2),)
    assert worker.silenced == []
    assert worker.pool.condemned == 0


def test_a_record_that_nobody_attends_is_closed(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open record that the agent does not know ends with its last durable totals."""
    worker = Worker(journal)
    lost = replace(record(), slot=5)
    journal.begin(lost, Launch(members=(Process(1, 1, "b"),)), PLAN)
    done = look(monkeypatch, worker, lambda: Kernel("b"))
    assert done == (Truncate(lost.attachment_id, Why.UNATTENDED),)
    (final,) = journal.unacknowledged(10)
    assert (final.final, final.exit_reason) == (True, ExitReason.TRUNCATED)
    assert journal.living() == []
