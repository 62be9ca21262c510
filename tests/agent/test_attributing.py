"""Each line of an agent's log that is about a job says about which attachment."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lark_agent.agent.attributing import finder
from tests.accounting.test_journal import record
from tests.agent.worker import QUICK, final, python, until

if TYPE_CHECKING:
    from tests.lab.world import Lab


def test_a_slot_a_sandbox_and_a_job_lead_to_the_attachment() -> None:
    """Of those that live; what is about no job of here gets none."""
    first, second = (
        replace(record(job_id="1.0"), slot=3),
        replace(record("bob", job_id="2.0"), slot=4),
    )
    living: dict[str, Any] = {r.attachment_id: SimpleNamespace(record=r) for r in (first, second)}
    find = finder(lambda: living)
    assert find({"slot": 3}) == first.attachment_id
    assert find({"sandbox": "lark4"}) == second.attachment_id
    assert find({"job": "2.0"}) == second.attachment_id
    for stranger in (
        {"slot": 5},
        {"sandbox": "lark9"},
        {"sandbox": "larkspur"},
        {"job": "3.0"},
        {},
    ):
        assert find(stranger) == ""
    # the slot is what the line is about, whatever else it names
    assert find({"slot": 3, "job": "2.0"}) == first.attachment_id


SLOW = 'default_profile = "slow"\n' + QUICK + '[profiles.slow]\nrate = "100 kbit/s"\n'
FLOOD = """
import socket, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.connect(("198.51.100.10", 9))
    while True:
        sock.send(bytes(1000))
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces")
def test_what_is_said_of_a_slot_can_be_found_by_the_attachment(lab: Lab) -> None:
    """What a job's rate held back is cut: the line that knows only the slot has the id as well."""
    agent = lab.agent(SLOW)
    job = lab.start_job(python(FLOOD))
    until(lambda: "attached" in agent.stderr, "a job that runs")
    time.sleep(1)
    job.kill(signal.SIGKILL)
    ended = final(lab, job.job_id)
    until(lambda: "event=final" in agent.stderr, "the last line")
    about = [line for line in agent.stderr.splitlines() if "slot=" in line or "job=" in line]
    assert [line for line in about if f"attachment={ended.attachment_id}" not in line] == []
    assert any("cut what waited for its rate" in line for line in about), agent.stderr
