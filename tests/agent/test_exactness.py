"""A job's record and what captures at the far ends saw are equal, to the packet and the byte.

The whole chain is real: job, wrapper, sandbox, datapath, NAT, agent, collector. Offloads are on at
the worker, so the datapath sees super-packets both ways, and off at the far ends, so that captures
see what is on the wire. One job runs at a time; everything between worker and servers is its.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Self

import pytest

from tests.lab.capture import Capture, flows
from tests.lab.demo import final_records
from tests.lab.topology import FAR, WORKER
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.root

AGENT = """
[collector]
address = "127.0.0.1:9620"
insecure = true
[accounting]
interval_seconds = 1
[pool]
ready = 2
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
"""
PING = "ping -q -i 0.01"
CAMPUS4, CAMPUS6, INTERNET4 = "198.51.100.10", "2001:db8:2::10", "203.0.113.10"

UPLOAD = f"""
head -c 500000000 /dev/zero | curl -sSf -H 'Content-Length: 500000000' \\
  -H Transfer-Encoding: -H Expect: -T - http://{CAMPUS4}/up
"""
DATAGRAMS = f"""
import socket, time
for address in ("{INTERNET4}", "{CAMPUS6}"):
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((address, 9))
    for size in range(0, 1400, 7):
        sock.send(bytes(size))
    sock.setsockopt(socket.IPPROTO_UDP, 103, 1100)  # UDP_SEGMENT
    for size in (1100, 1101, 2200, 20 * 1100 + 13, 50 * 1100):
        for _ in range(4):
            sock.send(bytes(size))
            time.sleep(0.002)
"""
FRAGMENTS = f"""
import socket, time
for address in ("{CAMPUS4}", "{CAMPUS6}"):
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(10)
    sock.connect((address, 7))
    for size in (1473, 3000, 8000, 30000, 60000):
        sock.send(bytes(size))
        assert len(sock.recv(65536)) == size
"""
SINGLE_BYTES = f"""
import socket
sock = socket.create_connection(("{CAMPUS4}", 7))
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
sock.settimeout(30)
for number in range(3000):
    sock.send(b"x")
    if number % 100 == 99:
        got = 0
        while got < 100:
            got += len(sock.recv(4096))
sock.close()
"""
CONNECTIONS = f"""
import socket, struct
for number in range(10000):
    address = ("{CAMPUS4}", "{CAMPUS6}")[number % 2]
    with socket.create_connection((address, 7), 30) as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
"""
PARALLEL = f"""
import threading, urllib.request
def fetch(url):
    with urllib.request.urlopen(url) as answer:
        while answer.read(1 << 20):
            pass
hosts = ("{CAMPUS4}", "[{CAMPUS6}]", "{INTERNET4}")
urls = [f"http://{{host}}/bytes/2000000" for host in hosts]
threads = [threading.Thread(target=fetch, args=(url,)) for url in urls * 16]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
# The kernel lets only root add extension headers, so this one runs beside the job in its sandbox.
EXTENSIONS = f"""
import socket
hop = bytes([0, 0, 1, 4, 0, 0, 0, 0])   # PadN: 8 bytes
dst = bytes([0, 1, 0x1E, 12]) + bytes(12)  # RFC 4727 experiment, to be skipped: 16 bytes
for kind, port in ((socket.SOCK_DGRAM, 9), (socket.SOCK_STREAM, 7)):
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, hop)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, dst)
    sock.settimeout(10)
    sock.connect(("{CAMPUS6}", port))
    if kind == socket.SOCK_DGRAM:
        for size in (0, 1, 999, 1300, 5000):
            sock.send(bytes(size))
    else:
        sent = bytes(100000)
        sock.sendall(sent)
        got = 0
        while got < len(sent):
            got += len(sock.recv(65536))
    sock.close()
"""


def python(code: str) -> list[str]:
    return ["/usr/bin/python3", "-I", "-c", code]


