"""People's questions: who sees what, and what a bad question is answered."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lark_agent.accounting.questions import JobRun, Total, Totals
from lark_agent.accounting.quotas import PoolKey, Standing
from lark_agent.errors import StoreError
from lark_agent.model import Connectivity, Count, Job, Record, Scheduler, new_attachment_id
from lark_agent.rpc import queries
from lark_agent.rpc.convert_quotas import standing_from_wire
from lark_agent.rpc.frontdoor import Caller, UnknownCallerError
from lark_agent.rpc.lark.v1 import query_pb2, query_pb2_grpc
from lark_agent.rpc.queries import QueryServicer, Sight, sight_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from lark_agent.accounting.questions import GroupBy, JobFilter, UsageSource

STANDING = Standing(
    PoolKey("cloud", "owner", "alice", "2026-11"), 2**41, 2**40, 2**40 + 7, 3, "cut-all", 9
)
ALICE, ADMIN, NAMELESS = 1001, 1002, 1099
STAFF_GROUP = 777


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the user database: alice, an admin, and the group lark-admin."""

    def getpwuid(uid: int) -> SimpleNamespace:
        return SimpleNamespace(pw_name={0: "root", ALICE: "alice", ADMIN: "adam"}[uid])

    def getgrnam(name: str) -> SimpleNamespace:
        return SimpleNamespace(gr_gid={"lark-admin": STAFF_GROUP}[name], gr_mem=["alice"])

    monkeypatch.setattr(queries, "pwd", SimpleNamespace(getpwuid=getpwuid))
    monkeypatch.setattr(queries, "grp", SimpleNamespace(getgrnam=getgrnam))


def caller(uid: int, gid: int = 100, groups: Sequence[int] = ()) -> Caller:
    return Caller(uid, gid, frozenset(groups), 1)


@pytest.mark.parametrize(
    ("who", "group", "sees"),
    [
        (caller(0), "lark-admin", Sight(everything=True)),
        (caller(0), "no-such-group", Sight(everything=True)),
        (caller(ADMIN, groups=[5, STAFF_GROUP]), "lark-admin", Sight(everything=True)),
        (caller(ADMIN, gid=STAFF_GROUP), "lark-admin", Sight(everything=True)),
        (caller(ADMIN, groups=[5]), "lark-admin", Sight(everything=False, owner="adam")),
        (caller(ADMIN, groups=[STAFF_GROUP]), "none", Sight(everything=False, owner="adam")),
        # the group file lists alice, but the kernel does not
        (caller(ALICE), "lark-admin", Sight(everything=False, owner="alice")),
        (caller(NAMELESS), "lark-admin", Sight(everything=False)),
    ],
)
def test_who_sees_what(who: Caller, group: str, sees: Sight) -> None:
    """Root and members by the kernel's word see all, others their own, the nameless nothing."""
    assert sight_of(who, group) == sees


def test_an_observer_sees_everything() -> None:
    """An account that the site lists sees every job, and is no admin where none is listed."""
    assert sight_of(caller(ALICE), "none", ["alice"]) == Sight(everything=True)
    assert sight_of(caller(ALICE), "none", ["condor"]) == Sight(everything=False, owner="alice")
    assert sight_of(caller(NAMELESS), "none", ["1099", ""]) == Sight(everything=False)


class Source:
    """Keeps records in a list, newest first, and what was asked."""

    def __init__(self, *records: Record) -> None:
        self.records = sorted(records, key=lambda r: r.attachment_id, reverse=True)
        self.failure: Exception | None = None
        self.asked: list[Any] = []
        self.total_rows = 1

    def list_jobs(
        self, wanted: JobFilter, visible_owner: str | None, limit: int, after: str
    ) -> list[Record]:
        self.asked.append((wanted, visible_owner))
        if self.failure:
            raise self.failure
        seen = [r for r in self.records if visible_owner in {None, r.job.owner}]
        return [r for r in seen if not after or r.attachment_id < after][:limit]

    def find_job(self, text: str, visible_owner: str | None) -> list[JobRun]:
        seen = [r for r in self.records if visible_owner in {None, r.job.owner}]
        return [JobRun(r, ()) for r in seen if r.job.job_id == text]

    def totals(self, by: Sequence[GroupBy], wanted: JobFilter, visible_owner: str | None) -> Totals:
        self.asked.append((tuple(by), wanted, visible_owner))
        row = Total(tuple(by), 1, Count(1, 2), Count(3, 4))
        return Totals(1, 2, (row,) * self.total_rows)

    def quotas(self, owner: str | None, now_ns: int) -> list[Standing]:
        self.asked.append(owner)
        return [STANDING] if owner in {None, "alice"} else []


