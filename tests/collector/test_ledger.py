"""The collector's book of quotas: durable, shared by workers, closed to what cannot be."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest
from structlog.testing import capture_logs

from lark_agent.accounting.leases import Claim, Grant
from lark_agent.accounting.quotas import PoolKey
from lark_agent.collector.answers import Answers
from lark_agent.collector.ledger import DAY_NS, Ledger, WorkerClaims
from lark_agent.collector.schema import open_engine
from lark_agent.model import new_attachment_id
from lark_agent.rpc.convert import InvalidRecord
from tests.collector.world import T0, Worker, collector, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = PoolKey("cloud", "owner", "alice", "2026-11")
MB = 10**6
LIMIT = 100 * MB


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    engine = open_engine(f"sqlite:///{tmp_path}/usage.sqlite")
    yield Ledger(engine)
    engine.dispose()


def lease(number: int) -> str:
    return new_attachment_id(T0, number.to_bytes(10, "big"))


def claim(number: int = 1, granted: int = 0, used: int = 0, **flags: bool) -> Claim:
    return Claim(lease(number), KEY, LIMIT, "cut-all", granted, used, **flags)


def take(ledger: Ledger, told: Claim, worker: str = "w1", now_ns: int = T0) -> Grant:
    (answer,) = ledger.settle([WorkerClaims(worker, (told,))], now_ns)
    assert isinstance(answer, list), answer
    return answer[0]


def test_workers_share_one_pool(ledger: Ledger) -> None:
    """Two workers that use all they get together use the limit, and both are told of its end."""
    held = {1: 0, 2: 0}
    for _ in range(40):
        for number, granted in held.items():
            told = claim(number, granted, granted, wanted=True)
            answer = take(ledger, told, f"w{number}")
            held[number] = answer.granted
    assert sum(held.values()) == LIMIT
    assert min(held.values()) > LIMIT // 5
    assert take(ledger, claim(1, held[1], held[1], wanted=True)).exhausted


def test_the_book_survives_a_restart(tmp_path: Path) -> None:
    """What was granted before is known after, so the rest is all that can be had."""
    engine = open_engine(f"sqlite:///{tmp_path}/usage.sqlite")
    first = take(Ledger(engine), claim(1, wanted=True))
    engine.dispose()
    engine = open_engine(f"sqlite:///{tmp_path}/usage.sqlite")
    again = take(Ledger(engine), claim(1, wanted=True))
    engine.dispose()
    assert again == first == Grant(lease(1), LIMIT // 2)


def test_subjects_and_periods_are_apart(ledger: Ledger) -> None:
    """Bob, and alice's next month, have all of theirs."""
    take(ledger, claim(1, wanted=True))
    others = [KEY._replace(subject="bob"), KEY._replace(period="2026-12"),
              KEY._replace(scope="group"), KEY._replace(quota="wan")]  # fmt: skip
    for number, key in enumerate(others, 2):
        told = replace(claim(number, wanted=True), key=key)
        assert take(ledger, told).granted == LIMIT // 2


def test_the_smallest_limit_holds(ledger: Ledger) -> None:
    """A worker with an older configuration cannot raise the limit; the log names it."""
    assert take(ledger, replace(claim(1, wanted=True), limit=10 * MB)).granted == 5 * MB
    with capture_logs() as logs:
        take(ledger, claim(2, wanted=True), "w2")
    assert [entry["smallest"] for entry in logs] == [10 * MB]
    held = {2: 2.5 * MB}
    for _ in range(20):
        told = claim(2, int(held[2]), int(held[2]), wanted=True)
        held[2] = take(ledger, told, "w2").granted
    assert held[2] == 5 * MB
    # a worker that was not seen for a day has no say any more
    later = take(ledger, claim(2, 5 * MB, 5 * MB, wanted=True), "w2", T0 + 2 * DAY_NS)
    assert later.granted > 5 * MB


def test_closed_leases_are_forgotten_and_stay_counted(ledger: Ledger) -> None:
    """A day after it closed a lease's row goes; what it used is still taken from the pool."""
    granted = take(ledger, claim(1, wanted=True)).granted
    take(ledger, claim(1, granted, 30 * MB, closed=True))
    take(ledger, claim(2), now_ns=T0 + 2 * DAY_NS)
    held = 0
    for _ in range(60):
        held = take(ledger, claim(2, held, held, wanted=True), now_ns=T0 + 2 * DAY_NS).granted
    assert held == 70 * MB


