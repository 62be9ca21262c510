"""Every field of every question, spoiled: answered or refused on purpose; the next is served."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import message_factory

from lark_agent.rpc.lark.v1 import query_pb2
from tests.collector.world import open_store, record
from tests.rpc.spoiling import spoiled
from tests.rpc.test_queries import asking, caller

if TYPE_CHECKING:
    from pathlib import Path

METHODS = {
    method.name: message_factory.GetMessageClass(method.input_type)
    for method in query_pb2.DESCRIPTOR.services_by_name["Query"].methods
}
HONEST = query_pb2.ListJobsRequest(filter=query_pb2.Filter(until_ns=2**62))
EXPECTED = {
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_spoiled_question_is_refused_and_the_next_answered(method: str, tmp_path: Path) -> None:
    """Over a real store; none ends in an error that nobody meant."""
    engine, store, answers = open_store(tmp_path / "u.sqlite")
    store.apply([(record(),)])
    ends: dict[str, grpc.StatusCode] = {}

    async def ask() -> None:
        async with asking(tmp_path, answers, caller(0)) as stub:
            call: Any = getattr(stub, method)
            for done, request in spoiled(METHODS[method]()):
                try:
                    await call(request, timeout=20)
                    ends[done] = grpc.StatusCode.OK
                except grpc.aio.AioRpcError as error:
                    ends[done] = error.code()
            found = await stub.ListJobs(HONEST, timeout=20)
            assert len(found.records) == 1

    try:
        asyncio.run(ask())
    finally:
        engine.dispose()
    assert {done: code for done, code in ends.items() if code not in EXPECTED} == {}
    assert len(ends) > 5
