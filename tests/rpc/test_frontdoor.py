"""The front door: the kernel names the caller, and nobody can crowd out the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lark_agent.errors import ConfigurationError, PrerequisiteError
from lark_agent.linux import descriptors
from lark_agent.rpc.frontdoor import OPTIONS, Caller, FrontDoor, UnknownCallerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.root
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: callers of other uids")


class Witness(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # ships no types
    """Notes who calls; waits while told to."""

    def __init__(self, door: FrontDoor) -> None:
        self.door = door
        self.callers: list[Caller] = []
        self.watched = 0

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802  rpc name
        self.callers.append(self.door.caller(context))
        return health_pb2.HealthCheckResponse(status=1)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802  rpc name
        self.watched += 1
        try:
            await asyncio.sleep(300)
            yield health_pb2.HealthCheckResponse(status=1)
        finally:
            self.watched -= 1


@asynccontextmanager
async def door(path: Path, **limits: int) -> AsyncIterator[Witness]:
    async with FrontDoor(path, **limits) as front:
        witness, server = Witness(front), grpc.aio.server(options=OPTIONS)
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


LINGERER = """
import ctypes, os, select, socket, struct, subprocess, sys
path, kind = sys.argv[1:]
assert not ctypes.CDLL(None).unshare(0x40000000)  # a network of its own
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
os.setgroups([]); os.setuid(1001)
listener, near = socket.socket(), socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
listener.bind(("127.0.0.1", 0)); listener.listen()
near.connect(listener.getsockname())
far, _ = listener.accept()
near.setblocking(False)
try:
    while True: near.send(bytes(65536))
except BlockingIOError: pass
near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
door = socket.socket(socket.AF_UNIX)
door.connect(path)
try:
    if kind == "bytes before": door.sendall(b"PRI * HTTP/2.0")
    data = {"no bytes": b"", "many bytes": bytes(50000)}.get(kind, b"!")
    socket.send_fds(door, [data], [near.fileno()], socket.MSG_OOB if kind == "urgent" else 0)
    if kind == "urgent": door.sendall(b"after")
    if kind == "gone": door.close()
    answer = "sent"
except PermissionError:
    answer = "refused"
except BaseException as error:
    answer = repr(error)
if answer == "sent" and kind != "no bytes":  # else the only copy is ours
    os.close(near.detach())
print(answer, flush=True)
select.select([sys.stdin], [], [], 8)
os._exit(0)  # an orderly end would close the sockets one by one, and linger
"""


def attack(path: Path, kind: str) -> subprocess.Popen[str]:
    """Start a process that sends a descriptor whose close blocks, and holds it up for 8 s."""
    return subprocess.Popen(
        [sys.executable, "-c", LINGERER, str(path), kind],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def seconds_to_an_answer(path: Path) -> float:
    start = time.monotonic()
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(20)
        caller.connect(str(path))
        assert caller.recv(9)
    return time.monotonic() - start


@needs_root
@pytest.mark.parametrize("per_user", [5, 0], ids=["read", "unread"])
@pytest.mark.parametrize("passrights", [descriptors.SO_PASSRIGHTS, 9999], ids=["6.16", "before"])
@pytest.mark.parametrize(
    "kind", ["a byte", "many bytes", "no bytes", "bytes before", "urgent", "gone"]
)
def test_a_descriptor_whose_close_blocks_delays_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, passrights: int, per_user: int
) -> None:
    """A user who sends a lingering socket, read by the door or not, keeps no other waiting.

    Such a user's place is free again soon, for the close did not block after all.
    """
    monkeypatch.setattr(descriptors, "SO_PASSRIGHTS", passrights)
    # without a byte there is no message, so nothing to refuse
    can_refuse = kind != "no bytes" and passrights != 9999 and passrights_known()

    async def talk() -> None:
        async with door(path, most_per_user=per_user) as witness:
            with attack(path, kind) as attacker:
                assert attacker.stdout is not None
                # the loop stands still meanwhile: all is in the queue before the door looks
                went = attacker.stdout.readline().strip()
                assert await asyncio.to_thread(seconds_to_an_answer, path) < 2
                assert went == ("refused" if can_refuse else "sent")
            async with asyncio.timeout(5):
                while witness.door._open_by_uid[1001]:  # noqa: ASYNC110  nobody tells
                    await asyncio.sleep(0.05)

    asyncio.run(talk())


def passrights_known() -> bool:
    """Tell whether this kernel lets a receiver refuse descriptors."""
    with socket.socket(socket.AF_UNIX) as any_socket, contextlib.suppress(OSError):
        any_socket.setsockopt(socket.SOL_SOCKET, descriptors.SO_PASSRIGHTS, 0)
        return True
    return False


@needs_root
def test_a_place_is_taken_until_the_close_is_done(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a close does block, its user can keep no more of them than connections."""
    monkeypatch.setattr(descriptors, "SO_PASSRIGHTS", 9999)
    monkeypatch.setattr(descriptors, "_keep_only", lambda _: None)  # as without unshare(2)

    async def talk() -> None:
        async with door(path, most_per_user=1):
            with attack(path, "gone") as attacker:
                assert attacker.stdout is not None
                assert attacker.stdout.readline() == "sent\n"
                await asyncio.sleep(0.3)
                assert not await greeted(path, 1001)
                assert await greeted(path, 1002)
            # its end resets the connection, and that ends the wait
            async with asyncio.timeout(5):
                while not await greeted(path, 1001):
                    pass

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
