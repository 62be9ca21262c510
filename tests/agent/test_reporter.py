"""Collectors that take a connection and then do nothing: every wait of the reporter ends.

The reporter and the journal are the agent's own; what it waits for is made short, and the
collectors are real listeners that fall silent at one point each.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lark_agent.accounting.journal import Journal
from lark_agent.agent import reporter
from lark_agent.agent.link import Link
from lark_agent.agent.reporter import Reporter
from lark_agent.agent.tasks import OwnThread
from lark_agent.config.worker import CollectorLink
from lark_agent.errors import RemoteError, StoreError
from lark_agent.rpc.lark.v1 import report_pb2, report_pb2_grpc
from tests.accounting.test_journal import HERE, PLAN, START, record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MANY = 500
"""Records: more than HTTP/2 sends to who does not read."""


class NoClaims:
    """What a worker without shared quotas has of them."""

    def __init__(self) -> None:
        self.claimed = asyncio.Event()

    def take_claims(self, limit: int) -> list[Any]:
        return []


class Silent(report_pb2_grpc.CollectorServicer):
    """Falls silent before its welcome, or after it without reading on."""

    def __init__(self, *, welcomes: bool) -> None:
        self.welcomes = welcomes

    async def Report(  # noqa: N802  rpc name
        self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[report_pb2.CollectorMessage]:
        await anext(request_iterator)
        if self.welcomes:
            yield report_pb2.CollectorMessage(welcome=report_pb2.Welcome(protocol=1))
        await asyncio.sleep(60)


async def listen(stack: AsyncExitStack, kind: str) -> int:
    """Start a collector that falls silent; returns its port."""
    if kind == "deaf":
        server = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
        stack.callback(server.close)
        return int(server.sockets[0].getsockname()[1])
    speaking = grpc.aio.server()
    servicer = Silent(welcomes=kind == "reads nothing")  # type: ignore[abstract]  # one rpc is asked for
    report_pb2_grpc.add_CollectorServicer_to_server(servicer, speaking)
    port = speaking.add_insecure_port("127.0.0.1:0")
    await speaking.start()
    stack.push_async_callback(speaking.stop, None)
    return port


@pytest.mark.parametrize("kind", ["deaf", "says nothing", "reads nothing"])
def test_no_collector_holds_the_reporter_for_ever(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up with the reason, and stops when told to; the journal keeps everything."""
    monkeypatch.setattr(reporter, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(reporter, "_FIRST_PAUSE", 0.05)
    journal = Journal(tmp_path / "journal.sqlite")
    for number in range(MANY):
        journal.begin(record("o" * 200, START + number * 10**6), HERE, PLAN)

    async def report() -> None:
        async with AsyncExitStack() as stack:
            port = await listen(stack, kind)
            link = Link(CollectorLink(address=f"127.0.0.1:{port}", insecure=True), "worker1")
            thread = OwnThread("journal")
            stack.callback(thread.close)
            made = Reporter(
                link, "worker1", "0", journal, thread, asyncio.Event(),
                NoClaims(),  # type: ignore[arg-type]  # all that it asks of who meters
            )  # fmt: skip
            task = asyncio.create_task(made.run())
            async with asyncio.timeout(40):
                while made.state != "no answer within 0.5 s":  # noqa: ASYNC110  it is no event
                    await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                async with asyncio.timeout(5):
                    await task

    asyncio.run(report())
    assert journal.count_unacknowledged() == MANY
    journal.close()


def test_a_journal_on_a_full_disk_is_a_reason_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the collector acknowledged cannot be noted: it is said, and tried again."""

    def full(_journal: Journal, _mark: object) -> int:
        raise StoreError("cannot note the collector's mark: disk is full")

    monkeypatch.setattr(Journal, "resume", full)
    journal = Journal(tmp_path / "journal.sqlite")

    async def report() -> None:
        async with AsyncExitStack() as stack:
            port = await listen(stack, "reads nothing")
            link = Link(CollectorLink(address=f"127.0.0.1:{port}", insecure=True), "worker1")
            thread = OwnThread("journal")
            stack.callback(thread.close)
            made = Reporter(
                link, "worker1", "0", journal, thread, asyncio.Event(),
                NoClaims(),  # type: ignore[arg-type]  # all that it asks of who meters
            )  # fmt: skip
            task = asyncio.create_task(made.run())
            async with asyncio.timeout(40):
                while "disk is full" not in made.state:  # noqa: ASYNC110  it is no event
                    await asyncio.sleep(0.01)
            assert not task.done()
            task.cancel()

    asyncio.run(report())
    journal.close()


def test_a_stream_that_ended_between_two_messages_is_one_that_ended() -> None:
    """What gRPC calls an invalid state is the collector's end, with its words."""

    class Leaving(Silent):
        async def Report(  # noqa: N802  rpc name
            self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[report_pb2.CollectorMessage]:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "it stops")
            yield report_pb2.CollectorMessage()

    async def write() -> None:
        server = grpc.aio.server()
        servicer = Leaving(welcomes=True)  # type: ignore[abstract]  # one rpc is asked for
        report_pb2_grpc.add_CollectorServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = report_pb2_grpc.CollectorStub(channel).Report()
            async with asyncio.timeout(30):
                await call.code()
                with pytest.raises(RemoteError, match="ended the stream: it stops"):
                    await reporter._write(call, report_pb2.WorkerMessage())
        await server.stop(None)

    asyncio.run(write())
