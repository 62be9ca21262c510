"""What is under way when a job ends still arrives and is counted; what outlives it is cut off.

The campus sends at `RATE`: what it answers stands in a queue for some 20 ms before it is on the
wire, so that something is under way whenever a job is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from lark_agent.agent.drain import QUIET_SECONDS, InSandbox, Moved, drain
from lark_agent.linux import namespaces
from lark_agent.model import Connectivity, Count
from lark_agent.sandbox.connectivity import Sandbox
from tests.agent.test_exactness import Far
from tests.agent.worker import QUICK, final, python, until
from tests.lab.topology import CAMPUS
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
# takes connections and says how many bytes each brought; keeps the second kind open for ever
SINK = """
import socket, sys, threading
slow = sys.argv[1] == "slow"
server = socket.create_server(("::", 6000), family=socket.AF_INET6, dualstack_ipv6=True)
print("on", flush=True)
kept = []
def drain(connection):
    total = 0
    while data := connection.recv(20000):
        total += len(data)
        if slow:
            threading.Event().wait(0.002)
    print("got", total, flush=True)
    kept.append(connection)
    if sys.argv[1] != "keeps":
        connection.close()
while True:
    connection, _ = server.accept()
    threading.Thread(target=drain, args=(connection,), daemon=True).start()
"""
HAND_OVER = """
import os, socket, sys
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
sock.connect((sys.argv[1], 6000))
left = 1_000_000
while left:
    left -= sock.send(bytes(min(left, 100_000)))
os._exit(0)
"""


RATE = "20mbit"
URL = f"http://{CAMPUS.ipv4}"
DOWN = f"curl -sSf -o /dev/null {URL}/bytes/400000000"
LENGTH = "-H Content-Length:400000000 -H Transfer-Encoding: -H Expect:"
UP = f"curl -sSf -T - {LENGTH} {URL}/up < /dev/zero"
# asks the echo service again and again, with 50 datagrams under way
ASK = f"""
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("{CAMPUS.ipv4}", 7))
for _ in range(50):
    sock.send(bytes(1000))
while True:
    try:
        sock.send(sock.recv(2000))
    except ConnectionError:
        sock.connect(("{CAMPUS.ipv4}", 7))
"""
KILLED = {
    "download-killed-with-its-parent": f"{DOWN} & sleep 0.4; kill -9 $! $$",
    "upload-killed-with-its-parent": f"{UP} & sleep 0.4; kill -9 $! $$",
    "parent-killed-child-lives": f"{DOWN} & sleep 0.4; kill -9 $$",
    "child-in-a-session-of-its-own": f"setsid {DOWN} & sleep 0.4",
    "child-uploads-in-a-session-of-its-own": f"setsid sh -c '{UP}' & sleep 0.4",
    "download-killed-and-failed": f"{DOWN} & sleep 0.4; kill -9 $!; exit 1",
    "UDP-killed": f"exec python3 -c '{ASK}' & sleep 0.4; kill -9 $! $$",
    "UDP-child-lives": f"setsid python3 -c '{ASK}' & sleep 0.4",
}
# reads from the echo service until that fails, then tries to reach it anew
SURVIVOR = f"""
import json, os, pathlib, socket, sys, time
there = pathlib.Path(sys.argv[1])
tcp = socket.create_connection(("{CAMPUS.ipv4}", 7))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(("{CAMPUS.ipv4}", 7))
if os.fork():
    raise SystemExit(0)
