"""The collector as a service: started, asked, stopped, run out of disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lark_agent.collector.daemon import Daemon
from lark_agent.collector.schema import StoreFullError
from lark_agent.collector.store import Store
from lark_agent.config import CollectorSettings
from lark_agent.errors import PrerequisiteError
from lark_agent.rpc.channel import connect
from lark_agent.rpc.lark.v1 import query_pb2, query_pb2_grpc
from tests.collector.world import Worker, later, record
from tests.conftest import mount

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = str(Path(sys.executable).with_name("lark-collector"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: users and namespaces")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a directory whose path is short and that other users can enter."""
    with tempfile.TemporaryDirectory(prefix="lark-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def settings_in(folder: Path) -> CollectorSettings:
    """Have workers report on a unix socket: these tests are not about TCP."""
    return CollectorSettings(
        listen=f"unix:{folder}/reports",
        socket=f"{folder}/q",
        store=f"sqlite:///{folder}/s/u.sqlite",
        insecure=True,
    )


async def health(address: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=20)
        return int(answer.status)


async def services(address: str) -> set[str]:
    """List what reflection tells of a server."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(timeout=20)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        await call.done_writing()
        return {service.name for service in answer.list_services_response.service}


def test_each_door_has_its_services(folder: Path) -> None:
    """Workers cannot ask and people cannot report; both find health and reflection."""
    common = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}

    async def talk() -> None:
        async with Daemon(settings_in(folder)):
            assert await services(f"unix:{folder}/reports") == common | {"lark.v1.Collector"}
            people = {"lark.v1.Query", "lark.v1.CollectorState"}
            assert await services(f"unix:{folder}/q") == common | people
            assert await health(f"unix:{folder}/reports", "lark.v1.Collector") == 1
            assert await health(f"unix:{folder}/q", "lark.v1.Query") == 1
            assert await health(f"unix:{folder}/q") == 1

    asyncio.run(talk())


def test_what_workers_report_people_are_told(folder: Path) -> None:
    """A record goes in at one door and its totals come out at the other."""

    async def talk() -> query_pb2.GetTotalsResponse:
        async with Daemon(settings_in(folder)):
            async with grpc.aio.insecure_channel(f"unix:{folder}/reports") as channel:
                worker = Worker(channel)
                await worker.hello()
                await worker.send(1, later(record(), {"other": 1234}))
                await worker.acknowledged()
            async with grpc.aio.insecure_channel(f"unix:{folder}/q") as channel:
                stub = query_pb2_grpc.QueryStub(channel)
                return await stub.GetTotals(query_pb2.GetTotalsRequest(), timeout=20)

    (total,) = asyncio.run(talk()).totals
    assert (total.jobs, total.sent.bytes) == (1, 1234)


def test_health_follows_the_store(folder: Path) -> None:
    """A store that takes no writes is NOT_SERVING for workers, and SERVING when it does again."""
    reports = f"unix:{folder}/reports"

    async def next_state(watch: Any) -> int:
        return int((await asyncio.wait_for(watch.read(), 30)).status)

    async def talk() -> None:
        async with (
            contextlib.AsyncExitStack() as stack,
            Daemon(settings_in(folder), probe_seconds=0.05) as daemon,
        ):
            rounds = asyncio.create_task(daemon.watch())
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(reports))
            request = health_pb2.HealthCheckRequest(service="lark.v1.Collector")
            watch = health_pb2_grpc.HealthStub(channel).Watch(request)
            assert await next_state(watch) == health_pb2.HealthCheckResponse.SERVING
            holder = await asyncio.create_subprocess_exec(
                sys.executable, "-c",
                "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
                "c.execute('BEGIN EXCLUSIVE'); sys.stdin.read()",
                f"{folder}/s/u.sqlite", stdin=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert await next_state(watch) == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await health(f"unix:{folder}/q", "lark.v1.Query") == 1, "people may still ask"
            holder.terminate()
            await holder.wait()
            assert await next_state(watch) == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
            rounds.cancel()

    asyncio.run(talk())


@needs_root
@pytest.mark.root
def test_a_full_disk_loses_nothing_that_was_acknowledged(fresh_host: Path, folder: Path) -> None:
    """Acknowledged until full, refused as full, complete once there is room."""
    # sockets stay in `folder`: threads that gRPC keeps from earlier tests do not see this /run
    small = Path("/run/s")
    small.mkdir()
    mount("small", "/run/s", "tmpfs")
    subprocess.run(["mount", "-o", "remount,size=3m", "/run/s"], check=True)
    settings = msgspec.structs.replace(settings_in(folder), store="sqlite:////run/s/u.sqlite")
    ballast = small / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    stored: list[str] = []
    refusals: list[tuple[grpc.StatusCode, str]] = []

    async def fill(channel: grpc.aio.Channel, start: int, stop: int) -> int:
        """Report until refused; returns the number of the first batch that was not stored."""
        worker = Worker(channel)
        await worker.hello()
        for number in range(start, stop):
            batch = [record(100 * number + n) for n in range(100)]
            await worker.send(number, *batch)
            try:
                acknowledged = await worker.acknowledged()
            except grpc.aio.AioRpcError as error:
                refusals.append((error.code(), error.details() or ""))
                return number
            assert acknowledged == number
            stored.extend(r.attachment_id for r in batch)
        return stop

    async def talk() -> None:
        async with (
            Daemon(settings),
            grpc.aio.insecure_channel(f"unix:{folder}/reports") as channel,
        ):
            stopped = await fill(channel, 0, 1000)
            assert 0 < stopped < 1000
            ((code, text),) = refusals
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "make room" in text
            ballast.unlink()
            assert await fill(channel, stopped, stopped + 2) == stopped + 2

    asyncio.run(talk())
    with contextlib.closing(sqlite3.connect("/run/s/u.sqlite")) as raw:
        kept = {row[0] for row in raw.execute("SELECT attachment_id FROM records")}
    assert kept == set(stored)
    subprocess.run(["umount", "/run/s"], check=True)


def test_a_store_that_is_full_at_the_start_can_be_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector starts, people are answered, and workers see NOT_SERVING."""

    def probe(_store: Store, _now_ns: int) -> None:
        raise StoreFullError("full")

    monkeypatch.setattr(Store, "probe", probe)

    async def talk() -> None:
        async with (
            Daemon(settings_in(folder)),
            grpc.aio.insecure_channel(f"unix:{folder}/q") as channel,
        ):
            assert await health(f"unix:{folder}/reports") == 2
            stub = query_pb2_grpc.QueryStub(channel)
            await stub.ListJobs(query_pb2.ListJobsRequest(), timeout=20)

    asyncio.run(talk())


ASK = """
import os, sys
from lark_agent.rpc.channel import connect
from lark_agent.rpc.lark.v1 import query_pb2, query_pb2_grpc
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[3]))
with connect(sys.argv[1]) as channel:
    answer = query_pb2_grpc.QueryStub(channel).ListJobs(query_pb2.ListJobsRequest())
print(*(r.job.owner for r in answer.records))
"""


@needs_root
@pytest.mark.root
def test_real_users_see_their_own_jobs(folder: Path) -> None:
    """Through the real socket: root sees both jobs, a user theirs, a uid without a name none."""
    user = pwd.getpwnam("daemon")

    async def asked(gid: int, uid: int) -> list[str]:
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ASK, f"{folder}/q", str(gid), str(uid),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await client.communicate()
        assert client.returncode == 0
        return output.decode().split()

    async def talk() -> None:
        async with Daemon(settings_in(folder)):
            async with grpc.aio.insecure_channel(f"unix:{folder}/reports") as channel:
                worker = Worker(channel)
                await worker.hello()
                await worker.send(1, record(1, owner="daemon"), record(2, owner="mallory"))
                await worker.acknowledged()
            assert await asked(0, 0) == ["mallory", "daemon"]
            assert await asked(user.pw_gid, user.pw_uid) == ["daemon"]
            assert await asked(54321, 54321) == []

    asyncio.run(talk())


def test_a_second_collector_is_refused_and_the_first_goes_on(folder: Path) -> None:
    """The same socket cannot be served twice; the error says what to do."""

    async def second() -> None:
        async with Daemon(settings_in(folder)):
            pass

    async def talk() -> None:
        async with Daemon(settings_in(folder)):
            with pytest.raises(PrerequisiteError, match="another process"):
                await second()
            assert await health(f"unix:{folder}/reports") == 1

    asyncio.run(talk())


def start(folder: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Run the command in a network of its own, where its port is free."""
    file = folder / "collector.toml"
    file.write_text("insecure = true\n")
    words = [
        COMMAND, "run", "--config", str(file), "--listen", "127.0.0.1:9620",
        "--socket", f"{folder}/q", "--store", f"sqlite:///{folder}/u.sqlite", *options,
    ]  # fmt: skip
    return subprocess.Popen(
        ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *words],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_root
@pytest.mark.root
def test_systemd_is_told_and_sigterm_is_obeyed(folder: Path) -> None:
    """READY=1 when people are answered, WATCHDOG=1 while well; at SIGTERM STOPPING=1, status 0."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{folder}/notify")
        manager.settimeout(30)
        collector = start(folder, NOTIFY_SOCKET=f"{folder}/notify", WATCHDOG_USEC="200000")
        assert manager.recv(1000).startswith(b"READY=1")
        with connect(f"{folder}/q") as channel:
            query_pb2_grpc.QueryStub(channel).ListJobs(query_pb2.ListJobsRequest())
        assert manager.recv(1000) == b"WATCHDOG=1\nSTATUS=taking reports"
        collector.send_signal(signal.SIGTERM)
        while (message := manager.recv(1000)) != b"STOPPING=1":
            assert message.startswith(b"WATCHDOG=1")
    _, log = collector.communicate(timeout=30)
    assert collector.returncode == 0
    assert "Traceback" not in log
    assert "exposed" not in log
    assert not (folder / "q").exists()


REPORT = """
import asyncio, sys
import grpc
from tests.collector.world import Worker, record
async def report():
    async with grpc.aio.insecure_channel("127.0.0.1:9620") as channel:
        worker = Worker(channel)
        await worker.hello()
        for number in range(100_000):
            await worker.send(number, record(number))
            await worker.acknowledged()
            print(record(number).attachment_id, flush=True)
asyncio.run(report())
"""


@needs_root
@pytest.mark.root
def test_what_was_acknowledged_survives_sigkill(folder: Path) -> None:
    """Killed in the middle of a stream, the store has every batch whose acknowledgement arrived."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{folder}/notify")
        manager.settimeout(30)
        collector = start(folder, NOTIFY_SOCKET=f"{folder}/notify")
        assert manager.recv(1000).startswith(b"READY=1")
    worker = subprocess.Popen(
        ["nsenter", f"--net=/proc/{collector.pid}/ns/net", sys.executable, "-c", REPORT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert worker.stdout is not None
    acknowledged = [worker.stdout.readline().strip() for _ in range(50)]
    collector.kill()
    collector.communicate(timeout=30)
    acknowledged += worker.communicate(timeout=30)[0].split()
    with contextlib.closing(sqlite3.connect(folder / "u.sqlite")) as raw:
        kept = {row[0] for row in raw.execute("SELECT attachment_id FROM records")}
    assert len(acknowledged) >= 50
    assert set(acknowledged) <= kept
    assert len(kept) <= len(acknowledged) + 1


@needs_root
@pytest.mark.root
def test_a_listener_beyond_loopback_is_warned_about(folder: Path) -> None:
    """Without encryption an open port is said loudly in the log, with what to do."""
    collector = start(folder, "--listen", "0.0.0.0:9620")
    assert collector.stderr is not None
    line = collector.stderr.readline()
    collector.terminate()
    collector.communicate(timeout=30)
    assert "level=warning" in line
    assert "without encryption" in line


@needs_root
@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--listen", "192.0.2.1:9620"], 3, "cannot listen on 192.0.2.1:9620"),
        (["--listen", "nowhere"], 2, "--listen: 'nowhere' is not host:port"),
        (["--config", "/nonexistent.toml"], 2, "/nonexistent.toml"),
        (["--store", "sqlite:////proc/u.sqlite"], 5, "/proc/u.sqlite"),
        (["--store", "mysql://h/d"], 2, "not supported"),
        (["--socket", "/proc/q"], 3, "cannot listen on /proc/q"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(
    folder: Path, options: list[str], status: int, says: str
) -> None:
    """Each failure is one line with the command's name, and the documented exit status."""
    collector = start(folder, *options)
    _, log = collector.communicate(timeout=30)
    assert collector.returncode == status
    *_, last = log.splitlines()
    assert last.startswith("lark-collector: ")
    assert says in last
    assert "Traceback" not in log


def test_check_names_every_finding_of_the_file(tmp_path: Path) -> None:
    """`check` prints the settings in force, or each finding with file and key, and status 2."""
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('listen = "[::1]:1"\n')
    bad.write_text('listen = "x"\nsocket = "y"\n')
    fine = subprocess.run(
        [COMMAND, "check", "--config", str(good)], check=True, capture_output=True, text=True
    )
    assert "listen = [::1]:1" in fine.stdout
    wrong = subprocess.run(
        [COMMAND, "check", "--config", str(bad)], check=False, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert [line.split(": ")[:3] for line in wrong.stderr.splitlines()] == [
        ["lark-collector", str(bad), "listen"],
        ["lark-collector", str(bad), "socket"],
    ]


def test_help_is_quick_and_shows_an_example() -> None:
    """Help needs neither gRPC nor the database library."""
    code = (
        "import sys; from lark_agent.cli import collector\n"
        "try: collector.collector(['run', '--help'])\n"
        "finally: assert not {'grpc', 'sqlalchemy'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "lark-collector run --listen" in shown.stdout
