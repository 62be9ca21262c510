"""The collector's own state, for the people who run it.

Asked on the same socket as usage, and told to those who may see everybody's. Numbers of the store
and ends of certificates are read when somebody asks, in a thread, because a slow disk must not hold
up reports; all else is what the running parts know of themselves.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import sqlalchemy as sql

from lark_agent import trouble
from lark_agent.collector.schema import RECORDS, store_errors
from lark_agent.errors import StoreError
from lark_agent.rpc.frontdoor import UnknownCallerError
from lark_agent.rpc.lark.v1 import collector_pb2, collector_pb2_grpc
from lark_agent.rpc.queries import end_call, require_everything

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from lark_agent.collector.admission import Admission
    from lark_agent.collector.enrolling import ListenerCredentials
    from lark_agent.collector.writer import Writer
    from lark_agent.rpc.frontdoor import Caller

    Context = grpc.aio.ServicerContext[Any, Any]


class Kept(NamedTuple):
    """What is on disk; times in seconds since the epoch, 0 without TLS."""

    records: int
    workers: int
    certificate_ends: float
    authority_ends: float


@dataclass(frozen=True, slots=True)
class State:
    """The parts that are asked."""

    engine: sql.Engine
    writer: Writer
    admission: Admission
    shown: ListenerCredentials | None
    """None without TLS."""
    started_ns: int = field(default_factory=time.time_ns)

    def read(self) -> Kept:
        """Read what is on disk; may block, raises StoreError."""
        with store_errors("count records"), self.engine.connect() as connection:
            counts = sql.func.count(), sql.func.count(RECORDS.c.worker.distinct())
            records, workers = connection.execute(sql.select(*counts)).one()
        ends = self.shown.ends() if self.shown else (0.0, 0.0)
        return Kept(int(records), int(workers), *ends)

    def answer(self, kept: Kept) -> collector_pb2.GetCollectorStatusResponse:
        """Put all together."""
        reporting = self.admission.reporting
        return collector_pb2.GetCollectorStatusResponse(
            version=metadata.version("lark-agent"),
            started_ns=self.started_ns,
            store=self.engine.url.render_as_string(hide_password=True),
            failure=str(self.writer.failure or ""),
            streams=sum(reporting.values()),
            reporting=sorted(reporting),
            workers=kept.workers,
            records=kept.records,
            refused=self.admission.refused,
            errors=trouble.counts(),
            certificate_ends_ns=int(kept.certificate_ends * 1e9),
            authority_ends_ns=int(kept.authority_ends * 1e9),
        )


class StateServicer(collector_pb2_grpc.CollectorStateServicer):
    """Tells the state to those who may see everything."""

    def __init__(
        self, state: State, caller_of: Callable[[Any], Caller],
        admin_group: str, observers: Collection[str],
    ) -> None:  # fmt: skip
        self._state = state
        self._caller_of = caller_of
        self._admin_group = admin_group
        self._observers = observers

    async def GetCollectorStatus(  # noqa: N802  rpc name
        self,
        request: collector_pb2.GetCollectorStatusRequest,  # noqa: ARG002  empty
        context: Context,
    ) -> collector_pb2.GetCollectorStatusResponse:
        """Return the current state."""
        try:
            await require_everything(
                context, self._caller_of(context), self._admin_group, self._observers,
                "collector.toml",
            )  # fmt: skip
            return self._state.answer(await asyncio.to_thread(self._state.read))
        except UnknownCallerError as error:
            await end_call(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
        except StoreError as error:
            await end_call(context, grpc.StatusCode.UNAVAILABLE, str(error))
