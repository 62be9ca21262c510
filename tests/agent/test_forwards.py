"""A starter on the worker's loopback, asked by its job on a network of the site, which has no way.

The lab's starter is that of `tests.agent.test_launchers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lark_agent.model import Connectivity
from tests.agent.test_launchers import LOOPBACK, SERVE, Asker, answers, start, told
from tests.agent.test_networks import NETWORKS, lab, pytestmark
from tests.agent.worker import QUICK, final, kill, python, until
from tests.lab.topology import WORKER

if TYPE_CHECKING:
    from tests.lab.world import Lab

__all__ = ["lab", "pytestmark"]


def config(profile: str) -> str:
    return f'default_profile = "{profile}"\n{QUICK}{NETWORKS}'


@pytest.mark.parametrize("profile", ["lab", "bare"], ids=["bridge", "macvlan"])
def test_a_job_on_a_network_reaches_its_own_starter(lab: Lab, profile: str) -> None:
    """Where it was told, and neither other ports of that loopback nor another job's starter."""
    if profile == "bare":
        lab.run(["ip", "link", "set", "up0", "nomaster"])
    lab.agent(config(profile))
    other = Asker(lab)
    job = start(lab, f"{LOOPBACK},22", f"{LOOPBACK},{other.port}", f"{WORKER.ipv4},{other.port}")
    assert answers(job) == {"chirp": told(job)}
    record = final(lab, job.job_id)
    assert record.connectivity in {Connectivity.BRIDGE, Connectivity.MACVLAN}
    assert record.usage.classes == ()
    assert other.ask() == told(other.job)
    other.end()


def test_the_next_agent_carries_on(lab: Lab) -> None:
    """Killed and started anew, it listens again for the job that runs on."""
    agent = lab.agent(config("lab"))
    asker = Asker(lab)
    assert asker.ask() == told(asker.job)
    kill(agent)
    lab.agent(config("lab"))
    assert asker.ask() == told(asker.job)
    asker.end()


def test_a_port_of_a_starter_that_ended_is_nobodys(lab: Lab) -> None:
    """Whoever gets the number next on the worker's loopback is not the job's to reach."""
    lab.agent(config("lab"))
    asker = Asker(lab)
    assert asker.ask() == told(asker.job)
    asker.job.starter.signal(9)
    asker.job.starter.wait()
    thief = lab.start(python(SERVE, LOOPBACK, str(asker.port)))
    until(lambda: "on" in thief.stdout, "another program")
    assert asker.ask() == ""
    asker.end()
