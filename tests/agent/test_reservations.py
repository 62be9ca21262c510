"""A sandbox that waits for its job: HTCondor's prepare hook, the real agent, the real wrapper.

The starter is the test's (`tests.agent.launching`): it runs the hook and the wrapper as HTCondor
does, when the test says so.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import ExitReason
from tests.agent.launching import Starter, all_records, pool
from tests.agent.worker import (
    ONCE,
    Talker,
    final,
    in_kernel,
    kill,
    records,
    times,
    until,
)  # fmt: skip

if TYPE_CHECKING:
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]

HOLD, REQUEUE = range(1, 300), range(300, 1000)


def reserved(lab: Lab) -> int:
    """Return how many sandboxes wait for their job, as `lark doctor` says."""
    found = re.search(r"\((\d+) reserved for jobs", lab.run(["lark", "doctor"], check=False).stdout)
    return int(found[1]) if found else 0


def test_the_job_gets_what_was_reserved(lab: Lab) -> None:
    """One sandbox and one record from the hook to the job's end, and nothing is left of it."""
    agent = lab.agent(pool())
    starter = Starter(lab)
    assert starter.prepare() is None
    waiting = records(lab)[starter.job_id]
    assert reserved(lab) == 1
    talker = Talker(lab, start=starter.run)
    assert reserved(lab) == 0
    talker.talk()
    talker.end()
    record = final(lab, starter.job_id)
    assert (record.exit_reason, record.usage.sent) == (ExitReason.EXITED, ONCE)
    assert (record.attachment_id, record.slot) == (waiting.attachment_id, waiting.slot)
    assert len(all_records(lab, starter.job_id)) == 1
    starter.end()
    agent.terminate()
    assert in_kernel(lab) == set()


def test_a_hook_that_asks_twice_reserves_once(lab: Lab) -> None:
    """A second hook of the same starter finds the sandbox of the first."""
    lab.agent(pool(slots=1, wait=0.2))
    starter = Starter(lab)
    assert starter.prepare() is None
    assert starter.prepare() is None
    assert starter.run(["true"]).wait().status == 0


def test_a_reservation_that_nobody_claims_ends(lab: Lab) -> None:
    """After its time the only sandbox serves another; the late job then asks for itself."""
    lab.agent(pool(slots=1, reserve=1))
    late, other = Starter(lab), Starter(lab, user="bob")
    assert late.prepare() is None
    assert other.run(["true"]).wait().status == 0, "it waited for the reservation's end"
    assert late.run(["true"]).wait().status == 0
    final(lab, other.job_id)
    never, ran = all_records(lab, late.job_id)
    assert (never.exit_reason, never.usage.sent.packets) == (ExitReason.NOT_STARTED, 0)
    until(lambda: all_records(lab, late.job_id)[-1].final, "the late job's record")
    assert all_records(lab, late.job_id)[-1].exit_reason == ExitReason.EXITED
    assert ran.attachment_id != never.attachment_id
    shown = [
        run["attachment_id"]
        for run in json.loads(lab.run(["lark", "jobs", "--json"]).stdout)["jobs"]
    ]
    assert ran.attachment_id in shown
    assert never.attachment_id not in shown, "one job, one record"


def test_a_starter_that_dies_gives_its_sandbox_back(lab: Lab) -> None:
    """A reservation does not outlive who made it, whatever its time."""
    lab.agent(pool(slots=1))
    starter = Starter(lab)
    assert starter.prepare() is None
    starter.end()
    other = Starter(lab, user="bob")
    assert other.prepare() is None
    assert other.run(["true"]).wait().status == 0
    assert final(lab, starter.job_id).exit_reason == ExitReason.NOT_STARTED


def test_a_full_worker_sends_the_job_elsewhere(lab: Lab) -> None:
    """Nothing is wrong with the job: it is requeued, and hears why."""
    lab.agent(pool(slots=1, wait=0.2))
    first, second = Starter(lab), Starter(lab)
    assert first.prepare() is None
    told = second.prepare()
    assert told is not None
    assert told[0] in REQUEUE
    assert "no network sandbox became free within 0.2 s" in told[1]
    assert second.job_id not in records(lab)
    done = second.run(["true"]).wait()
    assert done.status == 125, "the wrapper goes by the same pool"


def test_what_the_policy_refuses_is_held_with_its_words(lab: Lab) -> None:
    """The user reads the site's own reason."""
    lab.agent(pool() + '[requests]\noutbound_connectivity = "refuse"\n')
    starter = Starter(lab, ad={"OutboundConnectivity": False})
    told = starter.prepare()
    assert told is not None
    assert told[0] in HOLD
    assert "OutboundConnectivity" in told[1]
    assert starter.run(["true"]).wait().stderr == f"lark-run: refused by the agent: {told[1]}\n"
    assert Starter(lab).prepare() is None


