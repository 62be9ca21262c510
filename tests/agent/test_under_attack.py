"""A job with a guarantee uploads while another job floods: its share and its record stay right.

The victim sends to the campus, the floods go elsewhere, so what a capture at the campus shows is
the victim's alone. Its pace is compared with that beside an honest job of the same run, which takes
what it can get of the same uplink, too. The bounds are wide because a flood costs the machine
processor time, and a laboratory's machine has few of them; they are stated in docs/hostile.md.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import Count
from tests.agent.test_shaping import UP, Upload, paces, profiles
from tests.agent.worker import drops, final, until
from tests.lab.capture import Capture, flows
from tests.lab.filesystem import ROOT
from tests.lab.topology import CAMPUS, INTERNET, WORKER

if TYPE_CHECKING:
    from pathlib import Path

    from lark_agent.model import Record
    from tests.lab.jobs import JobHandle
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
GUARANTEE = 30
"""Mbit/s, of an uplink of 40."""
LEAST_OF_PLAN, LEAST_OF_HONEST = 0.75, 0.5
"""What a flood must leave of the guarantee, and of what an honest job leaves."""
LEAST_BESIDE_CONNTRACK = 0.3
"""Of the guarantee, while the kernel counts connections, which it does by walking all of them."""
LATE = 3
"""Answers that a busy machine may bring after the end of whom they are for."""
FLOODS = {
    "packets": set[str](),
    "connections": set[str](),
    "conntrack": set[str](),
    "fragments": set[str](),
    "raw_sockets": {"spoofed-address", "class-denied"},
    "neighbours": {"peer-denied"},
}
"""What is tried → why all of it, or none of it, is dropped."""


def flood(lab: Lab, name: str) -> JobHandle:
    """Start a job of bob's that tries something again and again."""
    code = str(ROOT / "tests/lab/hostile.py")
    addresses = [INTERNET.ipv4, INTERNET.ipv6, INTERNET.ipv4]
    command = ["/usr/bin/python3", "-I", "-S", code, *addresses, "--forever", name]
    job = lab.start_job(command, user="bob")
    until(lambda: "begun" in job.starter.stdout, f"a flood: {job.starter.stderr}")
    return job


def best(lab: Lab, upload: Upload, enough: float) -> float:
    """Return the best pace of up to three seconds: a flood costs the machine processor time."""
    pace = 0.0
    for _ in range(3):
        pace = max(pace, *paces(lab, upload, seconds=1))
        if pace > enough:
            break
    return pace


def ended(lab: Lab, job: JobHandle) -> Record:
    """Kill a job; returns its record."""
    job.kill(9)
    job.result()
    return final(lab, job.job_id)


def test_floods_leave_a_share_and_its_record_right(lab: Lab, tmp_path: Path) -> None:
    """Beside each flood the victim has its guarantee; what it sent is what arrived."""
    lab.agent(profiles(sure=f'guarantee = "{GUARANTEE} Mbit/s"'))
    with Capture(CAMPUS.interface, tmp_path / "campus.pcap", lab.netns("campus")) as capture:
        victim = Upload(lab, Share="sure")
        honest = lab.start_job(["sh", "-c", UP.replace(CAMPUS.ipv4, INTERNET.ipv4)], user="bob")
        (beside,) = paces(lab, victim, seconds=1)
        assert ended(lab, honest).usage.sent.bytes > 1_000_000
        left, reasons = {}, {}
        for name in FLOODS:
            job = flood(lab, name)
            left[name] = best(lab, victim, LEAST_OF_PLAN * GUARANTEE)
            record = ended(lab, job)
            # an answer may still come when its sandbox's plan is over: that is nobody's flood
            reasons[name] = set(drops(record)) - {"no-plan"}
            assert record.usage.sent or record.usage.dropped, f"{name} flooded nothing"
        record = victim.end()
    assert beside > LEAST_OF_PLAN * GUARANTEE
    assert left.pop("conntrack") > LEAST_BESIDE_CONNTRACK * GUARANTEE
    assert min(left.values()) > LEAST_OF_PLAN * GUARANTEE, left
    assert min(left.values()) > LEAST_OF_HONEST * beside, (left, beside)
    assert reasons == FLOODS
    arrived = flows(capture.path)
    sent = [packet.ip_len for packet in arrived if packet.src == WORKER.ipv4]
    received = [packet.ip_len for packet in arrived if packet.dst == WORKER.ipv4]
    # a busy machine's own links lose some of a flood, and of what was sent beside it
    assert 0 <= record.usage.sent.packets - len(sent) <= lab.lost()
    assert record.usage.sent == Count(len(sent), sum(sent)) or lab.lost()
    # … and are late: answers to the last of a job that was killed may find no network
    missing = len(received) - record.usage.received.packets
    assert 0 <= missing <= lab.lost() + LATE
    assert missing or record.usage.received == Count(len(received), sum(received))
    assert drops(record).keys() <= {"no-plan"}
