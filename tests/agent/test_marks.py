"""Code points that follow from priorities, as the network behind the worker sees them."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.agent.test_change import change, told
from tests.agent.worker import ONCE, QUICK, Talker, wanted
from tests.lab.capture import Capture, flows
from tests.lab.topology import CAMPUS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
CONFIG = (
    QUICK
    + """
[uplink]
rate = "100 Mbit/s"
priority_dscp = [46, 34, 26, 18, 0, 0, 1, 8]
[queues.low]
priority = 6
"""
    + wanted({"urgent": "priority = 0", "own": "priority = 0\ndscp = 12", "low": 'queue = "low"'})
)


def test_a_jobs_place_is_on_its_packets(lab: Lab, tmp_path: Path) -> None:
    """That of its priority or queue, of the next packet after a change; its own if it has one."""
    lab.agent(CONFIG)
    with Capture("eth0", tmp_path / "campus.pcap", lab.netns("campus")) as capture:
        for profile in ("urgent", "own", "low"):
            ad = {"Want": profile}
            talker = Talker(lab, start=lambda command, ad=ad: lab.start_job(command, ad=ad))  # type: ignore[misc]  # bound as a default
            talker.talk()
            if profile == "urgent":
                said = told(change(lab, talker.job.job_id, "priority=7"))
                assert said == [("root", "priority", "7"), ("root", "dscp", "8")]
                talker.talk()
                change(lab, talker.job.job_id, "dscp=3")
                talker.talk()
                change(lab, talker.job.job_id, "dscp=priority", "priority=1")
                talker.talk()
            talker.end()
    sent = (packet for packet in flows(capture.path) if packet.dst == CAMPUS.ipv4)
    points = Counter(packet.traffic_class >> 2 for packet in sent)
    assert points == dict.fromkeys((46, 8, 3, 34, 12, 1), ONCE.packets)
