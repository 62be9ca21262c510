"""Which jobs HTCondor's hooks hold for the programs that would run beside them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.hooks.fake_agent import granted

if TYPE_CHECKING:
    from tests.hooks.conftest import Worker

pytestmark = pytest.mark.root

PLAIN = """GlobalJobId = "submit1#7.0#1"
JobUniverse = 5
AutoClusterAttrs = "JobUniverse,PostCmd,PreCmd"
MyPreCmd = "mine"
PreCmdArguments = "-v"
Note = "a\\nPreCmd = 5"
ToolDaemonCmd = undefined
WantDocker = false
"""
COMPANY = {
    "precmd": 'precmd = ifThenElse(TARGET.Cpus =?= undefined, "mine", undefined)',
    "PostCmd": 'PostCmd="mine"',
    "ToolDaemonCmd": "  ToolDaemonCmd\t= undefined ?: Cmd",
    "TransferPlugins": 'TransferPlugins = "mine=mine"',
    "WantDocker": "WantDocker = time() > 5",
    "no value": "PreCmd",
    "virtual machine": "JobUniverse = 13",
}


def held(worker: Worker, ad: str, *, by: str = "beside") -> str:
    """Return why a hook holds the job with this ad; empty if it does not."""
    done = worker.execute(str(getattr(worker, by)), stdin=ad.encode())
    assert (done.returncode, done.stderr) == (0, b"")
    if not done.stdout:
        return ""
    found = re.fullmatch(
        r'HookStatusCode = 2\nHookStatusMessage = "([^"\n]+)"\n', done.stdout.decode()
    )
    assert found, done.stdout
    return found[1]


def test_an_ordinary_job_is_let_through(worker: Worker) -> None:
    """Names inside of others and of values are none, nor is what is undefined in so many words."""
    assert held(worker, PLAIN) == ""
    assert held(worker, "") == ""


@pytest.mark.parametrize("line", COMPANY.values(), ids=COMPANY)
def test_a_program_beside_the_job_holds_it(worker: Worker, line: str) -> None:
    """Whatever the value evaluates to, and wherever it stands; the reason names it."""
    for ad in (f"{line}\n{PLAIN}", f"{PLAIN}{line}\n", f"{PLAIN}{line}"):
        reason = held(worker, ad)
        name = line.split("=", maxsplit=1)[0].strip().lower()
        assert name in reason.lower() or "virtual machines" in reason


def test_the_prepare_hook_looks_too(worker: Worker) -> None:
    """Where no file is transferred it is the only one; the agent is not asked for such a job."""
    with worker.agent(granted(), []) as agent:
        assert "PreCmd" in held(worker, COMPANY["precmd"], by="prepare")
        assert agent.requests == []


def test_an_ad_that_is_too_long_is_not_let_through(worker: Worker) -> None:
    """What it ends with is not known; the job is tried elsewhere."""
    done = worker.execute(str(worker.beside), stdin=b"a = 1\n" * 200_000)
    assert b"HookStatusCode = 300" in done.stdout
    assert b"over 1 MiB" in done.stdout
