"""The callout at work: asked for each job, bounded in time, failing as the site chose."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import QUICK, final, until
from tests.lab.filesystem import STATE
from tests.lab.world import PROGRAMS

if TYPE_CHECKING:
    from tests.lab.process import Process
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
PROGRAM = "/run/callout"
FILE = STATE / "agent.toml"


def worker(lab: Lab, script: str, *settings: str) -> Process:
    """Start an agent whose callout is a shell script."""
    lab.path(PROGRAM).write_text(f"#!/bin/sh\n{script}\n")
    lab.path(PROGRAM).chmod(0o755)
    lines = "\n".join(["[callout]", f'command = ["{PROGRAM}", "word"]', *settings])
    lab.path(FILE).write_text(f"{QUICK}{lines}\n")
    return lab.service([str(PROGRAMS / "lark-agent"), "run", "--config", str(FILE)])


def test_a_callout_decides(lab: Lab) -> None:
    """It reads both ads and its answer holds; it has no rights, and argv is the site's."""
    script = """
ads=$(cat)
job=${ads%%------*}; machine=${ads##*------}
case $job in *'Owner = "bob"'*) ;; *) exit 0;; esac
case $machine in *'Machine = "worker1"'*) ;; *) exit 3;; esac
[ "$(id -un) $(id -Gn) $1 $#" = "nobody nogroup word 1" ] || { id >&2; exit 4; }
grep -q '^CapEff:.0*$' /proc/self/status || exit 5
grep -q '^NoNewPrivs:.1$' /proc/self/status || exit 6
echo 'Profile = "none"'
"""
    agent = worker(lab, script)
    for user, profile in (("bob", "none"), ("alice", "nat")):
        job = lab.start_job(["true"], user=user)
        assert job.result().status == 0, agent.stderr
        assert final(lab, job.job_id).profile == profile


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sleep 1000", "did not end within 0.5 s"),
        ("exec yes", "did not end within 0.5 s"),
        ("echo why >&2; exit 3", "ended with 3: why"),
        ("head -c 70000 /dev/zero", "answered over 65536 bytes"),
        ("echo nonsense", "not of the form Name = value"),
    ],
)
def test_a_callout_that_fails_refuses_the_job(lab: Lab, script: str, said: str) -> None:
    """The user and the log are told why; nothing of the program is left."""
    agent = worker(lab, script, "timeout_seconds = 0.5")
    done = lab.job(["echo", "ran"])
    assert (done.status, done.stdout) == (125, "")
    assert said in done.stderr
    assert "callout failed" in agent.stderr
    until(lambda: "nobody" not in lab.run(["ps", "-eo", "user"]).stdout, "no process of nobody's")


def test_a_site_may_do_without(lab: Lab) -> None:
    """With on_failure = "continue" the rules decide alone, and the log tells."""
    agent = worker(lab, "exit 1", 'on_failure = "continue"')
    assert lab.job(["true"]).status == 0
    assert "callout failed" in agent.stderr


def test_an_ad_too_long_for_the_callout_is_refused(lab: Lab) -> None:
    """A job cannot grow its ad until the callout fails and the rules decide alone."""
    worker(lab, "exit 0", 'on_failure = "continue"')
    done = lab.job(["echo", "ran"], ad={"Environment": "x" * 66_000})
    assert (done.status, done.stdout) == (125, "")
    assert "the site's callout takes 65536" in done.stderr


def test_a_slow_callout_holds_up_nobody_else(lab: Lab) -> None:
    """While it thinks about one job, another is started; a caller that hangs up ends it."""
    script = """case "$(cat)" in *'Owner = "bob"'*) exec sleep 1000;; esac"""
    worker(lab, script, "timeout_seconds = 50")
    slow = lab.start_job(["true"], user="bob")
    until(lambda: "sleep 1000" in lab.run(["ps", "-eo", "args"]).stdout, "a slow callout")
    assert lab.job(["true"], user="alice").seconds < 20
    slow.starter.signal(9)
    (waiting,) = lab.run(["pgrep", "-u", "bob"]).stdout.split()
    lab.run(["kill", "-9", waiting])
    until(lambda: "sleep 1000" not in lab.run(["ps", "-eo", "args"]).stdout, "its end")
