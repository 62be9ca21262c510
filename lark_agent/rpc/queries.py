"""The Query service: the same questions, asked of a worker's journal or of the collector's store.

Each call goes the same way: the kernel's word on who asks, what that person may see, the request
checked field by field, and then the source's answer. All but the first runs in a small pool of
threads, because user and group databases may be on the network and stores on slow disks, and the
loop also carries the workers' reports.

Who sees what: uid 0, the members of the admin group and the site's observers see every job. Anyone
else sees the jobs whose owner is the name of their uid; a uid without a name sees nothing.
Membership is the kernel's (SO_PEERGROUPS), not the group file's: who was taken out of the group
keeps old sessions, as everywhere in Unix. Somebody else's job is NOT_FOUND, so that ids cannot be
probed.
"""

from __future__ import annotations

import asyncio
import grp
import pwd
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
import structlog

from lark_agent.errors import LarkError, StoreError
from lark_agent.rpc import convert
from lark_agent.rpc.convert_quotas import standing_to_wire
from lark_agent.rpc.frontdoor import UnknownCallerError
from lark_agent.rpc.lark.v1 import query_pb2, query_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from lark_agent.accounting.questions import UsageSource
    from lark_agent.rpc.frontdoor import Caller

MAX_PAGE = 1000
"""Records in one answer."""
MAX_PAGE_BYTES = 3 << 20
"""A page ends early here: clients take 4 MiB unless told otherwise."""
MAX_TOTALS = 100_000
"""Rows of one answer to GetTotals."""

Request = TypeVar("Request")
Response = TypeVar("Response")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sight:
    """What a caller may see: everything, or the jobs of one owner, or with no owner nothing."""

    everything: bool
    owner: str = ""

    @property
    def visible_owner(self) -> str | None:
        """The owner as `UsageSource` wants it."""
        return None if self.everything else self.owner

    @property
    def nothing(self) -> bool:
        """Whether there is no job this caller may see."""
        return not self.everything and not self.owner


class _NotFoundError(LarkError):
    """No visible job has that name."""


class _TooMuchError(LarkError):
    """The answer would be too long."""


def sight_of(caller: Caller, admin_group: str, observers: Collection[str] = ()) -> Sight:
    """Return what a caller may see; may block on the machine's user database."""
    if caller.uid == 0:
        return Sight(everything=True)
    try:
        if grp.getgrnam(admin_group).gr_gid in caller.groups | {caller.gid}:
            return Sight(everything=True)
    except KeyError:
        pass  # a site without that group has no admins but root
    try:
        name = pwd.getpwuid(caller.uid).pw_name
    except KeyError:
        return Sight(everything=False)
    return Sight(everything=True) if name in observers else Sight(everything=False, owner=name)


async def require_everything(
    context: grpc.aio.ServicerContext[Any, Any],
    caller: Caller,
    admin_group: str,
    observers: Collection[str],
    file: str,
) -> None:
    """End a call of who may not see every job; `file` is where observers are listed."""
    if (await asyncio.to_thread(sight_of, caller, admin_group, observers)).everything:
        return
    await end_call(
        context,
        grpc.StatusCode.PERMISSION_DENIED,
        f"only root, members of {admin_group} and the accounts that `observers` in {file} lists "
        "may ask this",
    )


