"""What HTCondor's prepare hook asks of the agent, and what it tells the starter."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.hooks.conftest import PLAIN_ENVIRONMENT, USER
from tests.hooks.fake_agent import RUN_SOCKET, FakeAgent, granted, refused

if TYPE_CHECKING:
    from tests.hooks.conftest import Worker

pytestmark = pytest.mark.root

VARIABLE, AD, PURPOSE = 2, 4, 5
JOB_AD = b'GlobalJobId = "submit1#7.0#1"\nOwner = "alice"\n'
HOLD, REQUEUE = range(1, 300), range(300, 1000)


def run_hook(
    worker: Worker, ad: bytes = JOB_AD, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    env = {**PLAIN_ENVIRONMENT, **environment}
    return worker.execute(str(worker.prepare), env=env, stdin=ad)


def said(done: subprocess.CompletedProcess[bytes]) -> tuple[int, str]:
    """Read what the hook printed as the starter does: (HookStatusCode, HookStatusMessage)."""
    assert done.returncode == 0, "HTCondor would hold the job for the hook's own failure"
    found = re.fullmatch(
        r'HookStatusCode = (\d+)\nHookStatusMessage = "((?:[^"\\\n]|\\")*)"\n', done.stdout.decode()
    )
    assert found, done.stdout
    return int(found[1]), found[2].replace('\\"', '"')


def test_it_asks_with_the_ad_of_the_job(worker: Worker) -> None:
    """The agent gets the job's ad as the starter gave it, the machine's ad, and the slot."""
    machine = worker.scratch / ".machine.ad"
    machine.write_text('Name = "slot1_1@worker1"\n')
    with worker.agent(granted(), []) as agent:
        done = run_hook(worker, _CONDOR_SLOT="slot1_1", _CONDOR_MACHINE_AD=str(machine))
        (request,) = agent.requests
        assert request.fields == [
            (PURPOSE, b"p"), (VARIABLE, b"_CONDOR_SLOT=slot1_1"), (AD, b"j"), (AD, b"m"),
        ]  # fmt: skip
        ads = [os.pread(fd, 4096, 0) for fd in request.files]
        assert ads == [JOB_AD, machine.read_bytes()]
        assert request.uid == USER
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("status", "codes"), [(1, HOLD), (2, HOLD), (3, REQUEUE), (4, REQUEUE), (77, REQUEUE)]
)
def test_only_what_no_worker_would_do_holds_the_job(
    worker: Worker, status: int, codes: range
) -> None:
    """A refusal by policy or for the job's own words holds it; any other sends it elsewhere."""
    with FakeAgent(refused(status, "profile grid is not for alice; ask for campus"), []):
        code, text = said(run_hook(worker))
    assert code in codes
    assert text == "profile grid is not for alice; ask for campus"


@pytest.mark.parametrize("status", [1, 2, 3, 4])
def test_every_status_has_a_code_of_its_own(worker: Worker, status: int) -> None:
    """The code that condor_q shows names the agent's status."""
    with FakeAgent(refused(status, "no"), []):
        assert said(run_hook(worker))[0] % 300 == status


def test_words_stay_inside_their_text(worker: Worker) -> None:
    """Whatever the agent says is one line and one string: nothing of it becomes an attribute."""
    with FakeAgent(refused(2, 'no "x"\\\nHookStatusCode = 0\x1b[2J\\'), []):
        code, text = said(run_hook(worker))
    assert code in HOLD
    assert text == 'no "x"/ HookStatusCode = 0 [2J/'


def test_the_longest_answer_is_told(worker: Worker) -> None:
    """It is whole, and below the 10 KB that the starter reads."""
    with FakeAgent(refused(2, '"' * 1016), []):
        assert said(run_hook(worker))[1] == '"' * 1016


def test_no_agent_sends_the_job_elsewhere(worker: Worker) -> None:
    """A worker without an agent is not fit."""
    code, text = said(run_hook(worker))
    assert code in REQUEUE
    assert f"no agent at {RUN_SOCKET}" in text


def test_an_agent_that_is_restarted_is_waited_for(worker: Worker) -> None:
    """A job that comes while no agent listens gets its sandbox from the next one."""
    hook = worker.start(str(worker.prepare))
    assert hook.stdin is not None
    hook.stdin.write(JOB_AD)
    hook.stdin.close()
    hook.stdin = None
    time.sleep(0.5)  # the first attempt fails; a hook that is slower has the agent at once
    with worker.agent(granted(), []) as agent:
        out, err = hook.communicate(timeout=30)
    assert (hook.returncode, out, err) == (0, b"", b"")
    assert len(agent.requests) == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (None, "closed the connection"),
        (b"LARK", "not of this version"),
        (struct.pack("<4sHH", b"LARK", 9, 0), "not of this version"),
        (b"X" * 100, "not of this version"),
        (refused(2, "")[:7], "not of this version"),
        (refused(2, "x" * 2000), "not of this version"),
    ],
)
def test_an_answer_that_is_none_sends_the_job_elsewhere(
    worker: Worker, reply: bytes | None, reason: str
) -> None:
    """Silence and noise are not a reservation."""
    with FakeAgent(reply, []):
        code, text = said(run_hook(worker))
    assert code in REQUEUE
    assert reason in text


def test_only_roots_agent_is_believed(worker: Worker) -> None:
    """A listener of somebody else under the agent's name reserves nothing."""
    with FakeAgent(granted(), [], listener_uid=USER):
        code, text = said(run_hook(worker))
    assert code in REQUEUE
    assert "not root" in text


def test_an_ad_over_the_limit_is_not_cut(worker: Worker) -> None:
    """The plan of half an ad could be a laxer one."""
    with worker.agent(granted(), []) as agent:
        code, text = said(run_hook(worker, b"a = 1\n" * 200_000))
        assert agent.requests == []
    assert code in REQUEUE
    assert "over 1 MiB" in text


def test_a_starter_that_does_not_listen_holds_the_job(worker: Worker) -> None:
    """If nothing can be said, the exit status says that the hook failed."""
    with FakeAgent(refused(2, "no"), []), Path("/dev/full").open("wb") as full:
        hook = subprocess.run(
            [worker.prepare], input=JOB_AD, stdout=full, env=PLAIN_ENVIRONMENT, user=USER,
            group=USER, extra_groups=[], cwd=worker.scratch, check=False,
        )  # fmt: skip
    assert hook.returncode != 0


def test_a_hand_at_the_prompt_learns_what_it_is_for(worker: Worker) -> None:
    """With arguments it does nothing but say so."""
    done = worker.execute(str(worker.prepare), "--help")
    assert done.returncode == 2
    assert b"HTCondor" in done.stderr