os.setsid()
def failure(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
lost = [failure(lambda: sock.recv(1)) for sock in (tcp, udp)]
lost_ns = time.time_ns()
time.sleep(0.05)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
again = [
    failure(lambda: socket.create_connection(("{CAMPUS.ipv4}", 7), 3)),
    failure(lambda: udp.sendto(b"x", ("{CAMPUS.ipv4}", 7)) and udp.settimeout(3) or udp.recv(1)),
]
(there / "new").write_text(json.dumps({{"lost": lost, "lost_ns": lost_ns, "again": again}}))
(there / "new").rename(there / "told")
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab() as made:
        made.agent(QUICK)
        slow = ["tbf", "rate", RATE, "burst", "16k", "limit", "10m"]
        made.run(["tc", "qdisc", "add", "dev", CAMPUS.interface, "root", *slow], host="campus")
        yield made


@pytest.mark.parametrize("address", [CAMPUS.ipv4, CAMPUS.ipv6], ids=["IPv4", "IPv6"])
def test_the_last_megabyte_arrives(world: Lab, address: str) -> None:
    """A job that hands a megabyte to the kernel and ends loses nothing, slow reader or not."""
    sink = world.start(python(SINK, "slow"), host="campus")
    until(lambda: "on" in sink.stdout, "a server")
    job = world.start_job(python(HAND_OVER, address))
    assert job.result().status == 0
    record = final(world, job.job_id)
    until(lambda: "got" in sink.stdout, "the end of the connection")
    assert "got 1000000" in sink.stdout
    assert record.usage.sent.bytes > 1_000_000
    assert record.usage.received.packets > 0
    assert record.ended_ns < record.sampled_ns
    sink.signal(9)
    sink.wait()


def test_a_peer_that_never_closes_costs_no_more_than_the_limit(world: Lab) -> None:
    """The final record comes `drain_seconds` after the job's end at the latest."""
    sink = world.start(python(SINK, "keeps"), host="campus")
    until(lambda: "on" in sink.stdout, "a server")
    job = world.start_job(python(HAND_OVER, CAMPUS.ipv4))
    assert job.result().status == 0
    ended = time.monotonic()
    record = final(world, job.job_id)
    waited = time.monotonic() - ended
    assert "got 1000000" in sink.stdout
    assert (record.sampled_ns - record.ended_ns) / 1e9 >= 2.5, "it was not waited at all"
    assert waited < 10
    sink.signal(9)
    sink.wait()


def test_a_job_that_closes_in_order_is_final_at_once(world: Lab) -> None:
    """Nobody waits where nothing is undelivered: the drain is not a fixed delay."""
    waits = []
    for _ in range(4):
        job = world.start_job(["sh", "-c", f"curl -sSf {URL}/bytes/9 && sleep 0.2"])
        assert job.result().status == 0
        record = final(world, job.job_id)
        assert record.usage.received.bytes > 0
        waits.append((record.sampled_ns - record.ended_ns) / 1e9)
    assert min(waits) < QUIET_SECONDS, waits


@pytest.mark.parametrize("script", KILLED.values(), ids=KILLED)
def test_a_killed_job_is_counted_to_the_byte(world: Lab, tmp_path: Path, script: str) -> None:
    """What was under way when the job was killed is in its record: difference 0, and no waiting."""
    with Far(world, tmp_path) as far:
        job = world.start_job(["bash", "-c", script])
        job.result()
        record = final(world, job.job_id)
        time.sleep(0.3)  # what the record has missed shall be captured
    sent, received = far.sums()
    assert world.lost() == 0, "the laboratory's own links lost packets"
    assert (record.usage.sent.packets, record.usage.sent.bytes) == tuple(sent.values())
    assert (record.usage.received.packets, record.usage.received.bytes) == tuple(received.values())
    assert sum((sent["bytes"], received["bytes"])) > 100_000
    assert (record.sampled_ns - record.ended_ns) / 1e9 < 2, "that was drain_seconds"


def test_a_survivor_loses_its_connections_at_once(world: Lab) -> None:
    """A process that outlives its job is disconnected before the final record and stays so."""
    inside = "/run/lab/home/alice/survivor"
    there = world.path(inside)
    there.mkdir()
    there.chmod(0o777)
    job = world.start_job(python(SURVIVOR, inside))
    assert job.result().status == 0
    record = final(world, job.job_id)
    until((there / "told").exists, "a survivor that notices")
    told = json.loads((there / "told").read_text())
    assert told["lost"] == ["ConnectionAbortedError"] * 2
    assert record.ended_ns <= told["lost_ns"] <= record.sampled_ns
    assert None not in told["again"]


@pytest.mark.parametrize(
    ("readings", "orderly", "least", "looks"),
    [
        ([5, 5], True, 0.0, 2),
        ([5, 5], False, 0.1, None),
        ([5, 6, 6], True, 0.1, None),
        ([5, 6, 6, 7, 8, 8], True, 0.13, None),
        (list(range(1000)), True, 0.45, None),
    ],
    ids=["quiet", "failed", "packets-arrive", "more-packets-arrive", "packets-for-ever"],
)
def test_counters_that_move_are_waited_for(
    fresh_host: Path, readings: list[int], orderly: bool, least: float, looks: int | None
) -> None:
    """Packets that still arrive without a connection are waited for, within the limit.

    Where nothing moves, two looks at the counters are all: how long they take is the machine's.
    """
    sandbox = Sandbox(3, Connectivity.NAT)
    namespaces.create(sandbox.name, lambda: None)
    left, taken = iter(readings), 0

    async def moved() -> Moved:
        nonlocal taken
        taken += 1
        number = next(left, readings[-1])
        return Moved(Count(1, 1), Count(number, number))

    start = time.monotonic()
    asyncio.run(drain(3, InSandbox(sandbox.name), moved, 0.5, orderly=orderly))
    assert least <= time.monotonic() - start < 10
    assert looks is None or taken <= looks
    namespaces.delete(sandbox.name)