class QueryServicer(query_pb2_grpc.QueryServicer):
    """Answers from `source` to those whom `caller_of` knows (see `FrontDoor.caller`)."""

    def __init__(
        self,
        source: UsageSource,
        caller_of: Callable[[Any], Caller],
        admin_group: str,
        observers: Collection[str] = (),
    ) -> None:
        self._source = source
        self._caller_of = caller_of
        self._admin_group = admin_group
        self._observers = observers
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="query")

    def close(self) -> None:
        """Finish what is being answered and take no more."""
        self._threads.shutdown(cancel_futures=True)

    async def ListJobs(  # noqa: N802  rpc name
        self, request: query_pb2.ListJobsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> query_pb2.ListJobsResponse:
        """List jobs, newest first, a page at a time."""
        return await self._answer(self._list_jobs, request, context)

    async def GetJob(  # noqa: N802  rpc name
        self, request: query_pb2.GetJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> query_pb2.GetJobResponse:
        """Show every run of one job, with its usage over time."""
        return await self._answer(self._get_job, request, context)

    async def GetTotals(  # noqa: N802  rpc name
        self, request: query_pb2.GetTotalsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> query_pb2.GetTotalsResponse:
        """Sum usage over jobs and hours."""
        return await self._answer(self._get_totals, request, context)

    async def GetQuotas(  # noqa: N802  rpc name
        self, request: query_pb2.GetQuotasRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> query_pb2.GetQuotasResponse:
        """Tell how quotas stand."""
        return await self._answer(self._get_quotas, request, context)

    async def _answer(
        self,
        work: Callable[[Request, Sight], Response],
        request: Request,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> Response:
        """Run one question in a thread and turn its exceptions into statuses."""

        def ask() -> Response:
            return work(request, sight_of(caller, self._admin_group, self._observers))

        try:
            caller = self._caller_of(context)
            return await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        except UnknownCallerError as error:
            await end_call(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
        except convert.InvalidRecord as error:
            await end_call(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except _NotFoundError as error:
            await end_call(context, grpc.StatusCode.NOT_FOUND, str(error))
        except _TooMuchError as error:
            await end_call(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except StoreError as error:
            log.error("a question was not answered", error=str(error))
            await end_call(context, grpc.StatusCode.UNAVAILABLE, str(error))
        except Exception:
            log.exception("a question failed", question=type(request).__name__)
            await end_call(
                context, grpc.StatusCode.INTERNAL, "an error of ours; the service's log has it"
            )

    def _list_jobs(
        self, request: query_pb2.ListJobsRequest, sight: Sight
    ) -> query_pb2.ListJobsResponse:
        wanted = convert.filter_from_wire(request.filter)
        if request.page_size > MAX_PAGE:
            raise convert.InvalidRecord(f"page_size: {request.page_size} is more than {MAX_PAGE}")
        after = request.page_token
        if after and not convert.ATTACHMENT_ID.fullmatch(after):
            raise convert.InvalidRecord("page_token: not one from a previous answer")
        response = query_pb2.ListJobsResponse()
        if sight.nothing:
            return response
        size, room = request.page_size or MAX_PAGE, MAX_PAGE_BYTES
        # one more than asked for tells whether there is another page
        for record in self._source.list_jobs(wanted, sight.visible_owner, size + 1, after):
            message = convert.record_to_wire(record)
            room -= message.ByteSize()
            if len(response.records) == size or (room < 0 and response.records):
                response.next_page_token = response.records[-1].attachment_id
                break
            response.records.append(message)
        return response

    def _get_job(self, request: query_pb2.GetJobRequest, sight: Sight) -> query_pb2.GetJobResponse:
        convert.check_text("id", request.id)
        if not request.id:
            raise convert.InvalidRecord("id: empty; give an attachment id or a job id")
        runs = () if sight.nothing else self._source.find_job(request.id, sight.visible_owner)
        if not runs:
            raise _NotFoundError(
                f"no job '{request.id}' among those you may see; the start of an attachment id"
                " needs 8 characters and must fit one job only"
            )
        return query_pb2.GetJobResponse(runs=[convert.run_to_wire(run) for run in runs])

    def _get_totals(
        self, request: query_pb2.GetTotalsRequest, sight: Sight
    ) -> query_pb2.GetTotalsResponse:
        wanted = convert.filter_from_wire(request.filter)
        by = convert.groupings_from_wire(request.by)
        if sight.nothing:
            return query_pb2.GetTotalsResponse(since_ns=wanted.since_ns, until_ns=wanted.until_ns)
        totals = self._source.totals(by, wanted, sight.visible_owner)
        if len(totals.rows) > MAX_TOTALS:
            raise _TooMuchError(
                f"{len(totals.rows)} rows; at most {MAX_TOTALS} are answered: group by less, or ask"
                " for a shorter time"
            )
        return convert.totals_to_wire(totals)

    def _get_quotas(
        self, request: query_pb2.GetQuotasRequest, sight: Sight
    ) -> query_pb2.GetQuotasResponse:
        convert.check_text("owner", request.owner)
        owner = request.owner or sight.visible_owner
        if sight.nothing or (not sight.everything and owner != sight.owner):
            return query_pb2.GetQuotasResponse()
        standings = self._source.quotas(owner, time.time_ns())
        if len(standings) > MAX_TOTALS:
            raise _TooMuchError(f"{len(standings)} quotas; ask for one owner's")
        return query_pb2.GetQuotasResponse(standings=map(standing_to_wire, standings))


async def end_call(
    context: grpc.aio.ServicerContext[Any, Any], code: grpc.StatusCode, text: str
) -> NoReturn:
    """End a call with a status and a reason."""
    await context.abort(code, text)
    raise AssertionError("abort always raises")
