"""The demo is the product's promise in one line; it must hold, and must be able to fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.lab.capture import Packet
from tests.lab.demo import attribute, compare
from tests.lab.filesystem import ROOT
from tests.lab.process import LabError
from tests.lab.topology import INTERNET, WORKER

TCP = 6


def record(first_port: int, sent: int, received: int) -> dict[str, Any]:
    return {
        "job_id": f"job{first_port}", "owner": "alice", "first_port": first_port,
        "last_port": first_port + 99 if first_port else 0,
        "sent": {"bytes": sent}, "received": {"bytes": received},
    }  # fmt: skip


def out(port: int, length: int) -> Packet:
    return Packet(WORKER.ipv4, INTERNET.ipv4, TCP, port, 80, length)


def back(port: int, length: int) -> Packet:
    return Packet(INTERNET.ipv4, WORKER.ipv4, TCP, 80, port, length)


def verdict(records: list[dict[str, Any]], packets: list[Packet]) -> tuple[str, int]:
    return compare({r["job_id"]: "a title" for r in records}, records, packets)


def test_equal_counts_are_no_difference() -> None:
    """Bytes are attributed by the worker's port, in both directions; other hosts' do not count."""
    records = [record(20000, 300, 50), record(20100, 7, 0), record(0, 0, 0)]
    packets = [out(20000, 100), out(20099, 200), back(20050, 50), out(20100, 7), out(50000, 9)]
    packets.append(Packet(INTERNET.ipv4, "192.0.2.1", TCP, 80, 20000, 1000))
    assert verdict(records, packets) == (
        "demo: 3 jobs, 357 bytes on the wire, 0 bytes difference",
        0,
    )


@pytest.mark.parametrize(
    ("packets", "difference"),
    [
        ([], 150),
        ([out(20000, 100), back(20000, 49)], 1),
        ([out(20000, 50), back(20000, 100)], 100),
        ([out(20000, 100), back(20000, 50), out(30000, 40)], 40),
    ],
    ids=["nothing seen", "a byte", "directions swapped", "ports of nobody"],
)
def test_differences_are_found(packets: list[Packet], difference: int) -> None:
    """What one side alone saw, either way or in nobody's ports, is a difference, and fails."""
    text, status = verdict([record(20000, 100, 50)], packets)
    assert text.endswith(f", {difference} bytes difference")
    assert status == 1


def test_shared_ports_are_refused() -> None:
    """Where two jobs had the same ports, captures cannot tell, and nothing is claimed."""
    with pytest.raises(LabError, match="two jobs had the ports from 20000"):
        attribute([record(20000, 0, 0), record(20000, 0, 0)], [])


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces")
def test_the_demo_ends_with_no_difference() -> None:
    """`make demo` runs six or more jobs, and the last line says that not one byte differs."""
    command = [sys.executable, "-m", "tests.lab.demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(r"demo: (\d+) jobs, (\d+) bytes on the wire, 0 bytes difference", last)
    assert found
    assert int(found[1]) >= 6
    assert int(found[2]) > 60_000_000
