"""The stream to the collector: whatever is not acknowledged yet is sent, until it is.

The journal is the queue: a batch of unacknowledged records is read from it, sent, and marked when
the collector says that it is durable there. Records are cumulative and keyed, so a lost
acknowledgement costs one repetition. A collector that is down, slow or refuses is tried again with
growing pauses; jobs do not notice and nothing is lost. No wait for it is without an end, so one
that takes connections and then says or reads nothing is one that is down. One that has less than it
acknowledged (a backup was restored) is sent everything again that the journal still has.

The same stream carries what this worker claims of shared quotas (`lark_agent.agent.metering`), and
the grants; a claim goes before the next batch.
"""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog

from lark_agent import crash, trouble
from lark_agent.accounting.marks import Mark
from lark_agent.agent.attachment import boot_id
from lark_agent.errors import PrerequisiteError, RemoteError, StoreError
from lark_agent.rpc.convert import InvalidRecord, record_to_wire
from lark_agent.rpc.convert_quotas import claim_to_wire, grant_from_wire
from lark_agent.rpc.lark.v1 import report_pb2, report_pb2_grpc

if TYPE_CHECKING:
    from lark_agent.accounting.journal import Journal
    from lark_agent.agent.link import Link
    from lark_agent.agent.metering import Metering
    from lark_agent.agent.tasks import OwnThread

    _Call = grpc.aio.StreamStreamCall[report_pb2.WorkerMessage, report_pb2.CollectorMessage]

