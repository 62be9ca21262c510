"""Every field of what people can ask of a real agent, spoiled, while a job runs there."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import message_factory

from lark_agent.policy.vocabulary import SETTINGS
from lark_agent.rpc.lark.v1 import agent_pb2, agent_pb2_grpc
from tests.agent.worker import ONCE, QUICK, Talker, final, records, until
from tests.rpc.spoiling import TEXTS, spoiled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
METHODS = {
    method.name: message_factory.GetMessageClass(method.input_type)
    for method in agent_pb2.DESCRIPTOR.services_by_name["Agent"].methods
}
EXPECTED = {
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}  # fmt: skip


def cases(job: str) -> Iterator[tuple[str, str, Message]]:
    """Yield method, what was done, and the request."""
    valid = agent_pb2.ChangeJobRequest(id=job, settings={"cut": "no"})
    for method, request in METHODS.items():
        made: Message = valid if method == "ChangeJob" else request()
        yield method, "as it is", made
        for done, message in spoiled(made):
            yield method, done, message
    for setting in ("cut", *SETTINGS):
        for text in TEXTS:
            changed = agent_pb2.ChangeJobRequest(id=job, settings={setting: text})
            yield "ChangeJob", f"{setting} = {text[:40]!r} ({len(text)})", changed


def test_a_spoiled_call_is_refused_and_the_next_answered(lab: Lab) -> None:
    """None ends in an error that nobody meant; the job goes on and is counted as ever."""
    agent = lab.agent(QUICK)
    talker = Talker(lab)
    until(lambda: talker.job.job_id in records(lab), "a job in the journal")
    ends: dict[tuple[str, str], grpc.StatusCode] = {}

    async def ask() -> None:
        socket = lab.path("/run/lark/agent.sock")
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            stub: Any = agent_pb2_grpc.AgentStub(channel)
            for method, done, request in cases(talker.job.job_id):
                try:
                    await getattr(stub, method)(request, timeout=20)
                    ends[method, done] = grpc.StatusCode.OK
                except grpc.aio.AioRpcError as error:
                    ends[method, done] = error.code()
            back = agent_pb2.ChangeJobRequest(id=talker.job.job_id, settings={"reach": "other"})
            await stub.ChangeJob(back, timeout=20)
            status = await stub.GetStatus(agent_pb2.GetStatusRequest(), timeout=20)
            assert status.attached == 1

    asyncio.run(ask())
    assert {done: code for done, code in ends.items() if code not in EXPECTED} == {}
    assert set(ends.values()) == EXPECTED
    assert agent.stderr.count("Traceback") == 0
    talker.talk()
    talker.end()
    assert final(lab, talker.job.job_id).usage.sent == ONCE