def test_another_workers_lease_is_refused(ledger: Ledger) -> None:
    """Nothing of such a message holds, and others in the same transaction are not hurt."""
    take(ledger, claim(1, wanted=True), "w1")
    stolen = WorkerClaims("w2", (claim(2, wanted=True), claim(1, 0, 50 * MB, closed=True)))
    refused, fine = ledger.settle([stolen, WorkerClaims("w3", (claim(3, wanted=True),))], T0)
    assert isinstance(refused, InvalidRecord)
    assert isinstance(fine, list)
    assert take(ledger, claim(1)).granted == LIMIT // 2
    assert fine[0].granted == LIMIT // 2 // 4


@pytest.mark.parametrize(
    "broken",
    [
        replace(claim(), lease="x"), replace(claim(), key=KEY._replace(scope="job")),
        replace(claim(), key=KEY._replace(period="today")), replace(claim(), limit=2**62),
        replace(claim(), action="explode"), replace(claim(), key=KEY._replace(subject="a\x1bb")),
    ],
)  # fmt: skip
def test_over_the_wire(tmp_path: Path, broken: Claim) -> None:
    """Claims are answered beside batches; one that breaks a rule ends the stream with its name."""

    async def talk() -> None:
        engine, store, _ = open_store(tmp_path / "u.sqlite")
        async with collector(tmp_path, store) as (channel, _):
            worker = Worker(channel)
            assert (await worker.hello()).leases
            grants = await worker.claim(claim(1, wanted=True), claim(2, wanted=True))
            assert [grant.granted for grant in grants] == [LIMIT // 2, LIMIT // 2 // 4]
            await worker.send(3)
            assert await worker.acknowledged() == 3
            with pytest.raises(grpc.aio.AioRpcError, match="claim") as caught:
                await worker.claim(broken)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        engine.dispose()

    asyncio.run(talk())


def test_a_pool_is_used_up_when_a_packet_did_not_fit(tmp_path: Path) -> None:
    """What is left is less than a packet, and people are told, also when that is given back."""
    engine = open_engine(f"sqlite:///{tmp_path}/usage.sqlite")
    ledger, answers = Ledger(engine), Answers(engine)
    noon = 1_795_000_000 * 10**9  # in November 2026
    held = 0
    for _ in range(30):
        held = take(ledger, claim(1, held, max(0, held - 7), wanted=True), now_ns=noon).granted
    dry = replace(claim(1, held, held - 7), dry=True)
    assert take(ledger, dry).exhausted
    (found,) = answers.quotas("alice", noon)
    assert (found.used_up, found.used, found.granted, found.workers) == (True, LIMIT - 7, LIMIT, 1)
    take(ledger, replace(dry, closed=True), now_ns=noon)
    (found,) = answers.quotas("alice", noon)
    assert (found.used_up, found.left, found.workers) == (True, 7, 0)
    assert answers.quotas("bob", noon) == []
    assert answers.quotas(None, noon + 40 * DAY_NS) == []
    engine.dispose()


def test_a_pool_that_got_something_back_is_not_used_up(tmp_path: Path) -> None:
    """One worker's packet did not fit while another held the rest: until that is given back."""
    engine = open_engine(f"sqlite:///{tmp_path}/usage.sqlite")
    ledger, answers = Ledger(engine), Answers(engine)
    noon = 1_795_000_000 * 10**9  # in November 2026

    def used_up() -> bool:
        (found,) = answers.quotas("alice", noon)
        return found.used_up

    held = 0
    for _ in range(30):
        held = take(ledger, claim(1, held, held // 2, wanted=True), now_ns=noon).granted
    assert held == LIMIT
    assert not used_up()
    take(ledger, claim(2, wanted=True, dry=True), "w2", noon)
    assert used_up()
    take(ledger, claim(1, held, held // 2, closed=True), now_ns=noon)
    assert not used_up()
    engine.dispose()


def test_a_worker_that_waits_for_its_first_grant_has_used_nothing_up(tmp_path: Path) -> None:
    """Its packet came before the answer; the pool, smaller than a chunk, is granted at once."""
    engine = open_engine(f"sqlite:///{tmp_path}/usage.sqlite")
    noon = 1_795_000_000 * 10**9  # in November 2026
    small = replace(claim(1, wanted=True, dry=True), limit=MB // 2)
    assert take(Ledger(engine), small, now_ns=noon).granted == MB // 2
    (found,) = Answers(engine).quotas("alice", noon)
    assert (found.used_up, found.left) == (False, MB // 2)
    engine.dispose()
