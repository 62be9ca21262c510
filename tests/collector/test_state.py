"""`lark-collector status`: what the collector says of itself, and to whom."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from lark_agent import trouble
from lark_agent.collector.daemon import Daemon
from lark_agent.config import CollectorSettings
from lark_agent.rpc.lark.v1 import collector_pb2, collector_pb2_grpc
from tests.collector.world import Worker, record
from tests.lab.fixtures import lab

if TYPE_CHECKING:
    from tests.lab.world import Lab

__all__ = ["lab"]


async def ask(address: str) -> collector_pb2.GetCollectorStatusResponse:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = collector_pb2_grpc.CollectorStateStub(channel)
        request = collector_pb2.GetCollectorStatusRequest()
        return await stub.GetCollectorStatus(request, timeout=20)


def test_streams_records_and_errors_are_told() -> None:
    """A stream that is open, what it brought, and a batch that was refused, by name."""
    before = trouble.counts()["refused batches"]

    async def talk(folder: str) -> list[collector_pb2.GetCollectorStatusResponse]:
        settings = CollectorSettings(
            listen=f"unix:{folder}/r", socket=f"{folder}/q", store=f"sqlite:///{folder}/u.sqlite",
            insecure=True,
        )  # fmt: skip
        said = []
        async with Daemon(settings):
            async with grpc.aio.insecure_channel(f"unix:{folder}/r") as channel:
                worker = Worker(channel)
                await worker.hello()
                await worker.send(1, record(1), record(2))
                await worker.acknowledged()
                said.append(await ask(f"unix:{folder}/q"))
                await worker.send(2, record(3, worker="another"))
                assert (await worker.status()).code() is grpc.StatusCode.INVALID_ARGUMENT
            while (answer := await ask(f"unix:{folder}/q")).streams:  # noqa: ASYNC110  over there
                await asyncio.sleep(0.01)  # the client learns of its end first
            said.append(answer)
        return said

    with tempfile.TemporaryDirectory(prefix="lark-test-") as folder:
        first, second = asyncio.run(talk(folder))
        assert first.store == f"sqlite:///{Path(folder)}/u.sqlite"
    assert (first.streams, list(first.reporting)) == (1, ["w1"])
    assert (first.records, first.workers, first.failure) == (2, 1, "")
    assert first.errors["refused batches"] == before
    assert second.errors["refused batches"] == before + 1
    assert (second.streams, second.records) == (0, 2)
    assert (first.certificate_ends_ns, first.authority_ends_ns) == (0, 0)


def test_admins_see_it_and_others_do_not(lab: Lab) -> None:
    """As a table and as JSON, with the ends of certificates; a user is refused, with status 6."""
    lab.collector(insecure=False)
    told = json.loads(lab.run(["lark-collector", "status", "--json"], host="campus").stdout)
    assert told["certificate_ends_ns"] > time.time_ns()
    assert told["authority_ends_ns"] > time.time_ns()
    assert (told["records"], told["failure"], told["errors"]) == (0, "", {})
    table = lab.run(["lark-collector", "status"], host="campus").stdout
    assert "takes records" in table
    assert "certificate ends" in table
    refused = lab.run(["lark-collector", "status"], host="campus", user="alice", check=False)
    assert refused.returncode == 6
    assert "only root" in refused.stderr