PROTOCOL = 1
_BATCH = 500
_ANSWER_SECONDS = 30.0
_GATHER_SECONDS = 0.2
"""More news comes with news, and a job that starts should not meet its own report."""
_PATIENCE_SECONDS = 5.0
"""How long a stream may be gone before quotas do without the collector."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_OPTIONS = [
    # notice within a minute that the other end is gone without a word
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_http_proxy", 0),
]
_REFUSALS = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.ALREADY_EXISTS,
}
log = structlog.get_logger(__name__)


class Reporter:
    """Sends the journal's records to one collector."""

    def __init__(
        self,
        link: Link,
        worker: str,
        version: str,
        journal: Journal,
        journal_thread: OwnThread,
        changed: asyncio.Event,
        metering: Metering,
    ) -> None:
        self._link = link
        self._hello = report_pb2.Hello(
            protocol=PROTOCOL, worker=worker, version=version, machine=_machine()
        )
        self._journal = journal
        self._in_journal = journal_thread
        self._changed = changed
        self._metering = metering
        self._leasing = False
        self._last_leasing = time.monotonic()
        self.state = "connecting"
        self.refusals = 0
        """How often the collector did not admit this worker, since the start."""

    def can_lease(self) -> bool:
        """Tell whether the collector grants leases, or did a moment ago."""
        return self._leasing or time.monotonic() - self._last_leasing < _PATIENCE_SECONDS

    async def run(self) -> None:
        """Report for ever; a background task."""
        pause = _FIRST_PAUSE
        while True:
            try:
                async with self._link.channel(_OPTIONS) as channel:
                    await self._stream(channel)
                continue  # the certificate was renewed
            except grpc.aio.AioRpcError as error:
                why = f"{error.code().name}: {error.details()}"
                self.refusals += error.code() in _REFUSALS
            except (
                PrerequisiteError, RemoteError, StoreError, TimeoutError, InvalidRecord,
            ) as error:  # fmt: skip
                why = str(error) or f"no answer within {_ANSWER_SECONDS:g} s"
            trouble.met(trouble.COLLECTOR_AWAY)
            if self._leasing:
                self._leasing, self._last_leasing = False, time.monotonic()
            if self.state == "connected":
                pause = _FIRST_PAUSE
            if why != self.state:  # say it once, not at every attempt
                log.warning("cannot report", collector=self._link.address, error=why)
            self.state = why
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  spreads workers, not a secret
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        stub: report_pb2_grpc.CollectorAsyncStub = report_pb2_grpc.CollectorStub(channel)
        call = stub.Report()
        await _write(call, report_pb2.WorkerMessage(hello=self._hello))
        answer = await _read(call)
        if not answer.HasField("welcome") or answer.welcome.protocol != PROTOCOL:
            raise RemoteError(
                f"the collector speaks protocol {answer.welcome.protocol}, this agent {PROTOCOL}; "
                "install the same release on both"
            )
        log.info("reporting", collector=self._link.address, version=answer.welcome.version)
        self.state = "connected"
        self._leasing = answer.welcome.leases
        store = answer.welcome.store
        mark = _mark(store, answer.welcome.mark)
        again = await self._in_journal(lambda: self._journal.resume(mark))
        if again:
            log.warning(
                "the collector lost what it had acknowledged; sending all again that is kept here",
                collector=self._link.address, records=again,
            )  # fmt: skip
        number = 0
        while not self._link.renewed.is_set():
            number = await self._lease(call, number)
            self._changed.clear()
            records = await self._in_journal(lambda: self._journal.unacknowledged(_BATCH))
            if not records:
                await self._wait_for_news(call)
                continue
            number += 1
            batch = report_pb2.Batch(number=number, records=map(record_to_wire, records))
            await _write(call, report_pb2.WorkerMessage(batch=batch))
            crash.here("ack.sent")
            while (answer := await _read(call)).acknowledgement.number < number:
                pass
            crash.here("ack.received")
            mark = _mark(store, answer.acknowledgement.mark)
            await self._in_journal(partial(self._journal.acknowledge, records, mark))
            crash.here("ack.noted")

    async def _lease(self, call: _Call, number: int) -> int:
        """State the leases that want it and take the grants; returns the last message's number."""
        while self._leasing and (claims := self._metering.take_claims(_BATCH)):
            number += 1
            message = report_pb2.Claims(number=number, claims=map(claim_to_wire, claims))
            await _write(call, report_pb2.WorkerMessage(claims=message))
            crash.here("lease.claimed")
            while (answer := await _read(call)).grants.number < number:
                pass
            grants = [grant_from_wire(grant) for grant in answer.grants.grants]
            crash.here("lease.granted")
            await self._metering.answered(claims, grants)
            crash.here("lease.in-force")
        return number

    async def _wait_for_news(self, call: _Call) -> None:
        """Wait until the journal changed, a lease wants more, or the stream ends or has to."""
        news = asyncio.ensure_future(self._changed.wait())
        claimed = asyncio.ensure_future(self._metering.claimed.wait())
        end = asyncio.ensure_future(call.code())
        renewed = asyncio.ensure_future(self._link.renewed.wait())
        try:
            waiting = [news, end, renewed, *([claimed] if self._leasing else [])]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                raise RemoteError(f"the collector ended the stream: {await call.details()}")
            if not claimed.done():
                await asyncio.wait([claimed, end], timeout=_GATHER_SECONDS)
        finally:
            for future in (news, end, claimed, renewed):
                future.cancel()


async def _write(call: _Call, message: report_pb2.WorkerMessage) -> None:
    """Send, unless the other end does not read what was sent before, or has gone."""
    try:
        await asyncio.wait_for(call.write(message), _ANSWER_SECONDS)
    except asyncio.InvalidStateError:  # it ended the stream since the last answer
        raise RemoteError(f"the collector ended the stream: {await call.details()}") from None


def _mark(store: int, number: int) -> Mark:
    if number >= 1 << 63:
        raise RemoteError(
            f"the collector says that it took {number} batches of this worker, and none can count "
            "so far; is that a lark-collector?"
        )
    return Mark(store, number)


def _machine() -> str:
    """Return what tells this machine from another of the same name, until it is started anew."""
    network = Path("/proc/self/ns/net").stat().st_ino  # agents in containers share the boot
    return f"{boot_id()}/{network}"


async def _read(call: _Call) -> report_pb2.CollectorMessage:
    answer = await asyncio.wait_for(call.read(), _ANSWER_SECONDS)
    if not isinstance(answer, report_pb2.CollectorMessage):  # EOF
        await call.code()
        raise RemoteError(f"the collector ended the stream: {await call.details()}")
    return answer
