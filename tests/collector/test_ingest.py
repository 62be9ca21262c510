"""Streams of workers: acknowledged means durable, and nothing hostile gets in."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lark_agent.accounting.questions import JobFilter
from lark_agent.collector.schema import StoreFullError
from lark_agent.errors import StoreError
from lark_agent.rpc.convert import record_to_wire
from lark_agent.rpc.lark.v1 import report_pb2
from tests.collector.world import Worker, collector, finished, later, open_store, record

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from lark_agent.accounting.marks import Mark
    from lark_agent.collector.store import Batch, Store
    from lark_agent.model import Record


def served(
    folder: Path, talk: Callable[[grpc.aio.Channel], Coroutine[Any, Any, None]], **options: float
) -> list[Record]:
    """Hold a conversation with a collector over the store in `folder`; returns what is stored."""

    async def serve(store: Store) -> None:
        async with collector(folder, store, **options) as (channel, _):
            await talk(channel)

    engine, store, answers = open_store(folder / "u.sqlite")
    try:
        asyncio.run(serve(store))
        return list(answers.list_jobs(JobFilter(), None, 10_000, ""))
    finally:
        engine.dispose()


async def refusal(worker: Worker) -> tuple[grpc.StatusCode, str]:
    status = await worker.status()
    return status.code(), status.details() or ""


def test_every_acknowledged_batch_is_stored(tmp_path: Path) -> None:
    """Acknowledgements carry the batch numbers in order, and what they cover is in the store."""
    first = record()
    second = later(first, {"other": 100})

    async def talk(channel: grpc.aio.Channel) -> None:
        worker = Worker(channel)
        assert (await worker.hello()).protocol == 1
        await worker.send(7, first)
        await worker.send(8, second, record(2))
        await worker.send(9)
        assert [await worker.acknowledged() for _ in range(3)] == [7, 8, 9]

    assert served(tmp_path, talk) == [record(2), second]


def test_a_collector_that_restarts_mid_stream_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """A worker that repeats what was not acknowledged to the next collector ends exact."""
    first = later(record(), {"other": 100})
    last = finished(later(first, {"other": 350}))

    async def cut_off(channel: grpc.aio.Channel) -> None:
        worker = Worker(channel)
        await worker.hello()
        await worker.send(1, first)
        await worker.acknowledged()
        await worker.send(2, last)  # nobody waits for its acknowledgement

    async def again(channel: grpc.aio.Channel) -> None:
        worker = Worker(channel)
        await worker.hello()
        await worker.send(1, last)
        assert await worker.acknowledged() == 1

    served(tmp_path, cut_off)
    assert served(tmp_path, again) == [last]
    engine, _, answers = open_store(tmp_path / "u.sqlite")
    assert answers.totals([], JobFilter(), None).rows[0].sent.bytes == 350
    engine.dispose()


def test_many_workers_at_once_are_all_stored(tmp_path: Path) -> None:
    """Forty streams in parallel share transactions and each gets its own acknowledgements."""

    async def one(channel: grpc.aio.Channel, number: int) -> None:
        worker, name = Worker(channel), f"w{number}"
        await worker.hello(name)
        for batch in range(5):
            await worker.send(batch, record(100 * number + batch, worker=name))
            assert await worker.acknowledged() == batch

    async def talk(channel: grpc.aio.Channel) -> None:
        await asyncio.gather(*(one(channel, number) for number in range(40)))

    assert len(served(tmp_path, talk)) == 200


@pytest.mark.parametrize("protocol", [0, 2])
def test_another_protocol_version_is_refused(tmp_path: Path, protocol: int) -> None:
    """The text names both versions and what to do."""

    async def talk(channel: grpc.aio.Channel) -> None:
        worker = Worker(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="upgrade") as caught:
            await worker.hello(protocol=protocol)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert f"protocol {protocol}" in (caught.value.details() or "")
        assert "protocol 1" in (caught.value.details() or "")

    served(tmp_path, talk)


@pytest.mark.parametrize("name", ["", "a b", "-x", "w\n1", "x" * 256, "../etc"])
def test_a_worker_without_a_proper_name_is_refused(tmp_path: Path, name: str) -> None:
    """What is no host name cannot say hello."""

    async def talk(channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="host name") as caught:
            await Worker(channel).hello(name)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    served(tmp_path, talk)


def test_hello_comes_first(tmp_path: Path) -> None:
    """A stream that starts with a batch, or with nothing, is refused."""

    async def talk(channel: grpc.aio.Channel) -> None:
        eager, silent = Worker(channel), Worker(channel)
        await eager.send(1, record())
        await silent.stream.done_writing()
        for worker in (eager, silent):
            code, text = await refusal(worker)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "hello" in text

    assert served(tmp_path, talk) == []


def test_hello_comes_soon(tmp_path: Path) -> None:
    """A stream without hello is ended after the time for it."""

    async def talk(channel: grpc.aio.Channel) -> None:
        worker = Worker(channel)
        await worker.stream.wait_for_connection()
        code, text = await refusal(worker)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "0.05 seconds" in text

    served(tmp_path, talk, hello_seconds=0.05)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ([record(1, worker="w2")], "'w2'"),
        ([record(1), replace(record(2), attachment_id="x")], "UUIDv7"),
        ([record(1), replace(record(2), profile="\a")], "control"),
        ([record(1)] * 2001, "at most 2000"),
    ],
)
def test_a_hostile_batch_is_refused_whole(tmp_path: Path, batch: list[Record], says: str) -> None:
    """One bad record refuses the batch with its reason; nothing of it is stored."""

    async def talk(channel: grpc.aio.Channel) -> None:
        worker = Worker(channel)
        await worker.hello()
        await worker.send(1, *batch)
        code, text = await refusal(worker)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert says in text

    assert served(tmp_path, talk) == []


def test_a_worker_cannot_take_over_anothers_attachment(tmp_path: Path) -> None:
    """A record with a stored attachment id from another worker is refused, and nothing changes."""
    mine = later(record(), {"other": 100})

    async def talk(channel: grpc.aio.Channel) -> None:
        owner, thief = Worker(channel), Worker(channel)
        await owner.hello("w1")
        await owner.send(1, mine)
        assert await owner.acknowledged() == 1
        await thief.hello("w2")
        await thief.send(1, replace(later(mine, {"other": 200}), worker="w2"))
        code, text = await refusal(thief)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "belongs to w1" in text
        await owner.send(2, mine)
        assert await owner.acknowledged() == 2, "the other stream goes on"

    assert served(tmp_path, talk) == [mine]


def test_after_hello_only_batches_are_taken(tmp_path: Path) -> None:
    """A second hello and an empty message end the stream."""

    async def talk(channel: grpc.aio.Channel) -> None:
        for message in (
            report_pb2.WorkerMessage(hello=report_pb2.Hello(protocol=1, worker="w2")),
            report_pb2.WorkerMessage(),
        ):
            worker = Worker(channel)
            await worker.hello()
            await worker.stream.write(message)
            code, text = await refusal(worker)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "must be a batch" in text

    served(tmp_path, talk)


def test_a_message_that_is_too_large_ends_only_its_stream(tmp_path: Path) -> None:
    """What is above the limit of gRPC is refused, and the collector goes on."""

    async def talk(channel: grpc.aio.Channel) -> None:
        worker = Worker(channel)
        await worker.hello()
        wire = record_to_wire(record())
        wire.profile = "x" * (5 << 20)
        batch = report_pb2.Batch(number=1, records=[wire])
        await worker.stream.write(report_pb2.WorkerMessage(batch=batch))
        code, _ = await refusal(worker)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        other = Worker(channel)
        await other.hello()
        await other.send(1, record())
        assert await other.acknowledged() == 1

    assert served(tmp_path, talk) == [record()]


class Failing:
    """A store whose next writes fail as told."""

    def __init__(self, store: Store, *failures: Exception) -> None:
        self._store, self._failures = store, list(failures)

    def mark(self, worker: str) -> Mark:
        return self._store.mark(worker)

    def apply(self, batches: list[Batch]) -> Any:
        if self._failures:
            raise self._failures.pop(0)
        return self._store.apply(batches)

    def probe(self, now_ns: int) -> None:
        self._store.probe(now_ns)


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (StoreFullError("cannot store: full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (StoreError("cannot store: locked"), grpc.StatusCode.UNAVAILABLE),
        (ZeroDivisionError("a bug"), grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_a_failing_store_acknowledges_nothing_and_recovers(
    tmp_path: Path, failure: Exception, code: grpc.StatusCode
) -> None:
    """The stream ends with the status for it; reporting again once the store is well succeeds."""

    async def talk() -> None:
        failing = Failing(store, failure)
        async with collector(tmp_path, failing) as (channel, writer):  # type: ignore[arg-type]  # stands in for Store
            worker = Worker(channel)
            await worker.hello()
            await worker.send(1, record())
            ended, text = await refusal(worker)
            assert ended is code
            assert "not stored" in text
            assert writer.failure is not None
            again = Worker(channel)
            await again.hello()
            await again.send(1, record())
            assert await again.acknowledged() == 1
            assert writer.failure is None

    engine, store, answers = open_store(tmp_path / "u.sqlite")
    asyncio.run(talk())
    assert list(answers.list_jobs(JobFilter(), None, 10, "")) == [record()]
    engine.dispose()


def test_what_waits_when_the_writer_closes_is_still_written(tmp_path: Path) -> None:
    """Closing writes the queue out; afterwards nothing is taken."""

    async def talk() -> None:
        async with collector(tmp_path, store) as (_, writer):
            writes = [asyncio.create_task(writer.write((record(n),))) for n in range(20)]
            await asyncio.sleep(0)  # let each task queue its batch
            await writer.close()
            await asyncio.gather(*writes)
            with pytest.raises(StoreError, match="stopping"):
                await writer.write((record(99),))

    engine, store, answers = open_store(tmp_path / "u.sqlite")
    asyncio.run(talk())
    assert len(answers.list_jobs(JobFilter(), None, 100, "")) == 20
    engine.dispose()
