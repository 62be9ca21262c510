"""HTCondor's set-up for condor_ssh_to_job by our program: inside the sandbox, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent.errors import PrerequisiteError
from lark_agent.hooks import htcondor_libexec
from tests.hooks.conftest import PLAIN_ENVIRONMENT
from tests.hooks.fake_agent import refused

if TYPE_CHECKING:
    from tests.hooks.conftest import Worker

pytestmark = pytest.mark.root

SCRIPT = """#!/bin/sh
echo "$# $1 $2"
readlink /proc/self/ns/net
echo "${_CONDOR_WRAPPER_ERROR_FILE-unset} $KEPT"
"""


@pytest.fixture
def setup(worker: Worker) -> Path:
    """Make the starter's LIBEXEC over one of HTCondor's; returns what the starter runs in it."""
    theirs = Path("/run/htcondor-libexec")
    theirs.mkdir()
    for name in (htcondor_libexec.SCRIPT, htcondor_libexec.ENTERING, "curl_plugin"):
        (theirs / name).write_text(SCRIPT)
        (theirs / name).chmod(0o755)
    made = htcondor_libexec.make(worker.run.parent, theirs)
    assert {each.name for each in made.iterdir()} == {
        htcondor_libexec.SCRIPT, "sshd-setup", "curl_plugin",
    }  # fmt: skip
    assert (made / "curl_plugin").resolve() == theirs / "curl_plugin"
    return made / htcondor_libexec.SCRIPT


def test_the_script_runs_in_the_sandbox(worker: Worker, setup: Path) -> None:
    """With its arguments and the environment; only HTCondor's error file is out of its reach."""
    error = worker.scratch / "error"
    env = {**PLAIN_ENVIRONMENT, "KEPT": "kept", "_CONDOR_WRAPPER_ERROR_FILE": str(error)}
    with worker.agent():
        done = worker.execute(str(setup), "one", "two words", env=env)
    inside = f"net:[{os.fstat(worker.namespace).st_ino}]"
    assert done.stdout.decode().splitlines() == ["2 one two words", inside, "unset kept"]
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_refusal_is_said_where_the_starter_reads(worker: Worker, setup: Path) -> None:
    """On standard output, in the agent's words; the job's error file is not touched."""
    error = worker.scratch / "error"
    env = {**PLAIN_ENVIRONMENT, "_CONDOR_WRAPPER_ERROR_FILE": str(error)}
    with worker.agent(refused(2, "not yours"), []):
        done = worker.execute(str(setup), "one", env=env)
    assert (done.returncode, done.stderr) == (125, b"")
    assert done.stdout == b"lark-run: refused by the agent: not yours\n"
    assert not error.exists()


def test_without_the_wrapper_nothing_runs(worker: Worker, setup: Path) -> None:
    """The script is never run by itself."""
    worker.run.unlink()
    done = worker.execute(str(setup), "one")
    assert done.returncode == 125
    assert b"cannot start" in done.stdout
    assert b"one" not in done.stdout


def test_it_can_be_made_again(worker: Worker, setup: Path) -> None:
    """After an upgrade of HTCondor: what is new is there, what is gone is not."""
    theirs = Path("/run/htcondor-libexec")
    (theirs / "new_plugin").touch()
    (theirs / "curl_plugin").unlink()
    made = htcondor_libexec.make(worker.run.parent, theirs)
    assert {each.name for each in made.iterdir()} == {
        setup.name, "sshd-setup", "new_plugin",
    }  # fmt: skip


def test_without_htcondor_there_is_none(worker: Worker) -> None:
    """Then the configuration turns condor_ssh_to_job off."""
    with pytest.raises(PrerequisiteError, match="install HTCondor"):
        htcondor_libexec.make(worker.run.parent, Path("/run/nothing"))
    assert "ENABLE_SSH_TO_JOB = false" in htcondor_libexec.lines(None)
