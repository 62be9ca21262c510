"""What a job had handed to the kernel when it ended still arrives, within limits."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

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


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab() as made:
        made.agent(QUICK)
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


def test_a_job_that_closes_in_order_is_final_at_once(world: Lab, tmp_path: Path) -> None:
    """Nobody waits where nothing is undelivered: the drain is not a fixed delay."""
    job = world.start_job(["curl", "-sSf", "-o", "/dev/null", f"http://{CAMPUS.ipv4}/bytes/9"])
    assert job.result().status == 0
    record = final(world, job.job_id)
    assert (record.sampled_ns - record.ended_ns) / 1e9 < 2.5
