"""A Query and Agent service that answers from a script, and records to answer with."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import grpc

from lark_agent.accounting.questions import GroupBy, JobFilter, JobRun, Sample, Total, Totals
from lark_agent.model import (
    ClassUsage,
    Connectivity,
    Count,
    Drop,
    ExitReason,
    Job,
    Record,
    Scheduler,
    Setting,
    Usage,
)
from lark_agent.rpc import convert
from lark_agent.rpc.convert_quotas import standing_to_wire
from lark_agent.rpc.lark.v1 import agent_pb2, agent_pb2_grpc, query_pb2, query_pb2_grpc

if TYPE_CHECKING:
    from lark_agent.accounting.quotas import Standing

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
HOUR = 3600 * SECOND


def make_record(number: int, **changes: object) -> Record:
    """Make a finished job; `changes` replace fields."""
    return replace(
        Record(
            attachment_id=f"018bcfe5-{number:04x}-7000-8000-{number:012x}",
            worker="worker1.example.org",
            slot=number,
            job=Job(
                Scheduler.HTCONDOR, f"schedd.example.org#{number}.0#1700000000", "alice", 1001,
                "physics.higgs", verified=True,
            ),
            profile="nat",
            connectivity=Connectivity.NAT,
            started_ns=START + number * SECOND,
            sequence=7,
            sampled_ns=START + number * SECOND + 60 * SECOND,
            ended_ns=START + number * SECOND + 60 * SECOND,
            final=True,
            exit_reason=ExitReason.EXITED,
            first_port=10240 + 352 * (number % 64),
            last_port=10591 + 352 * (number % 64),
            ipv4=f"100.98.0.{2 + number % 64}",
            ipv6=f"fd6c:6172:6b00::{2 + number % 64:x}",
            plan=(Setting("reach", "other"), Setting("inbound", "established")),
            usage=Usage(
                (
                    ClassUsage("campus", Count(1000, 52_000), Count(20_000, 29_536_789)),
                    ClassUsage("other", Count(1, 60), Count(1, 44)),
                ),
                (Drop("class-denied", Count(3, 180)),),
                Count(1, 28),
                Count(1, 28),
            ),
            transfer=Usage((ClassUsage("campus", Count(2, 104), Count(3, 4096)),)),
        ),
        **changes,  # type: ignore[arg-type]  # dataclasses.replace checks the names
    )  # fmt: skip


@dataclass
class Script(query_pb2_grpc.QueryServicer, agent_pb2_grpc.AgentServicer):
    """What the service answers; every request is kept."""

    records: list[Record] = field(default_factory=list)
    runs: dict[str, tuple[JobRun, ...]] = field(default_factory=dict)
    totals: dict[tuple[GroupBy, ...], Totals] = field(default_factory=dict)
    status: agent_pb2.GetStatusResponse = field(default_factory=agent_pb2.GetStatusResponse)
    machine: agent_pb2.GetMachineResponse = field(default_factory=agent_pb2.GetMachineResponse)
    standings: list[Standing] = field(default_factory=list)
    page: int = 1000
    requests: list[JobFilter] = field(default_factory=list)
    raw: list[query_pb2.ListJobsResponse] = field(default_factory=list)
    changes: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    refusal: tuple[grpc.StatusCode, str] | None = None

    def ListJobs(  # noqa: N802  the name in the protocol
        self, request: query_pb2.ListJobsRequest, context: grpc.ServicerContext
    ) -> query_pb2.ListJobsResponse:
        self.requests.append(convert.filter_from_wire(request.filter))
        if self.refusal:
            context.abort(*self.refusal)
        if self.raw:
            return self.raw[0]
        first = int(request.page_token or 0)
        last = first + min(self.page, request.page_size or 1000)
        return query_pb2.ListJobsResponse(
            records=[convert.record_to_wire(r) for r in self.records[first:last]],
            next_page_token=str(last) if last < len(self.records) else "",
        )

    def GetJob(  # noqa: N802  the name in the protocol
        self, request: query_pb2.GetJobRequest, context: grpc.ServicerContext
    ) -> query_pb2.GetJobResponse:
        if request.id not in self.runs:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such job")
        return query_pb2.GetJobResponse(
            runs=[convert.run_to_wire(run) for run in self.runs[request.id]]
        )

    def GetTotals(  # noqa: N802  the name in the protocol
        self, request: query_pb2.GetTotalsRequest, context: grpc.ServicerContext
    ) -> query_pb2.GetTotalsResponse:
        self.requests.append(convert.filter_from_wire(request.filter))
        by = tuple(convert.groupings_from_wire(request.by))
        return convert.totals_to_wire(self.totals[by])

    def ChangeJob(  # noqa: N802  the name in the protocol
        self,
        request: agent_pb2.ChangeJobRequest,
        context: grpc.ServicerContext,
    ) -> agent_pb2.ChangeJobResponse:
        self.changes.append((request.id, dict(request.settings)))
        if self.refusal:
            context.abort(*self.refusal)
        return agent_pb2.ChangeJobResponse(record=convert.record_to_wire(make_record(1)))

    def GetQuotas(  # noqa: N802  the name in the protocol
        self, request: query_pb2.GetQuotasRequest, context: grpc.ServicerContext
    ) -> query_pb2.GetQuotasResponse:
        seen = [s for s in self.standings if request.owner in {"", s.key.subject}]
        return query_pb2.GetQuotasResponse(standings=map(standing_to_wire, seen))

    def GetMachine(  # noqa: N802  the name in the protocol
        self, request: agent_pb2.GetMachineRequest, context: grpc.ServicerContext
    ) -> agent_pb2.GetMachineResponse:
        if self.refusal:
            context.abort(*self.refusal)
        return self.machine

    def GetStatus(  # noqa: N802  the name in the protocol
        self, request: agent_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> agent_pb2.GetStatusResponse:
        return self.status


@dataclass
class Service:
    """The script, and the socket where it is served."""

    path: str
    script: Script


def samples(*bytes_received: int, every: int = 10 * SECOND) -> tuple[Sample, ...]:
    """Make samples of a job that sends a tenth of what it receives."""
    return tuple(
        Sample(START + i * every, Count(i, total // 10), Count(i, total))
        for i, total in enumerate(bytes_received)
    )


def sums(*rows: tuple[tuple[str, ...], int, int, int]) -> Totals:
    """Make totals of one hour from (key, jobs, bytes sent, bytes received)."""
    since = START // HOUR * HOUR
    return Totals(
        since,
        since + HOUR,
        tuple(Total(key, jobs, Count(1, sent), Count(2, got)) for key, jobs, sent, got in rows),
    )


INTERRUPTIBLE = ("env", "--default-signal=INT")
"""Start of a command that must hear Ctrl-C, also where the tests run in the background."""


def child_environment() -> dict[str, str]:
    """Return the environment for a subprocess of the command."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}
