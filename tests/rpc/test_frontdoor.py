"""The front door: the kernel names the caller, and nobody can crowd out the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lark_agent.errors import ConfigurationError, PrerequisiteError
from lark_agent.rpc.frontdoor import Caller, FrontDoor, UnknownCallerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.root
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: callers of other uids")


class Witness(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # ships no types
    """Notes who calls; waits while told to."""

    def __init__(self, door: FrontDoor) -> None:
        self.door = door
        self.callers: list[Caller] = []

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802  rpc name
        self.callers.append(self.door.caller(context))
        return health_pb2.HealthCheckResponse(status=1)


@asynccontextmanager
async def door(path: Path, **limits: int) -> AsyncIterator[Witness]:
    async with FrontDoor(path, **limits) as front:
        witness, server = Witness(front), grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(witness, server)
        server.add_insecure_port(front.address)
        await server.start()
        await front.open()
        try:
            yield witness
        finally:
            await server.stop(0)


@pytest.fixture
def path() -> Iterator[Path]:
    """Give a short path that other users can reach (they cannot enter pytest's directories)."""
    with tempfile.TemporaryDirectory(prefix="lark-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "q"


INTRUDER = """
import os, socket, sys
os.setuid(1001)
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except PermissionError:
    sys.exit(42)
"""

CLIENT = """
import os, sys
uid, gid, groups = int(sys.argv[2]), int(sys.argv[3]), eval(sys.argv[4])
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    print(os.getpid())
"""


async def ask_as(path: Path, uid: int, gid: int, groups: list[int]) -> int:
    """Call once in a process of that user; returns its pid."""
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, str(path), str(uid), str(gid), repr(groups),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await client.communicate()
    assert client.returncode == 0
    return int(output)


@needs_root
def test_callers_are_who_the_kernel_says(path: Path) -> None:
    """Uid, gid, pid and groups (more than 256, too) of each client arrive, without its help."""

    async def talk() -> None:
        async with door(path) as witness:
            many = list(range(20_000, 20_400))
            pids = [await ask_as(path, 1001, 1002, [7, 8]), await ask_as(path, 1003, 1003, many)]
            assert witness.callers == [
                Caller(1001, 1002, frozenset({7, 8}), pids[0]),
                Caller(1003, 1003, frozenset(many), pids[1]),
            ]

    asyncio.run(talk())


@needs_root
def test_callers_at_the_same_time_are_kept_apart(path: Path) -> None:
    """Ten users in parallel are each seen as themselves."""

    async def talk() -> None:
        async with door(path) as witness:
            uids = range(2001, 2011)
            await asyncio.gather(*(ask_as(path, uid, uid, []) for uid in uids))
            assert sorted(c.uid for c in witness.callers) == list(uids)
            assert all(c.uid == c.gid for c in witness.callers)

    asyncio.run(talk())


@needs_root
def test_the_way_round_the_door_is_closed(path: Path) -> None:
    """The socket of the gRPC server is beyond the reach of other users."""

    async def talk() -> None:
        async with door(path) as witness:
            private = path.with_name("q.d")
            assert private.stat().st_mode & 0o777 == 0o700
            attempt = await asyncio.create_subprocess_exec(
                sys.executable, "-c", INTRUDER, str(private / "grpc")
            )
            assert await attempt.wait() == 42
            assert [p.name for p in private.iterdir()] == ["grpc"]
            assert witness.callers == []

    asyncio.run(talk())


def test_a_call_on_another_listener_is_unknown(path: Path) -> None:
    """Whoever did not come through the door has no name, whatever the peer string looks like."""

    class Context:
        def __init__(self, peer: str) -> None:
            self.peer = lambda: peer

    async def talk() -> None:
        async with door(path) as witness:
            reader, writer = await asyncio.open_unix_connection(path)
            await reader.read(9)  # gRPC has spoken: the connection has its name, 1
            assert witness.door.caller(Context(f"unix:{path}.d/1")).uid == os.geteuid()
            for peer in ("ipv4:127.0.0.1:1", "ipv4:1/1", "unix:", "", "1", f"unix:{path}.d/2"):
                with pytest.raises(UnknownCallerError):
                    witness.door.caller(Context(peer))
            writer.close()

    asyncio.run(talk())


async def greeted(path: Path, uid: int) -> bool:
    """Tell whether a new connection of a user is let through to gRPC, which speaks first."""
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c",
        "import os,socket,sys; os.setgroups([]); os.setuid(int(sys.argv[2]))\n"
        "s=socket.socket(1); s.connect(sys.argv[1]); s.settimeout(20)\n"
        "try: sys.exit(0 if s.recv(9) else 3)\nexcept ConnectionError: sys.exit(3)",
        str(path), str(uid),
    )  # fmt: skip
    return await client.wait() == 0


async def crowd(path: Path, uid: int, count: int) -> asyncio.subprocess.Process:
    """Start a process of a user that holds connections until its standard input ends."""
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c",
        "import os,socket,sys; os.setgroups([]); os.setuid(int(sys.argv[2]))\n"
        "held=[]\n"
        "for n in range(int(sys.argv[3])):\n"
        "    s=socket.socket(1); s.connect(sys.argv[1]); held.append(s); s.recv(9)\n"
        "print('held', flush=True); sys.stdin.read()",
        str(path), str(uid), str(count),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert client.stdout is not None
    assert await client.stdout.readline() == b"held\n"
    return client


@needs_root
def test_one_user_cannot_crowd_out_the_others(path: Path) -> None:
    """Over the limit of one user only that user is turned away; leaving makes room again."""

    async def talk() -> None:
        async with door(path, most_per_user=3, most=100):
            crowding = await crowd(path, 1001, 3)
            assert not await greeted(path, 1001)
            assert await greeted(path, 1002)
            assert crowding.stdin is not None
            crowding.stdin.close()
            await crowding.wait()
            while not await greeted(path, 1001):  # until the door has seen them end
                pass

    asyncio.run(talk())


@needs_root
def test_root_is_answered_when_the_house_is_full(path: Path) -> None:
    """Over the limit of all, everyone is turned away but root."""

    async def talk() -> None:
        async with door(path, most_per_user=3, most=4) as witness:
            crowds = [await crowd(path, uid, 2) for uid in (1001, 1002)]
            assert not await greeted(path, 1003)
            await ask_as(path, 0, 0, [])
            assert [c.uid for c in witness.callers] == [0]
            for crowding in crowds:
                crowding.terminate()
                await crowding.wait()

    asyncio.run(talk())


def test_large_answers_and_abandoned_connections_do_no_harm(path: Path) -> None:
    """Noise, resets and half-closed connections end alone; the next caller is served."""

    async def talk() -> None:
        async with door(path) as witness:
            for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(300_000)):
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(noise)
                writer.write_eof()
                with contextlib.suppress(ConnectionError):  # a reset is a fair answer to noise
                    await asyncio.wait_for(reader.read(), 20)
                writer.close()
            raw = socket.socket(socket.AF_UNIX)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.connect(str(path))
            raw.close()
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service="x" * 3_000_000), timeout=20
                )
            assert len(witness.callers) == 1

    asyncio.run(talk())


