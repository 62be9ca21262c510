"""Which worker is behind a connection, and that it still may be.

With TLS every connection of the reports' address has a certificate of this collector's authority;
gRPC has checked that before a call arrives. What is left is whose it is, that it is the worker that
the call speaks for, and that nobody revoked it, which is asked again for as long as a stream
lives: a watch ends the streams of workers that were revoked, were enrolled anew elsewhere, or whose
certificate is over.

Without TLS (`insecure = true`) everybody is whom they say. With or without, one machine at a time
reports under a name: another is refused for as long as the stream of the first lives, be it a
copied disk or a mistake in agent.toml. The first keeps the name: jobs of it are being counted.

================== ==================================================================
UNAUTHENTICATED    the certificate names no worker, or is over: enrol, or renew
PERMISSION_DENIED  another worker's name, or this worker was revoked or replaced
ALREADY_EXISTS     another machine reports under this name
================== ==================================================================
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import structlog

from lark_agent import trouble
from lark_agent.errors import StoreError
from lark_agent.trust.certificates import Member, member_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lark_agent.trust.authority import Authority

WATCH_SECONDS = 0.5
_UNSURE_SECONDS = 2.0
_CERTIFICATE = "x509_pem_cert"
log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class _Stream:
    """A call that lasts."""

    member: Member
    ends: float
    task: asyncio.Task[Any]
    why: tuple[grpc.StatusCode, str] | None = field(default=None)
    """Why it is ended from here."""


class Admission:
    """Asks an authority; None: everybody is admitted as whom they say."""

    def __init__(self, authority: Authority | None) -> None:
        self._authority = authority
        self._streams: set[_Stream] = set()
        self._reporting: dict[str, list[tuple[str, str]]] = {}
        """By worker: machine and peer of each stream of reports."""
        self.refused = 0
        """Calls and streams since the start."""

    async def member(self, context: grpc.aio.ServicerContext[Any, Any]) -> tuple[Member, float]:
        """Return which worker calls, and when its certificate ends; ends the call if it may not."""
        if self._authority is None:
            await self._refuse(
                context, grpc.StatusCode.UNIMPLEMENTED, "this collector runs without TLS"
            )
        given = b"".join(context.auth_context().get(_CERTIFICATE) or ())
        try:
            member, ends = member_of(given)
        except ValueError as error:
            await self._refuse(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
        why = self._judge(member, ends.timestamp())
        if why:
            await self._refuse(context, *why)
        return member, ends.timestamp()

    @asynccontextmanager
    async def stream(
        self, worker: str, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[None]:
        """Let a stream live that speaks for a worker, for as long as that may report."""
        if self._authority is None:
            yield
            return
        member, ends = await self.member(context)
        if member.worker != worker:
            text = f"the certificate is of worker {member.worker}, which cannot speak for {worker}"
            await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, text)
        task = asyncio.current_task()
        assert task is not None
        stream = _Stream(member, ends, task)
        self._streams.add(stream)
        try:
            yield
        except asyncio.CancelledError:
            if stream.why is None:
                raise
            task.uncancel()
            await self._refuse(context, *stream.why)
        finally:
            self._streams.discard(stream)

    @asynccontextmanager
    async def name(
        self, worker: str, machine: str, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[None]:
        """Let a stream report under a name, unless another machine's does.

        One machine may have several for a moment: its agent was killed, or lost a connection.
        """
        streams = self._reporting.setdefault(worker, [])
        for other, peer in streams:
            if other != machine:
                text = (
                    f"another machine, {peer}, reports as worker {worker}: give one of the two "
                    "another name (worker in agent.toml)"
                )
                await self._refuse(context, grpc.StatusCode.ALREADY_EXISTS, text)
        stream = machine, context.peer()
        streams.append(stream)
        try:
            yield
        finally:
            streams.remove(stream)
            if not streams:
                del self._reporting[worker]

    @property
    def reporting(self) -> dict[str, int]:
        """How many streams of reports each worker has, of those that have one."""
        return {worker: len(streams) for worker, streams in self._reporting.items()}

    async def watch(self) -> None:
        """End streams of workers that may not report any more, until cancelled."""
        stamp: tuple[int, ...] = ()
        while self._authority is not None:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                before, stamp = stamp, self._authority.stamp()
            except StoreError as error:
                trouble.met("revoked workers")
                log.error("cannot look for revoked workers", error=str(error))
                continue
            # two changes within a tick of the kernel's clock have one stamp
            changed = before != stamp or time.time() - max(stamp) / 1e9 < _UNSURE_SECONDS
            for stream in list(self._streams):
                if changed or stream.ends <= time.time():
                    stream.why = stream.why or self._judge(stream.member, stream.ends)
                    if stream.why:
                        stream.task.cancel()

    def _judge(self, member: Member, ends: float) -> tuple[grpc.StatusCode, str] | None:
        assert self._authority is not None
        if ends <= time.time():
            text = "the certificate is over; lark-agent renews it by itself while it runs"
            return grpc.StatusCode.UNAUTHENTICATED, text
        try:
            refusal = self._authority.refusal(member)
        except StoreError as error:
            return grpc.StatusCode.UNAVAILABLE, str(error)
        return (grpc.StatusCode.PERMISSION_DENIED, refusal) if refusal else None

    async def _refuse(
        self, context: grpc.aio.ServicerContext[Any, Any], code: grpc.StatusCode, text: str
    ) -> NoReturn:
        self.refused += 1
        log.warning(
            "refused a worker", peer=context.peer(), code=code.name, reason=text,
            refused=self.refused,
        )  # fmt: skip
        await context.abort(code, text)
        raise AssertionError("abort always raises")
