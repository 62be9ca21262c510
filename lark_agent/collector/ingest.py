"""The workers' streams: hello, then batches and claims, each answered when it is durable.

A stream is read one message at a time and the next only after the last was answered, so a worker
that sends faster than the disk writes is slowed down by HTTP/2's own flow control and never costs
more memory than one batch. Nothing about a stream outlives it: a worker that comes back repeats
what it has no acknowledgement for, and the store finds what it already has.

How a stream ends tells the worker what to do:

=================== ===================================================================
INVALID_ARGUMENT    the worker sent what no collector takes; repeating it will not help
FAILED_PRECONDITION another protocol version: upgrade one side
DEADLINE_EXCEEDED   no hello in time
ALREADY_EXISTS      another machine reports under this name, see `admission` for this and the next
UNAUTHENTICATED     the certificate names no worker, or is over
PERMISSION_DENIED   another worker's name, or the worker was revoked or replaced
RESOURCE_EXHAUSTED  the store is full: nothing was acknowledged, come back later
UNAVAILABLE         the store cannot be written, or the collector stops: come back later
=================== ===================================================================
"""

from __future__ import annotations

import asyncio
from importlib import metadata
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import structlog

from lark_agent import trouble
from lark_agent.collector import enrolling
from lark_agent.collector.enrolling import PROTOCOL, WORKER
from lark_agent.collector.ledger import WorkerClaims
from lark_agent.collector.schema import StoreFullError
from lark_agent.errors import StoreError
from lark_agent.rpc.convert import InvalidRecord, record_from_wire
from lark_agent.rpc.convert_quotas import claim_from_wire, grant_to_wire
from lark_agent.rpc.lark.v1 import report_pb2, report_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from lark_agent.accounting.marks import Mark
    from lark_agent.collector.admission import Admission
    from lark_agent.collector.directory import Directory
    from lark_agent.collector.writer import Writer
    from lark_agent.model import Record
    from lark_agent.trust.authority import Authority

HELLO_SECONDS = 10.0
"""How long a new stream may wait with its hello."""
MAX_MACHINE = 100
"""Characters of a machine's name for itself that count."""
MAX_BATCH = 2000
"""Records in one batch."""

log = structlog.get_logger()