def test_the_agent_away_sends_the_job_elsewhere(lab: Lab) -> None:
    """Without an agent the worker is not fit, and the job is not held for it."""
    agent = lab.agent(pool())
    agent.terminate()
    told = Starter(lab).prepare()
    assert told is not None
    assert told[0] in REQUEUE
    assert "no agent at /run/lark/run.sock" in told[1]


def test_a_hook_that_is_killed_reserves_nothing(lab: Lab) -> None:
    """Killed while it waited for a sandbox, it gets none; the job's own wrapper asks again."""
    lab.agent(pool(slots=1, wait=30))
    holder, starter = Starter(lab), Starter(lab, user="bob")
    assert holder.prepare() is None
    hook = starter.start_hook()
    until(lambda: _asks(lab, hook.pid), "the hook to wait")
    hook.signal()
    assert hook.wait().status == -9
    holder.end()
    assert Starter(lab).run(["true"]).wait().status == 0
    assert all_records(lab, starter.job_id) == []
    assert starter.run(["true"]).wait().status == 0


def _asks(lab: Lab, pid: int) -> bool:
    """Tell whether a process has sent its request and waits for the answer."""
    return "poll" in lab.path(f"/proc/{pid}/wchan").read_text()


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_restart_between_hook_and_job_loses_nothing(lab: Lab, how: str) -> None:
    """The next agent knows the reservation, and the job gets the same sandbox."""
    agent = lab.agent(pool(slots=1))
    starter = Starter(lab)
    assert starter.prepare() is None
    waiting = records(lab)[starter.job_id]
    if how == "stopped":
        agent.terminate()
    else:
        kill(agent)
    lab.agent(pool(slots=1))
    talker = Talker(lab, start=starter.run)
    talker.talk()
    talker.end()
    record = final(lab, starter.job_id)
    assert (record.attachment_id, record.usage.sent) == (waiting.attachment_id, ONCE)
    assert record.exit_reason == ExitReason.EXITED


def test_a_starter_that_dies_while_no_agent_runs_frees_its_sandbox(lab: Lab) -> None:
    """The next agent finds nobody who could claim it."""
    agent = lab.agent(pool(slots=1))
    starter = Starter(lab)
    assert starter.prepare() is None
    kill(agent)
    starter.end()
    lab.agent(pool(slots=1))
    assert Starter(lab, user="bob").run(["true"]).wait().status == 0
    assert final(lab, starter.job_id).usage.sent.packets == 0


def test_a_guarantee_is_booked_when_it_is_reserved(lab: Lab) -> None:
    """The second of two that do not fit together hears it from the hook, and fits later."""
    config = pool() + (
        '[uplink]\nrate = "100 Mbit/s"\n[profiles.sure]\nconnectivity = "nat"\n'
        'guarantee = "60 Mbit/s"\n[[rules]]\nwhen = "true"\nprofile = "sure"\n'
    )
    lab.agent(config)
    first, second = Starter(lab), Starter(lab)
    assert first.prepare() is None
    told = second.prepare()
    assert told is not None
    assert told[0] in REQUEUE
    assert "60 Mbit/s" in told[1]
    first.end()
    until(lambda: second.prepare() is None, "what was booked to be given back")
    talker = Talker(lab, start=second.run)
    talker.talk()
    talker.talk()
    talker.end()
    assert final(lab, second.job_id).usage.sent == times(ONCE, 2)


def test_what_was_provisioned_cannot_be_raised_by_a_file(lab: Lab) -> None:
    """The hook's ad comes from the starter; those in the scratch directory are the user's."""
    lab.agent(pool() + '[uplink]\nrate = "100 Mbit/s"\n[requests]\nbandwidth = "90 Mbit/s"\n')
    starter = Starter(lab, ad={"RequestBandwidth": 80, "BandwidthProvisioned": 20})
    starter.rewrite(".machine.ad", "Bandwidth = 80\n")
    told = starter.prepare()
    assert told is not None
    assert told[0] in HOLD
    assert "the batch system gave it 20 Mbit/s" in told[1]
    honest = Starter(lab, ad={"RequestBandwidth": 20, "BandwidthProvisioned": 20})
    assert honest.prepare() is None
    honest.rewrite(".job.ad", "RequestBandwidth = 80\nBandwidthProvisioned = 80\n")
    assert honest.run(["true"]).wait().status == 0, "what was announced holds"


def test_only_what_the_batch_system_starts_may_reserve(lab: Lab) -> None:
    """A user at a prompt who runs the hook by hand takes no sandbox."""
    lab.agent(pool())
    starter = Starter(lab)
    done = lab.run(
        ["/run/lark-bin/lark-prepare"], user="alice", stdin='GlobalJobId = "s#1#1"\n', check=False
    )
    assert "only what the batch system starts" in done.stdout
    assert reserved(lab) == 0
    starter.end()
