"""The collector: what it is made of, in which order it starts, and how it stops.

::

    workers ── TCP settings.listen ──── Collector, health, reflection ── writer thread ─┐
               TCP settings.enroll ──── Enrollment ── authority's directory           store
    people ─── unix settings.socket ── front door ── Query, health, reflection ─ threads ┘

Start: store, writer, sockets, services, READY=1; whatever fails on the way is one LarkError, and
what was already started is stopped. Stop (SIGTERM, SIGINT): no new streams, the open ones get a
second, the queue is written, the store is closed. Nothing needs that to be orderly, though: what
was not acknowledged is sent again.

Reports come by TLS from workers with a certificate of this collector's own authority
(`lark_agent.trust`); where the site chose `insecure`, a listener beyond loopback is warned about.
People are answered only where the kernel says who they are. Health is SERVING while the store takes
writes, which a small write finds out every few seconds; the same round feeds systemd's watchdog, so
a writer stuck in the kernel is noticed too.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from lark_agent.collector.admission import Admission
from lark_agent.collector.answers import Answers
from lark_agent.collector.directory import Directory
from lark_agent.collector.enrolling import EnrollmentServicer, ListenerCredentials
from lark_agent.collector.ingest import CollectorServicer
from lark_agent.collector.ledger import Ledger
from lark_agent.collector.schema import StoreFullError, open_engine
from lark_agent.collector.state import State, StateServicer
from lark_agent.collector.store import Store
from lark_agent.collector.writer import Writer
from lark_agent.errors import LarkError, PrerequisiteError, StoreError
from lark_agent.linux import systemd
from lark_agent.rpc import frontdoor
from lark_agent.rpc.frontdoor import FrontDoor
from lark_agent.rpc.lark.v1 import (
    collector_pb2,
    collector_pb2_grpc,
    query_pb2,
    query_pb2_grpc,
    report_pb2,
    report_pb2_grpc,
)
from lark_agent.rpc.queries import QueryServicer
from lark_agent.trust.authority import DAY, Authority

if TYPE_CHECKING:
    from lark_agent.config import CollectorSettings

PROBE_SECONDS = 5.0
STOP_SECONDS = 1.0
REPORTS = report_pb2.DESCRIPTOR.services_by_name["Collector"].full_name
STATE = collector_pb2.DESCRIPTOR.services_by_name["CollectorState"].full_name
QUERIES = query_pb2.DESCRIPTOR.services_by_name["Query"].full_name
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

OPTIONS = (
    *frontdoor.OPTIONS,
    # a second collector on the same port must fail, not take half of the workers
    ("grpc.so_reuseport", 0),
    # a batch of 2000 records with every class and drop reason is about 6 MiB
    ("grpc.max_receive_message_length", 16 << 20),
    # notice workers that vanished without a word, and let them ask after us as often
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
ENROLLMENT_OPTIONS = (
    *frontdoor.OPTIONS,
    ("grpc.so_reuseport", 0),
    # a signing request is about 400 bytes
    ("grpc.max_receive_message_length", 64 << 10),
    ("grpc.max_connection_age_ms", 60_000),
)

log = structlog.get_logger()


class Daemon:
    """A running collector: serves from the start to the end of an `async with` block.

    Raises PrerequisiteError, ConfigurationError or StoreError if it cannot start.
    """

    def __init__(self, settings: CollectorSettings, probe_seconds: float = PROBE_SECONDS) -> None:
        self._settings = settings
        self._probe_seconds = min(probe_seconds, systemd.watchdog_interval() or probe_seconds)
        self._stack = contextlib.AsyncExitStack()
        self._refused = asyncio.Event()
        self._health = health_aio.HealthServicer()
        self.port = 0
        """Where workers report, once started; of interest if port 0 was asked for."""
        self.enrollment_port = 0
        """Where they enrol."""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._health.enter_graceful_shutdown()
        await self._stack.aclose()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        engine = open_engine(self._settings.store)
        stack.callback(engine.dispose)
        self._writer = Writer(Store(engine), Ledger(engine))
        stack.push_async_callback(self._writer.close)
        # finds out whether the store can be written at all; a full one can still be asked
        with contextlib.suppress(StoreFullError):
            await self._writer.write(())
        door = await stack.enter_async_context(FrontDoor(Path(self._settings.socket)))
        queries = QueryServicer(
            Answers(engine), door.caller, self._settings.admin_group, self._settings.observers
        )
        stack.callback(queries.close)

        people = self._server()
        query_pb2_grpc.add_QueryServicer_to_server(queries, people)
        reflection.enable_server_reflection(
            (QUERIES, STATE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
             reflection.SERVICE_NAME), people)  # fmt: skip
        _listen(people, door.address)

        authority = self._authority()
        self._admission = Admission(authority)
        workers = self._server()
        servicer = CollectorServicer(
            self._writer, Directory(), self._admission, authority, self._refused.set
        )
        report_pb2_grpc.add_CollectorServicer_to_server(servicer, workers)
        reflection.enable_server_reflection(
            (REPORTS, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
             reflection.SERVICE_NAME), workers)  # fmt: skip
        servers = [people, workers]
        shown = None
        if authority is None:
            self.port = _listen(workers, self._settings.listen)
            _warn_if_exposed(self._settings.listen)
        else:
            shown = ListenerCredentials(authority, self._settings.certificate_days * DAY)
            known = shown.credentials(of_workers=True)
            self.port = _listen(workers, self._settings.listen, known)
            if self._settings.enroll:
                servers.append(self._enrollment(authority, shown))

        state = State(engine, self._writer, self._admission, shown)
        settings = self._settings
        collector_pb2_grpc.add_CollectorStateServicer_to_server(
            StateServicer(state, door.caller, settings.admin_group, settings.observers), people
        )
        for server in servers:
            await server.start()
            stack.push_async_callback(server.stop, STOP_SECONDS)
        await self._health.set(QUERIES, SERVING)
        await self._show_health()
        await door.open()

    def _server(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server

    def _authority(self) -> Authority | None:
        """Return who signs, ready to do it; None without TLS."""
        if self._settings.insecure:
            return None
        made = Authority(Path(self._settings.authority), self._settings.certificate_days)
        made.prepare()
        return made

    def _enrollment(self, authority: Authority, shown: ListenerCredentials) -> grpc.aio.Server:
        server = grpc.aio.server(options=ENROLLMENT_OPTIONS)
        report_pb2_grpc.add_EnrollmentServicer_to_server(EnrollmentServicer(authority), server)
        strangers = shown.credentials(of_workers=False)
        self.enrollment_port = _listen(server, self._settings.enroll, strangers)
        return server

    @property
    def refused(self) -> int:
        """How many calls and streams of workers were not admitted, since the start."""
        return self._admission.refused

    async def watch_workers(self) -> None:
        """End streams of workers that were revoked, until cancelled."""
        await self._admission.watch()

    async def watch(self) -> None:
        """Keep health and systemd's watchdog up to date until cancelled."""
        while True:
            self._refused.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._refused.wait(), self._probe_seconds)
            if not self._refused.is_set():
                with contextlib.suppress(StoreError):  # the writer logs it and remembers
                    await self._writer.write(())
            await self._show_health()
            failure = self._writer.failure
            systemd.notify("WATCHDOG=1", f"STATUS={failure or 'taking reports'}")

    async def _show_health(self) -> None:
        state = SERVING if self._writer.failure is None else NOT_SERVING
        for service in ("", REPORTS):
            await self._health.set(service, state)


