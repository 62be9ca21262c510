"""Records, batches and running services for the collector's tests."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc

from lark_agent.collector.admission import Admission
from lark_agent.collector.answers import Answers
from lark_agent.collector.directory import Directory
from lark_agent.collector.ingest import CollectorServicer
from lark_agent.collector.ledger import Ledger
from lark_agent.collector.schema import open_engine
from lark_agent.collector.store import Store
from lark_agent.collector.writer import Writer
from lark_agent.model import (
    ClassUsage,
    Connectivity,
    Count,
    ExitReason,
    Job,
    Record,
    Scheduler,
    Usage,
    new_attachment_id,
)
from lark_agent.rpc.convert import record_to_wire
from lark_agent.rpc.convert_quotas import claim_to_wire, grant_from_wire
from lark_agent.rpc.lark.v1 import report_pb2, report_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    import sqlalchemy as sql

    from lark_agent.accounting.leases import Claim, Grant

HOUR = 3_600_000_000_000
T0 = 1_800_000_000_000_000_000 // HOUR * HOUR
"""A whole hour in 2027."""


def usage(classes: Mapping[str, int]) -> Usage:
    """So many bytes sent to each class, twice as many received, a packet for each 100 bytes."""
    return Usage(
        tuple(
            ClassUsage(name, Count(size // 100, size), Count(size // 50, 2 * size))
            for name, size in classes.items()
        )
    )


def record(number: int = 1, *, owner: str = "alice", worker: str = "w1", job: str = "") -> Record:
    """Describe the first record of a job that has moved nothing yet; `number` tells jobs apart."""
    return Record(
        attachment_id=new_attachment_id(T0 + number * 1_000_000, number.to_bytes(10, "big")),
        worker=worker,
        slot=number,
        job=Job(Scheduler.HTCONDOR, job or f"{number}.0", owner, 1001, "physics", verified=True),
        profile="nat",
        connectivity=Connectivity.NAT,
        started_ns=T0,
        sampled_ns=T0,
        first_port=10240,
        last_port=10591,
    )


def later(before: Record, classes: Mapping[str, int], *, after_ns: int = 10**10) -> Record:
    """Return the next record of a job."""
    return before.sampled(usage(classes), before.sampled_ns + after_ns)


def finished(before: Record) -> Record:
    """Return the final record of a job."""
    last = before.sampled(before.usage, before.sampled_ns + 10**9)
    return replace(
        last, ended_ns=last.sampled_ns, final=True, exit_reason=ExitReason.EXITED, exit_status=3
    )


def open_store(path: Path) -> tuple[sql.Engine, Store, Answers]:
    """Open the store in a file."""
    engine = open_engine(f"sqlite:///{path}")
    return engine, Store(engine), Answers(engine, lambda: T0 + 100 * HOUR)


class Worker:
    """A worker's end of one stream."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stream = report_pb2_grpc.CollectorStub(channel).Report(timeout=30)

    async def hello(
        self, name: str = "w1", protocol: int = 1, machine: str = ""
    ) -> report_pb2.Welcome:
        """Say hello; returns the welcome."""
        hello = report_pb2.Hello(protocol=protocol, worker=name, version="test", machine=machine)
        await self.stream.write(report_pb2.WorkerMessage(hello=hello))
        return (await self._answer()).welcome

    async def send(self, number: int, *records: Record) -> None:
        """Send a batch and wait for nothing."""
        batch = report_pb2.Batch(number=number, records=map(record_to_wire, records))
        await self.stream.write(report_pb2.WorkerMessage(batch=batch))

    async def claim(self, *claims: Claim) -> list[Grant]:
        """State leases and return the grants."""
        wire = report_pb2.Claims(number=1, claims=map(claim_to_wire, claims))
        await self.stream.write(report_pb2.WorkerMessage(claims=wire))
        return [grant_from_wire(grant) for grant in (await self._answer()).grants.grants]

    async def acknowledged(self) -> int:
        """Return the number of the next acknowledgement."""
        return (await self._answer()).acknowledgement.number

    async def _answer(self) -> report_pb2.CollectorMessage:
        answer = await self.stream.read()
        if answer is grpc.aio.EOF:
            raise await self.status()
        assert isinstance(answer, report_pb2.CollectorMessage)
        return answer

    async def status(self) -> grpc.aio.AioRpcError:
        """Return how the stream ended."""
        code, text = await self.stream.code(), await self.stream.details()
        metadata = grpc.aio.Metadata()
        return grpc.aio.AioRpcError(code, metadata, metadata, text)


@asynccontextmanager
async def collector(
    folder: Path, store: Store, hello_seconds: float = 10
) -> AsyncIterator[tuple[grpc.aio.Channel, Writer]]:
    """Serve a store to workers on a socket in `folder`; gives a channel to it and its writer.

    The book of quotas is a file of its own there.
    """
    engine = open_engine(f"sqlite:///{folder}/ledger.sqlite")
    writer, server = Writer(store, Ledger(engine)), grpc.aio.server()
    servicer = CollectorServicer(writer, Directory(), Admission(None), hello_seconds=hello_seconds)
    report_pb2_grpc.add_CollectorServicer_to_server(servicer, server)
    address = f"unix:{folder}/reports"
    server.add_insecure_port(address)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel, writer
    finally:
        await server.stop(0)
        await asyncio.wait_for(writer.close(), 30)
        engine.dispose()
