"""Every field of the calls that give certificates and tell who lives where, spoiled.

The collector is a real one with TLS. Who enrols has a token that would do; who renews or follows
has a certificate: the token and the certificate are right, everything else is tried.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lark_agent.rpc.lark.v1 import report_pb2, report_pb2_grpc
from lark_agent.rpc.secure import OPTIONS
from lark_agent.trust import certificates
from lark_agent.trust.token import parse
from tests.collector.test_admission import Pool
from tests.rpc.spoiling import spoiled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

CODES = grpc.StatusCode
SAYS_NO = {CODES.INVALID_ARGUMENT, CODES.PERMISSION_DENIED, CODES.FAILED_PRECONDITION,
           CODES.RESOURCE_EXHAUSTED}  # fmt: skip


@pytest.fixture
def pool() -> Iterator[Pool]:
    with tempfile.TemporaryDirectory(prefix="lark-test-") as name:
        yield Pool(Path(name))


def requests(pool: Pool, worker: str) -> dict[str, Message]:
    """Return a valid request for each call; the token in it was not used."""
    token = parse(pool.authority.create_token("", 600, replace=True))
    asked = certificates.request_for(worker, certificates.make_key())
    return {
        "Enroll": report_pb2.EnrollRequest(
            protocol=1, worker=worker, token=token.name, secret=token.secret, request=asked
        ),
        "Renew": report_pb2.RenewRequest(protocol=1, request=asked),
        "FollowJobs": report_pb2.FollowJobsRequest(protocol=1, worker=worker),
    }


def cases(pool: Pool, method: str) -> Iterator[tuple[str, Message]]:
    """Spoil a call; what is right about a token is of one that nobody has used."""
    valid: Any = requests(pool, "w1")[method]
    for done, request in spoiled(valid):
        if method == "Enroll" and (request.token, request.secret) == (valid.token, valid.secret):
            fresh: Any = requests(pool, "w1")[method]
            request.token, request.secret = fresh.token, fresh.secret
        yield done, request


def test_every_call_is_spoiled(pool: Pool) -> None:
    """A call that is added to the protocol needs a valid request here; Report has its own test."""
    services = report_pb2.DESCRIPTOR.services_by_name.values()
    calls = {method.name for service in services for method in service.methods}
    assert calls == {*requests(pool, "w1"), "Report"}


@pytest.mark.parametrize("method", ["Enroll", "Renew", "FollowJobs"])
def test_a_spoiled_call_is_refused_and_the_next_answered(pool: Pool, method: str) -> None:
    """Each is answered or refused on purpose, none by a mishap; an honest one is served then.

    Nobody is enrolled under a name that is no host name.
    """
    ends: dict[str, grpc.StatusCode] = {}

    async def talk() -> None:
        shown = pool.enrolled("w1")
        token = parse(pool.authority.create_token("", 600, replace=False))
        trusted = grpc.ssl_channel_credentials(token.authorities.encode())
        async with (
            pool.serving(),
            pool.channel(shown) as known,
            grpc.aio.secure_channel(pool.enroll_at, trusted, options=OPTIONS) as unknown,
        ):
            stub: Any = report_pb2_grpc.CollectorStub(known)
            if method == "Enroll":
                stub = report_pb2_grpc.EnrollmentStub(unknown)
            for done, request in cases(pool, method):
                ends[done] = await end_of(getattr(stub, method), request)
            assert await end_of(getattr(stub, method), requests(pool, "w1")[method]) is CODES.OK

    asyncio.run(talk())
    strange = {d: code for d, code in ends.items() if code not in SAYS_NO | {CODES.OK}}
    assert strange == {}
    assert SAYS_NO & set(ends.values())
    assert [each.worker for each in pool.authority.workers() if len(each.worker) > 200] == []


async def end_of(call: Any, request: Message) -> grpc.StatusCode:
    """Return how a call ends; a stream that has begun to answer, or waits with it, is well."""
    try:
        answer = call(request, timeout=20)
        if isinstance(answer, grpc.aio.UnaryUnaryCall):
            await answer
        else:
            await asyncio.wait_for(answer.read(), 0.3)
    except TimeoutError:
        answer.cancel()
    except grpc.aio.AioRpcError as error:
        code = error.code()
        assert isinstance(code, grpc.StatusCode)
        return code
    return CODES.OK