def _listen(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise PrerequisiteError(
            f"cannot listen on {address}: {error}; is another collector running, is the address"
            " this machine's?"
        ) from error


def _warn_if_exposed(listen: str) -> None:
    host = listen.rpartition(":")[0].strip("[]")
    try:
        exposed = not ip_address(host).is_loopback
    except ValueError:
        exposed = host != "localhost"
    if exposed:
        log.warning(
            "reports are taken without encryption from anyone who reaches this address; let only"
            " workers reach it",
            listen=listen,
        )


async def run(settings: CollectorSettings) -> None:
    """Serve until SIGTERM or SIGINT; raises LarkError if that cannot be begun or kept up."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Daemon(settings) as daemon:
        log.info("collector serves", listen=settings.listen, socket=settings.socket)
        systemd.notify("READY=1", "STATUS=taking reports")
        tasks = {
            asyncio.create_task(daemon.watch(), name="health watch"),
            asyncio.create_task(stop.wait(), name="stop signal"),
        }
        if not settings.insecure:
            tasks.add(asyncio.create_task(daemon.watch_workers(), name="watch over workers"))
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        systemd.notify("STOPPING=1")
        for task in pending:
            task.cancel()
        for task in done:
            if task.get_name() != "stop signal":
                raise LarkError(f"the {task.get_name()} ended: {task.exception()!r}")
        log.info("collector stops")
