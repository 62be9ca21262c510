"""What one connection to a door can cost, whatever its caller says or does not say."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.rpc import malformed
from tests.rpc.test_frontdoor import door, path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["path"]


async def until(true: Callable[[], bool]) -> None:
    """Wait; the test's own time limit ends it."""
    while not true():  # noqa: ASYNC110  nothing tells of it
        await asyncio.sleep(0.01)


def test_a_connection_has_so_many_calls_at_a_time(path: Path) -> None:
    """A client that opens streams without end, and heeds no limit, costs sixteen calls."""
    streams = [
        malformed.frame(
            malformed.HEADERS, malformed.END_HEADERS, number,
            malformed.asking("grpc.health.v1.Health/Watch"),
        )
        + malformed.frame(malformed.DATA, malformed.END_STREAM, number, malformed.message(b""))
        for number in range(1, 401, 2)
    ]  # fmt: skip

    async def talk() -> None:
        async with door(path) as witness:
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(malformed.opening())
            most = 0
            for stream in streams:
                writer.write(stream)
                await asyncio.sleep(0.005)
                most = max(most, witness.watched)
            await until(lambda: witness.watched >= 16)
            assert max(most, witness.watched) == 16
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
            writer.close()
            await until(lambda: not witness.watched)

    asyncio.run(talk())


def test_who_does_not_speak_is_cut_off(path: Path) -> None:
    """A caller that says nothing, or half of what HTTP/2 begins with, costs some seconds."""

    async def ended(said: bytes) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(said)
        await asyncio.wait_for(reader.read(), 60)
        writer.close()

    async def talk() -> None:
        async with door(path):
            await asyncio.gather(*map(ended, (b"", malformed.PREFACE[:9], malformed.opening())))

    asyncio.run(talk())
