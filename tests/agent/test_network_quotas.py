"""Quotas of jobs on a network of the site: the same as behind the worker, where they can hold."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import Count
from tests.agent.test_networks import NETWORKS, SITE4, lab, pytestmark
from tests.agent.test_quotas import FITS, LIMIT, PACKET, told
from tests.agent.worker import ONCE, QUICK, Talker, drops, final, refused_start

if TYPE_CHECKING:
    from tests.lab.world import Lab

__all__ = ["lab", "pytestmark"]


def limited(profile: str, quota: str) -> str:
    """Configure a worker whose jobs are on one network and have one quota."""
    key = f"[profiles.{profile}]\n"
    held = NETWORKS.replace(key, f'{key}quotas = ["q"]\n')
    return f'default_profile = "{profile}"\n{QUICK}{held}[quotas.q]\nbytes = "{LIMIT}"\n{quota}\n'


def alone(lab: Lab, profile: str) -> None:
    """Make the site's interface what the network of a profile needs."""
    if profile == "bare":
        lab.run(["ip", "link", "set", "up0", "nomaster"])


@pytest.mark.parametrize("profile", ["lab", "bare"])
def test_a_quota_cuts_to_the_packet(lab: Lab, profile: str) -> None:
    """At the worker's end of a veth and in the sandbox alike: what fits, and not a packet more."""
    alone(lab, profile)
    lab.agent(limited(profile, 'action = "cut-all"'))
    talker = Talker(lab, to=SITE4)
    for _ in range(3):
        talker.talk()
    assert told(lab, talker.job.job_id).value == f"{LIMIT} used up"
    talker.end()
    record = final(lab, talker.job.job_id)
    assert record.usage.sent == Count(FITS, FITS * PACKET)
    assert drops(record)["quota"] == 300 - FITS


def test_a_throttle_holds_packets_back_on_a_bridge(lab: Lab) -> None:
    """What comes after it waits for its turn and none of it is lost."""
    lab.agent(limited("lab", 'action = "throttle"\nthrottle = "1 Mbit/s"'))
    talker = Talker(lab, to=SITE4)
    for _ in range(3):
        talker.talk()
    assert told(lab, talker.job.job_id).value == f"{LIMIT} used up, rate 1 Mbit/s"
    began = time.monotonic()
    for _ in range(3):
        talker.talk()
    # 2.5 s of bytes at that rate, of which a socket's buffer takes two thirds at most
    assert time.monotonic() - began > 0.5
    talker.end()
    record = final(lab, talker.job.job_id)
    assert record.usage.sent == Count(6 * ONCE.packets, 6 * ONCE.bytes)
    assert "quota" not in drops(record)


def test_a_throttle_is_refused_where_nothing_can_wait(lab: Lab) -> None:
    """A macvlan sandbox has no end on the worker: the agent does not start with such a profile."""
    alone(lab, "bare")
    status, said = refused_start(lab, limited("bare", 'action = "throttle"\nthrottle = "1 Mbit/s"'))
    assert status == 2
    assert "connectivity macvlan has no quota 'q', which throttles" in said
