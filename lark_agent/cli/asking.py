"""Asking an agent or a collector: one connection, answers as the shared words of `model`.

Both serve the same Query service, so a command does not care whom it asks; the agent also tells
its own state.

The servers learn from the kernel who is asking (peer credentials of the unix socket), so there is
nothing here about identity. Importing this module imports grpc (90 ms): commands do it when a
question is asked, not to print their help.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc

from lark_agent.errors import LarkError, RemoteError
from lark_agent.hooks.htcondor_ads import MachineState
from lark_agent.model import Rates
from lark_agent.rpc import channel, convert
from lark_agent.rpc.convert_quotas import standing_from_wire
from lark_agent.rpc.lark.v1 import agent_pb2, agent_pb2_grpc, query_pb2, query_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lark_agent.accounting.questions import GroupBy, JobFilter, JobRun, Totals
    from lark_agent.accounting.quotas import Standing
    from lark_agent.model import Record

PAGE = 1000

Answer = TypeVar("Answer")
Message = TypeVar("Message")


class NoSuchJob(LarkError):  # noqa: N818  an answer, not a fault
    """No job that the caller may see has this id."""

    exit_status = 7


@contextmanager
def connect(where: str) -> Iterator[Asker]:
    """Open a connection for some questions; `where` is a socket path, "unix:PATH" or host:port."""
    with channel.connect(where) as opened:
        yield Asker(where, opened)


@dataclass(frozen=True, slots=True)
class Asker:
    """The questions; every method raises RemoteError if the service does not answer."""

    where: str
    channel: grpc.Channel

    def jobs(self, wanted: JobFilter, limit: int) -> tuple[list[Record], bool]:
        """Return the newest `limit` jobs (0: all), and whether there are more."""
        stub = query_pb2_grpc.QueryStub(self.channel)
        found: list[Record] = []
        token = ""
        while True:
            request = query_pb2.ListJobsRequest(
                filter=convert.filter_to_wire(wanted),
                page_size=min(PAGE, limit - len(found)) if limit else PAGE,
                page_token=token,
            )
            answer = self._ask(stub.ListJobs, request)
            found += [self._understand(convert.record_from_wire, r) for r in answer.records]
            token = answer.next_page_token
            if not token or (limit and len(found) >= limit):
                return found, bool(token)

    def find(self, job: str) -> tuple[JobRun, ...]:
        """Return the runs of one job, newest first; raises NoSuchJob."""
        stub = query_pb2_grpc.QueryStub(self.channel)
        answer = self._ask(stub.GetJob, query_pb2.GetJobRequest(id=job), job)
        return tuple(self._understand(convert.run_from_wire, run) for run in answer.runs)

    def totals(self, by: Sequence[GroupBy], wanted: JobFilter) -> Totals:
        """Return what moved in the whole UTC hours of the filter, most bytes first."""
        stub = query_pb2_grpc.QueryStub(self.channel)
        request = query_pb2.GetTotalsRequest(
            by=convert.groupings_to_wire(by), filter=convert.filter_to_wire(wanted)
        )
        return convert.totals_from_wire(self._ask(stub.GetTotals, request))

    def quotas(self, owner: str) -> list[Standing]:
        """Return how quotas stand now; of one owner's jobs, or with an empty name all."""
        stub = query_pb2_grpc.QueryStub(self.channel)
        answer = self._ask(stub.GetQuotas, query_pb2.GetQuotasRequest(owner=owner))
        return [standing_from_wire(standing) for standing in answer.standings]

    def change(self, job: str, settings: dict[str, str]) -> Record:
        """Change what a running job may do; raises NoSuchJob."""
        stub = agent_pb2_grpc.AgentStub(self.channel)
        request = agent_pb2.ChangeJobRequest(id=job, settings=settings)
        answer = self._ask(stub.ChangeJob, request, job)
        return self._understand(convert.record_from_wire, answer.record)

    def status(self) -> agent_pb2.GetStatusResponse:
        """Return the state of an agent."""
        stub = agent_pb2_grpc.AgentStub(self.channel)
        return self._ask(stub.GetStatus, agent_pb2.GetStatusRequest())

    def machine(self) -> MachineState:
        """Return what a batch system's daemon tells its pool about an agent's worker."""
        stub = agent_pb2_grpc.AgentStub(self.channel)
        answer = self._ask(stub.GetMachine, agent_pb2.GetMachineRequest())
        read = convert.record_from_wire
        return MachineState(
            answer.uplink,
            tuple(answer.connectivities),
            tuple(answer.families),
            dict(answer.networks),
            Rates(answer.capacity.sent, answer.capacity.received),
            Rates(answer.booked.sent, answer.booked.received),
            tuple((place.slot, self._understand(read, place.record)) for place in answer.places),
        )

    def _ask(self, method: Callable[..., Answer], request: object, job: str = "") -> Answer:
        try:
            return method(request)
        except grpc.RpcError as error:
            if job and isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.NOT_FOUND:
                raise NoSuchJob(
                    f"{self.where} knows no job '{job}' that you may see; "
                    "`lark jobs` lists the ids (yours only, unless you are root or an admin)"
                ) from error
            raise channel.explained(error, self.where) from error

    def _understand(self, read: Callable[[Message], Answer], message: Message) -> Answer:
        try:
            return read(message)
        except convert.InvalidRecord as error:
            raise RemoteError(
                f"{self.where} sent a record that this version of lark does not understand: "
                f"{error}; bring both to one version"
            ) from error