def test_the_door_leaves_no_socket_behind(path: Path) -> None:
    """After the end the path is free, and everybody may have connected meanwhile."""
    modes = []

    async def talk() -> None:
        async with door(path):
            modes.append(os.stat(path).st_mode & 0o777)  # noqa: PTH116  not blocking here

    asyncio.run(talk())
    assert modes == [0o666]
    assert not path.exists()
    assert list(path.with_name("q.d").iterdir()) == []


def test_a_dead_predecessors_socket_is_replaced(path: Path) -> None:
    """A socket that nobody listens on, and what else a killed process left, is no obstacle."""
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    path.with_name("q.d").mkdir()
    path.with_name("q.d").joinpath("grpc").touch()

    async def talk() -> None:
        async with door(path):
            await ask_as(path, os.getuid(), os.getgid(), os.getgroups())

    asyncio.run(talk())


def test_a_living_service_is_not_replaced(path: Path) -> None:
    """A second door on the same path, or another program's socket there, is refused."""

    async def second() -> None:
        async with FrontDoor(path):
            pass

    async def talk() -> None:
        async with door(path):
            with pytest.raises(PrerequisiteError, match="another process"):
                await second()
            await ask_as(path, os.getuid(), os.getgid(), os.getgroups())

    asyncio.run(talk())
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(PrerequisiteError, match="another process"):
            asyncio.run(second())
        assert path.exists()


def test_what_is_no_socket_stays(path: Path) -> None:
    """A file at the path is not deleted but named in the error, and so is too long a path."""
    path.write_text("precious")

    async def enter(where: Path) -> None:
        async with FrontDoor(where):
            pass

    with pytest.raises(ConfigurationError, match="no socket"):
        asyncio.run(enter(path))
    assert path.read_text() == "precious"
    with pytest.raises(ConfigurationError, match="107 bytes"):
        asyncio.run(enter(path.with_name("x" * 100)))
    path.unlink()
    (path.parent / "file").touch()
    with pytest.raises(PrerequisiteError, match="cannot listen"):
        asyncio.run(enter(path.parent / "file" / "q"))