CASES = {
    "tcp-bulk-down": ["curl", "-sSf", "-o", "/dev/null", f"http://{INTERNET4}/bytes/600000000"],
    "tcp-bulk-up": ["sh", "-c", UPLOAD],
    "udp-and-udp-segment": python(DATAGRAMS),
    "icmp": ["sh", "-c", f"{PING} -c 20 {CAMPUS4} && {PING} -c 20 {CAMPUS6}"],
    "icmp-fragments": ["sh", "-c", f"{PING} -c5 -s 9000 {CAMPUS4} && {PING} -c5 -s 9000 {CAMPUS6}"],
    "udp-fragments": python(FRAGMENTS),
    "one-byte-segments": python(SINGLE_BYTES),
    "ten-thousand-connections": python(CONNECTIONS),
    "parallel-flows": python(PARALLEL),
}


@pytest.fixture(scope="module")
def system() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces")
    with Lab() as lab:
        lab.collector()
        lab.agent(AGENT)
        yield lab


class Far:
    """Captures at both servers, compared with a job's record."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.captures = [
            Capture(far.interface, folder / f"{far.name}.pcap", lab.netns(far.name)) for far in FAR
        ]

    def __enter__(self) -> Self:
        for capture in self.captures:
            capture.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for capture in self.captures:
            capture.__exit__(None, None, None)

    def sums(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return (sent, received) of the worker, as records write them."""
        ours = {WORKER.ipv4, WORKER.ipv6}
        packets = [packet for capture in self.captures for packet in flows(capture.path)]
        sent = [packet.ip_len for packet in packets if packet.src in ours]
        received = [packet.ip_len for packet in packets if packet.dst in ours]
        return (
            {"packets": len(sent), "bytes": sum(sent)},
            {"packets": len(received), "bytes": sum(received)},
        )


def compare(lab: Lab, far: Far, job_id: str) -> dict[str, int]:
    (record,) = final_records(lab, [job_id])
    sent, received = far.sums()
    assert lab.lost() == 0, "the laboratory's own links lost packets"
    assert record["drops"] == []
    assert (record["sent"], record["received"]) == (sent, received)
    return {"sent": sent["bytes"], "received": received["bytes"]}


@pytest.mark.parametrize("case", CASES)
def test_record_equals_captures(system: Lab, tmp_path: Path, case: str) -> None:
    """Difference 0 in packets and bytes, both ways, whatever the job sends."""
    with Far(system, tmp_path) as far:
        job = system.start_job(CASES[case])
        done = job.result(200)
        assert done.status == 0, done.stderr
        final_records(system, [job.job_id])
    moved = compare(system, far, job.job_id)
    least = {"tcp-bulk-down": ("received", 600_000_000), "tcp-bulk-up": ("sent", 500_000_000)}
    direction, bytes_ = least.get(case, ("sent", 1))
    assert moved[direction] >= bytes_


def test_extension_headers_are_counted_whole(system: Lab, tmp_path: Path) -> None:
    """Hop-by-hop and destination options count as the IP bytes they are, segmented or not."""
    with Far(system, tmp_path) as far:
        job = system.start_job(["sh", "-c", "cat > /dev/null; sleep 30"])
        slot = running_slot(system, job.job_id)
        system.run(["ip", "netns", "exec", f"lark{slot}", *python(EXTENSIONS)])
        job.kill(signal.SIGTERM)
        job.result(60)
        final_records(system, [job.job_id])
    compare(system, far, job.job_id)


def running_slot(lab: Lab, job_id: str) -> int:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        command: Sequence[str] = ["lark", "--agent", "/run/lark/agent.sock", "jobs", "--json"]
        for record in json.loads(lab.run(command).stdout)["jobs"]:
            if record["job_id"] == job_id:
                return int(record["slot"])
        time.sleep(0.1)
    raise AssertionError(f"{job_id} does not run")