def job(number: int, owner: str = "alice", **changes: Any) -> Record:
    record = Record(
        attachment_id=new_attachment_id(number * 10**6, bytes(10)),
        worker="w1",
        slot=number,
        job=Job(Scheduler.SLURM, str(number), owner, 1001),
        profile="nat",
        connectivity=Connectivity.NAT,
        started_ns=number,
    )
    return replace(record, **changes)


@asynccontextmanager
async def asking(
    folder: Path, source: UsageSource, who: Caller | None
) -> AsyncIterator[query_pb2_grpc.QueryAsyncStub]:
    """Ask a served source as somebody."""

    def caller_of(_context: object) -> Caller:
        if who is None:
            raise UnknownCallerError("not known")
        return who

    server, servicer = grpc.aio.server(), QueryServicer(source, caller_of, "lark-admin")
    query_pb2_grpc.add_QueryServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{folder}/q")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{folder}/q") as channel:
            yield query_pb2_grpc.QueryStub(channel)
    finally:
        await server.stop(0)
        servicer.close()


def status_of(
    folder: Path, source: Source, who: Caller | None, method: str, request: Any
) -> tuple[grpc.StatusCode, str]:
    """Ask one question that is refused; returns the status and its text."""

    async def talk() -> grpc.aio.AioRpcError:
        async with asking(folder, source, who) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await getattr(stub, method)(request, timeout=20)
            return caught.value

    error = asyncio.run(talk())
    return error.code(), error.details() or ""


def test_each_person_sees_their_own_jobs(tmp_path: Path) -> None:
    """Alice lists hers, an admin everybody's, a uid without a name nothing."""
    source = Source(job(1), job(2, "bob"), job(3))

    async def listed(who: Caller) -> list[int]:
        async with asking(tmp_path, source, who) as stub:
            answer = await stub.ListJobs(query_pb2.ListJobsRequest())
            return [r.slot for r in answer.records]

    assert asyncio.run(listed(caller(ALICE))) == [3, 1]
    assert asyncio.run(listed(caller(ADMIN, groups=[STAFF_GROUP]))) == [3, 2, 1]
    before = len(source.asked)
    assert asyncio.run(listed(caller(NAMELESS))) == []
    assert len(source.asked) == before, "not even asked"


@pytest.mark.parametrize("who", [caller(ALICE), caller(NAMELESS)])
def test_somebody_elses_job_does_not_exist(tmp_path: Path, who: Caller) -> None:
    """Another's job and no job at all are answered alike."""
    source = Source(job(2, "bob"))
    other = status_of(tmp_path, source, who, "GetJob", query_pb2.GetJobRequest(id="2"))
    nobodys = status_of(tmp_path, source, who, "GetJob", query_pb2.GetJobRequest(id="9"))
    assert other[0] is nobodys[0] is grpc.StatusCode.NOT_FOUND
    assert other[1].replace("'2'", "'9'") == nobodys[1]


def test_totals_are_of_visible_jobs_only(tmp_path: Path) -> None:
    """The source is asked for the caller's own jobs; for the nameless it is not asked."""
    source = Source()

    async def rows(who: Caller) -> int:
        async with asking(tmp_path, source, who) as stub:
            request = query_pb2.GetTotalsRequest(by=[query_pb2.GROUP_BY_CLASS])
            return len((await stub.GetTotals(request)).totals)

    assert asyncio.run(rows(caller(ALICE))) == 1
    assert asyncio.run(rows(caller(0))) == 1
    assert asyncio.run(rows(caller(NAMELESS))) == 0
    assert [(by, owner) for by, _, owner in source.asked] == [
        (("class",), "alice"),
        (("class",), None),
    ]


def test_pages_follow_each_other(tmp_path: Path) -> None:
    """Tokens lead through all jobs once; the last page has none."""

    async def talk() -> list[list[int]]:
        pages, token = [], ""
        async with asking(tmp_path, Source(*map(job, range(7))), caller(0)) as stub:
            while True:
                request = query_pb2.ListJobsRequest(page_size=3, page_token=token)
                answer = await stub.ListJobs(request)
                pages.append([r.slot for r in answer.records])
                token = answer.next_page_token
                if not token:
                    return pages

    assert asyncio.run(talk()) == [[6, 5, 4], [3, 2, 1], [0]]


