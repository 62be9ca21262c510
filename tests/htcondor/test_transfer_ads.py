"""What users read of stage-in and stage-out, and pools on which it cannot be accounted.

The pool has the files that we write for config.d, with `account_transfer`, and nothing else of
ours.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from lark_agent.config import AgentSettings, parse
from lark_agent.hooks.htcondor_config import submit_file, worker_file
from tests.htcondor import programs
from tests.htcondor.pool import Pool
from tests.htcondor.test_usage import history
from tests.lab.topology import WORKER
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.process import Process

pytestmark = [pytest.mark.root, pytest.mark.htcondor]

AGENT = """
observers = ["{observer}"]
[accounting]
interval_seconds = 1
[htcondor]
account_transfer = true
"""
IN, OUT = 3_000_000, 2_000_000
STAGE = f"head -c {OUT} /dev/urandom > made; wc -c < data"
UNREACHABLE = {
    "loopback": ("CONDOR_HOST = 127.0.0.1\nNETWORK_INTERFACE = 127.0.0.1\n", "NETWORK_INTERFACE"),
    "ports of their own": ("USE_SHARED_PORT = False\n", "USE_SHARED_PORT"),
    "no IPv4": (
        f"ENABLE_IPV4 = False\nCONDOR_HOST = [{WORKER.ipv6}]\nNETWORK_INTERFACE = {WORKER.ipv6}\n",
        "",
    ),
}
"""What the site has in a file after ours, and what the agent tells it to change.

Without IPv4 the starter itself sees it, and syslog has it.
"""


@contextlib.contextmanager
def accounting(root: Path, config: str = "") -> Iterator[tuple[Pool, Process]]:
    """Run a pool with our files whole, and its agent."""
    with Lab() as lab:
        programs.install(lab)
        text = AGENT.format(observer=programs.observer(lab, root))
        agent = lab.agent(text)
        settings = parse(AgentSettings, text, "agent.toml")
        ours = worker_file(settings, programs.AGENT) + submit_file(
            programs.COLLECTOR, ["--socket", "/run/lark/agent.sock"]
        )
        yield Pool(lab, root, lark=ours, config=config), agent
        agent.terminate()


def test_the_ad_of_an_ended_job_says_what_was_moved_for_it(condor_root: Path) -> None:
    """To the byte what the record's `transfer` says, in no other number, and nobody can forge it.

    The job itself moves nothing.
    """
    with accounting(condor_root) as (pool, _):
        job = pool.submit(
            STAGE,
            inputs={"data": "x" * IN},
            my_NetworkTransferIncoming=7,
            my_NetworkTransferOutgoing=7,
        )
        assert job.ended().stdout.strip() == str(IN)
        moved, ad = job.record()["transfer"], history(pool, job)
        assert ad["NetworkTransferIncoming"] == moved["received"]["bytes"] > IN
        assert ad["NetworkTransferOutgoing"] == moved["sent"]["bytes"] > OUT
        assert (ad["NetworkIncoming"], ad["NetworkOutgoing"]) == (0, 0)


@pytest.mark.parametrize("kind", UNREACHABLE)
def test_a_pool_that_a_sandbox_cannot_reach_runs_its_jobs(condor_root: Path, kind: str) -> None:
    """Files travel as ever, the job is in its sandbox, and nothing claims that it moved nothing."""
    config, advice = UNREACHABLE[kind]
    with accounting(condor_root, config) as (pool, agent):
        job = pool.submit(f"readlink /proc/self/ns/net; {STAGE}", inputs={"data": "x" * IN})
        network, size = job.ended().stdout.split()
        assert network != pool.host()
        assert size == str(IN)
        assert job.file("made").stat().st_size == OUT
        assert job.record()["transfer"] is None
        ad = history(pool, job)
        assert ad["NetworkRecord"] == job.record()["attachment_id"]
        assert not [name for name in ad if name.startswith("NetworkTransfer")]
        assert agent.stderr.count("transfer is not accounted") == 1
        assert advice in agent.stderr