class CollectorServicer(report_pb2_grpc.CollectorServicer):
    """Takes workers' reports into `writer`; `on_failure` is called when the store refuses one."""

    def __init__(
        self,
        writer: Writer,
        directory: Directory,
        admission: Admission,
        authority: Authority | None = None,
        on_failure: Callable[[], None] = lambda: None,
        hello_seconds: float = HELLO_SECONDS,
    ) -> None:
        self._writer = writer
        self._directory = directory
        self._admission = admission
        self._authority = authority
        self._on_failure = on_failure
        self._hello_seconds = hello_seconds
        self._version = metadata.version("lark-agent")

    async def Report(  # noqa: N802  rpc name
        self,
        request_iterator: AsyncIterator[report_pb2.WorkerMessage],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[report_pb2.CollectorMessage]:
        """Carry one worker's stream from hello to its end."""
        hello = await self._hello(request_iterator, context)
        worker = hello.worker
        async with (
            self._admission.stream(worker, context),
            self._admission.name(worker, hello.machine[:MAX_MACHINE], context),
        ):
            mark = await self._mark(worker, context)
            welcome = report_pb2.Welcome(
                protocol=PROTOCOL, version=self._version, leases=True,
                store=mark.store, mark=mark.number,
            )  # fmt: skip
            yield report_pb2.CollectorMessage(welcome=welcome)
            bound = log.bind(worker=worker, peer=context.peer())
            bound.info("worker reports")
            try:
                async for message in request_iterator:
                    yield await self._answer(worker, message, context)
            finally:
                bound.info("worker's stream ended")

    async def Renew(  # noqa: N802  rpc name
        self,
        request: report_pb2.RenewRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> report_pb2.Credentials:
        """Give the worker that calls its next certificate."""
        return await enrolling.renew(self._authority, self._admission, request, context)

    async def FollowJobs(  # noqa: N802  rpc name
        self,
        request: report_pb2.FollowJobsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[report_pb2.JobsAtAddresses]:
        """Tell a worker who lives at which address, for as long as it listens."""
        if request.protocol != PROTOCOL:
            await _end(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the worker speaks protocol {request.protocol}, this collector {PROTOCOL}",
            )
        async with self._admission.stream(request.worker, context):
            async for news in self._directory.follow(request.worker):
                yield report_pb2.JobsAtAddresses(
                    jobs=[
                        report_pb2.JobAtAddress(
                            address=address,
                            worker=record.worker,
                            owner=record.job.owner,
                            accounting_group=record.job.accounting_group,
                            peers=record.peers,
                        )
                        for address, record in news.here
                    ],
                    gone=news.gone,
                )

    async def _hello(
        self,
        messages: AsyncIterator[report_pb2.WorkerMessage],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> report_pb2.Hello:
        """Return a valid first message."""
        try:
            first = await asyncio.wait_for(anext(messages, None), self._hello_seconds)
        except TimeoutError:
            trouble.met("streams without hello")
            await _end(
                context,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"no hello within {self._hello_seconds:g} seconds",
            )
        if first is None or first.WhichOneof("kind") != "hello":
            await _end(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                "the first message of a stream must be hello",
            )
        hello = first.hello
        if hello.protocol != PROTOCOL:
            await _end(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the worker speaks protocol {hello.protocol} (lark-agent {hello.version[:40]}),"
                f" this collector protocol {PROTOCOL} (version {self._version}); upgrade the older",
            )
        if not WORKER.fullmatch(hello.worker):
            await _end(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"'{hello.worker[:64]}' is not a host name; set worker in agent.toml",
            )
        return hello

    async def _answer(
        self,
        worker: str,
        message: report_pb2.WorkerMessage,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> report_pb2.CollectorMessage:
        """Return the answer when what was said is durable; end the stream if it cannot be."""
        try:
            if message.WhichOneof("kind") == "claims":
                return await self._settle(worker, message.claims)
            records = await asyncio.to_thread(_records, worker, message)
            mark = await self._writer.write(records)
            self._directory.take(records)
            answer = report_pb2.Acknowledgement(number=message.batch.number, mark=mark)
            return report_pb2.CollectorMessage(acknowledgement=answer)
        except InvalidRecord as error:
            trouble.met("refused batches")
            log.warning("refused a batch", worker=worker, error=str(error))
            await _end(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except StoreError as error:
            await self._unwell(error, context)

    async def _mark(self, worker: str, context: grpc.aio.ServicerContext[Any, Any]) -> Mark:
        try:
            return await self._writer.mark(worker)
        except StoreError as error:
            await self._unwell(error, context)

    async def _unwell(
        self, error: StoreError, context: grpc.aio.ServicerContext[Any, Any]
    ) -> NoReturn:
        self._on_failure()
        full = isinstance(error, StoreFullError)
        code = grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.UNAVAILABLE
        await _end(context, code, f"not stored: {error}")

    async def _settle(self, worker: str, message: report_pb2.Claims) -> report_pb2.CollectorMessage:
        if len(message.claims) > MAX_BATCH:
            raise InvalidRecord(f"{len(message.claims)} claims; at most {MAX_BATCH} are taken")
        claims = WorkerClaims(worker, tuple(map(claim_from_wire, message.claims)))
        grants = map(grant_to_wire, await self._writer.settle(claims))
        answer = report_pb2.Grants(number=message.number, grants=grants)
        return report_pb2.CollectorMessage(grants=answer)


def _records(worker: str, message: report_pb2.WorkerMessage) -> tuple[Record, ...]:
    """Return the records of a batch, all of them valid and of this worker."""
    if message.WhichOneof("kind") != "batch":
        raise InvalidRecord("after hello, every message must be a batch or claims")
    wire = message.batch.records
    if len(wire) > MAX_BATCH:
        raise InvalidRecord(f"a batch of {len(wire)} records; at most {MAX_BATCH} are taken")
    records = tuple(record_from_wire(record) for record in wire)
    for record in records:
        if record.worker != worker:
            raise InvalidRecord(
                f"attachment {record.attachment_id} is of worker '{record.worker}', but"
                f" '{worker}' said hello"
            )
    return records


async def _end(
    context: grpc.aio.ServicerContext[Any, Any], code: grpc.StatusCode, text: str
) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort always raises")
