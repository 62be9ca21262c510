"""Every field of what a worker can say, spoiled: refused by name, and no rubbish is stored."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from lark_agent.accounting.questions import JobFilter
from lark_agent.model import new_attachment_id
from lark_agent.rpc.convert import record_to_wire
from lark_agent.rpc.lark.v1 import report_pb2
from tests.collector.world import T0, Worker, collector, later, open_store, record
from tests.rpc.spoiling import spoiled, texts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lark_agent.model import Record

SAYS_NO = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
HONEST = record(10**6, worker="honest")


def messages() -> dict[str, report_pb2.WorkerMessage]:
    """One valid message of each kind."""
    claim = report_pb2.Claim(
        lease=new_attachment_id(T0, bytes(10)), quota="monthly", scope="owner", subject="alice",
        period="2026-11", limit=10**9, action="notify", wanted=True,
    )  # fmt: skip
    batch = report_pb2.Batch(number=1, records=[record_to_wire(later(record(), {"other": 100}))])
    hello = report_pb2.Hello(protocol=1, worker="w1", version="test", machine="m")
    return {
        "hello": report_pb2.WorkerMessage(hello=hello),
        "batch": report_pb2.WorkerMessage(batch=batch),
        "claims": report_pb2.WorkerMessage(claims=report_pb2.Claims(number=1, claims=[claim])),
    }


def cases(kind: str) -> Iterator[tuple[str, report_pb2.WorkerMessage]]:
    """Spoil a message; a record that is not spoiled in its name gets one of its own."""
    valid = messages()[kind]
    name = valid.batch.records[0].attachment_id if valid.batch.records else ""
    for number, (done, message) in enumerate(spoiled(valid)):
        for each in message.batch.records:
            if each.attachment_id == name:
                fresh = new_attachment_id(T0 + number * 10**6, number.to_bytes(10, "big"))
                each.attachment_id = fresh
        yield f"{number}: {done}", message


async def say(channel: grpc.aio.Channel, message: report_pb2.WorkerMessage) -> grpc.StatusCode:
    """Say one message to a collector, after hello if it is none; returns how the stream ends."""
    worker = Worker(channel)
    if not message.HasField("hello"):
        await worker.hello()
    await worker.stream.write(message)
    try:
        await worker.stream.read()
        await worker.stream.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # refused: the code says how
    code = await worker.stream.code()
    assert isinstance(code, grpc.StatusCode)
    return code


def test_every_kind_of_message_is_spoiled() -> None:
    """A kind that is added to the protocol needs a valid message here."""
    kinds = report_pb2.WorkerMessage.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert {field.name for field in kinds} == set(messages())


@pytest.mark.parametrize("kind", ["hello", "batch", "claims"])
def test_a_spoiled_field_is_refused_and_the_next_worker_served(kind: str, tmp_path: Path) -> None:
    """Each stream ends well or is refused on purpose; an honest worker is served afterwards.

    What the store has then is free of anything that would garble a terminal or fill a page.
    """
    ends: dict[str, grpc.StatusCode] = {}
    engine, store, answers = open_store(tmp_path / "u.sqlite")

    async def talk() -> None:
        async with collector(tmp_path, store) as (channel, _):
            for done, message in cases(kind):
                ends[done] = await say(channel, message)
            honest = Worker(channel)
            await honest.hello("honest")
            await honest.send(1, HONEST)
            assert await honest.acknowledged() == 1

    try:
        asyncio.run(talk())
        stored: list[Record] = list(answers.list_jobs(JobFilter(), None, 10_000, ""))
    finally:
        engine.dispose()
    strange = {d: code for d, code in ends.items() if code not in SAYS_NO | {grpc.StatusCode.OK}}
    assert strange == {}
    assert set(ends.values()) >= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
    assert HONEST in stored
    words = [text for each in stored for text in texts(record_to_wire(each))]
    assert [word[:60] for word in words if not word.isprintable() or len(word) > 256] == []