def test_a_page_ends_before_it_is_too_large_for_a_client(tmp_path: Path) -> None:
    """Records that together pass 3 MiB are cut into pages that any client takes."""
    heavy = [job(n, profile="ü" * 100_000) for n in range(40)]

    async def talk() -> list[int]:
        slots, token = [], ""
        async with asking(tmp_path, Source(*heavy), caller(0)) as stub:
            while True:
                answer = await stub.ListJobs(query_pb2.ListJobsRequest(page_token=token))
                assert answer.ByteSize() <= 4 << 20
                slots += [r.slot for r in answer.records]
                token = answer.next_page_token
                if not token:
                    return slots

    assert asyncio.run(talk()) == list(range(39, -1, -1))


@pytest.mark.parametrize(
    ("method", "request_", "says"),
    [
        ("ListJobs", query_pb2.ListJobsRequest(page_size=1001), "page_size"),
        ("ListJobs", query_pb2.ListJobsRequest(page_token="x"), "page_token"),
        (
            "ListJobs",
            query_pb2.ListJobsRequest(filter=query_pb2.Filter(owner="x" * 257)),
            "filter.owner",
        ),
        (
            "ListJobs",
            query_pb2.ListJobsRequest(filter=query_pb2.Filter(state=query_pb2.State.ValueType(9))),
            "filter.state",
        ),
        ("GetJob", query_pb2.GetJobRequest(), "id: empty"),
        ("GetJob", query_pb2.GetJobRequest(id="x" * 257), "id: 257"),
        ("GetJob", query_pb2.GetJobRequest(id="\x1b[2J"), "control"),
        ("GetTotals", query_pb2.GetTotalsRequest(by=[query_pb2.GROUP_BY_DAY] * 2), "by:"),
        ("GetTotals", query_pb2.GetTotalsRequest(filter=query_pb2.Filter(since_ns=2**63)), "2262"),
    ],
)
def test_a_bad_question_is_told_what_is_wrong(
    tmp_path: Path, method: str, request_: Any, says: str
) -> None:
    """Each broken rule is INVALID_ARGUMENT with the field's name."""
    code, text = status_of(tmp_path, Source(), caller(0), method, request_)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert says in text


def test_an_unknown_caller_is_unauthenticated(tmp_path: Path) -> None:
    """Who did not come through the front door is told nothing."""
    code, _ = status_of(tmp_path, Source(), None, "ListJobs", query_pb2.ListJobsRequest())
    assert code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("failure", "expected", "says"),
    [
        (StoreError("cannot list jobs: disk gone"), grpc.StatusCode.UNAVAILABLE, "disk gone"),
        (ZeroDivisionError("secret detail"), grpc.StatusCode.INTERNAL, "the service's log"),
    ],
)
def test_a_failing_source_is_reported(
    tmp_path: Path, failure: Exception, expected: grpc.StatusCode, says: str
) -> None:
    """A store's trouble is UNAVAILABLE with its text, a bug INTERNAL without its details."""
    source = Source()
    source.failure = failure
    code, text = status_of(tmp_path, source, caller(0), "ListJobs", query_pb2.ListJobsRequest())
    assert code is expected
    assert says in text
    assert "secret" not in text


def test_totals_beyond_reason_are_refused(tmp_path: Path) -> None:
    """More rows than anyone can read are RESOURCE_EXHAUSTED with advice."""
    source = Source()
    source.total_rows = 100_001
    code, text = status_of(tmp_path, source, caller(0), "GetTotals", query_pb2.GetTotalsRequest())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "group by less" in text


@pytest.mark.parametrize(
    ("who", "owner", "asked"),
    [
        (caller(0), "", [None]),
        (caller(0), "alice", ["alice"]),
        (caller(ALICE), "", ["alice"]),
        (caller(ALICE), "bob", []),
        (caller(NAMELESS), "", []),
    ],
)
def test_quotas_are_shown_as_jobs_are(
    tmp_path: Path, who: Caller, owner: str, asked: list[str | None]
) -> None:
    """Admins see everybody's or one owner's, others theirs, the nameless none."""

    async def ask() -> list[Standing]:
        async with asking(tmp_path, source, who) as stub:
            answer = await stub.GetQuotas(query_pb2.GetQuotasRequest(owner=owner))
        return [standing_from_wire(standing) for standing in answer.standings]

    source = Source()
    assert asyncio.run(ask()) == ([STANDING] if asked else [])
    assert source.asked == asked
