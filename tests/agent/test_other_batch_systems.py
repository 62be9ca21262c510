"""The recipes of docs/other-batch-systems.md, taken from the document, with a real agent.

The batch system is a stand-in (`tests.lab.starter`): a process of root with the daemon's name, that
starts what the recipe says, as the user and with the environment that the daemon sets.
"""

from __future__ import annotations

import json
import os
import re
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.lab.jobs import JobResult, Scheduler

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
DOCUMENT = Path(__file__).parents[2] / "docs" / "other-batch-systems.md"
INSTALLED = {"/usr/libexec/lark/": "/run/lark-bin/", "/usr/bin/lark ": "lark "}
"""Where the document has the programs, and where the laboratory has them."""
LOOK = 'echo "$(ls /sys/class/net | tr "\\n" " ")"'


def recipe(first_line: str) -> str:
    """Return the block of the document that begins so, for the laboratory."""
    blocks: list[str] = re.findall(
        r"^```\w*\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL
    )
    (found,) = [
        block for block in blocks if block.removeprefix("#!/bin/sh\n").startswith(first_line)
    ]
    for there, here in INSTALLED.items():
        found = found.replace(there, here)
    return found


def setting(block: str, name: str) -> str:
    """Return what a block says of one setting: the rest of its line."""
    (value,) = re.findall(rf"^{re.escape(name)}\s+(?:=\s*)?(.*)$", block, re.MULTILINE)
    return str(value)


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab() as made:
        made.agent()
        yield made


def newest(world: Lab) -> dict[str, object]:
    """Return the newest job."""
    listed = world.run(["lark", "jobs", "--limit", "1", "--json"]).stdout
    record: dict[str, object] = json.loads(listed)["jobs"][0]
    return record


def script(world: Lab, text: str) -> str:
    """Write a job's script, as a batch system spools it."""
    path = "/run/lab/job-script"
    world.path(path).write_text(text)
    world.path(path).chmod(0o755)
    return path


def assert_in_sandbox(
    world: Lab, done: JobResult, scheduler: Scheduler, *, verified: bool = True
) -> None:
    """Check what the job saw, and what its record says."""
    assert (done.status, done.stdout) == (0, "eth0 lo \n"), done.stderr
    record = newest(world)
    assert (record["scheduler"], record["owner"]) == (scheduler, "alice")
    assert (record["accounting_group"], record["verified"]) == ("physics", verified)
    number = str(record["job_id"]).removesuffix(".pbs1" if scheduler == "pbs" else "")
    assert number.isdigit()


def launched(progname: str, argv: list[str]) -> tuple[str, list[str]]:
    """Run the launch hook as pbs_mom does; return what it is to start."""
    accepted: list[bool] = []
    event = types.SimpleNamespace(
        progname=progname, argv=argv, accept=lambda: accepted.append(True)
    )
    stand_in = types.SimpleNamespace(event=lambda: event)
    code = recipe("# lark-launch.py").replace("import pbs\n", "")
    exec(compile(code, "lark-launch.py", "exec"), {"pbs": stand_in})
    assert accepted
    return event.progname, event.argv


@pytest.mark.parametrize(("name", "login"), [("sh", []), ("-sh", ["-l"])])
def test_openpbs_launch_hook(world: Lab, name: str, login: list[str]) -> None:
    """What pbs_mom would start, shell or task, starts in a sandbox; a login shell stays one."""
    program, words = launched("/bin/sh", [name, "-c", LOOK])
    assert words == ["lark-run", "--", "/bin/sh", *login, "-c", LOOK]
    assert_in_sandbox(world, world.job(words[1:], scheduler="pbs", wrapper=program), "pbs")


def test_torque_job_starter(world: Lab) -> None:
    """The starter gets the job's shell and its arguments."""
    starter = setting(recipe("# mom_priv/config"), "$job_starter")
    done = world.job(["/bin/sh", "-c", LOOK], scheduler="pbs", wrapper=starter)
    assert_in_sandbox(world, done, "pbs")


def test_prologue_sends_jobs_away_from_a_worker_without_an_agent(lab: Lab) -> None:
    """It ends with 0 while the agent answers, and else with 2 and a line for the job's user."""
    prologue = recipe("# prologue")
    path = "/run/lab/prologue"
    lab.path(path).write_text(prologue)
    lab.path(path).chmod(0o500)
    command = [path, "7.pbs1", "alice", "alice"]
    agent = lab.agent()
    assert lab.run(command).stdout == ""
    agent.terminate()
    done = lab.run(command, check=False)
    assert done.returncode == 2
    assert "job 7.pbs1 goes back to its queue" in done.stderr


def test_grid_engine_starter_method(world: Lab) -> None:
    """The starter gets the spooled script and its arguments."""
    block = recipe("starter_method")
    assert setting(block, "shell_start_mode") == "unix_behavior"
    spooled = script(world, f"#!/bin/sh\n{LOOK}\ntest $1 = argument\n")
    starter = setting(block, "starter_method")
    done = world.job([spooled, "argument"], scheduler="gridengine", wrapper=starter)
    assert_in_sandbox(world, done, "gridengine")


def test_grid_engine_scripts_without_a_first_line_do_not_run(world: Lab) -> None:
    """As the document says: nobody guesses a shell for them."""
    spooled = script(world, "true\n")
    starter = setting(recipe("starter_method"), "starter_method")
    done = world.job([spooled], scheduler="gridengine", wrapper=starter)
    assert done.status == 126
    assert "Exec format error" in done.stderr


@pytest.mark.parametrize("keeps_exec", [True, False])
def test_lsf_job_starter(world: Lab, keeps_exec: bool) -> None:
    """In the shell's place it is LSF's own child; behind a shell it is in a sandbox, unverified."""
    starter = setting(recipe("JOB_STARTER"), "JOB_STARTER")
    assert starter.startswith("exec ")
    spooled = script(world, f"#!/bin/sh\n{LOOK}\n")
    line = f"{starter} {spooled}" if keeps_exec else f"{starter[5:]} {spooled}; exit"
    done = world.job(["/bin/sh", "-c", line], scheduler="lsf", wrapper=None)
    assert_in_sandbox(world, done, "lsf", verified=keeps_exec)


def test_lsf_users_can_start_something_outside(world: Lab) -> None:
    """What the document warns of: a command line behind the starter is the user's shell text."""
    starter = setting(recipe("JOB_STARTER"), "JOB_STARTER")
    done = world.job(
        ["/bin/sh", "-c", f"{starter} true & {LOOK}; wait"], scheduler="lsf", wrapper=None
    )
    assert "uplink0" in done.stdout


def test_cron_line_of_root(world: Lab) -> None:
    """Cron hands the line to a shell with almost no environment."""
    line = recipe("# /etc/cron.d/backup").splitlines()[1]
    match = re.fullmatch(r"\S+ \S+ \S+ \S+ \S+ root (.*) -- .*", line)
    assert match is not None
    told = match[1].replace("--user backup", "--user alice")
    done = world.run(["/bin/sh", "-c", f"{told} -- sh -c '{LOOK}'"], env={"LANG": ""})
    assert done.stdout == "eth0 lo \n"
    record = newest(world)
    assert (record["job_id"], record["accounting_group"]) == ("nightly-backup", "ops")
    assert (record["owner"], record["verified"]) == ("alice", False)


FORGED: Mapping[str, str] = {
    "SLURM_JOB_ID": "666",
    "PBS_JOBID": "666.forged",
    "LSB_JOBID": "666",
    "JOB_ID": "666",
    "SGE_TASK_ID": "6",
}


@pytest.mark.parametrize("scheduler", ["pbs", "lsf", "gridengine", "slurm"])
def test_another_systems_variables_change_nothing(world: Lab, scheduler: Scheduler) -> None:
    """A user who exports them, and a job ad of their own, still has the launcher's job id."""
    own = {
        "pbs": ("PBS_JOBID",), "lsf": ("LSB_JOBID",), "gridengine": ("JOB_ID", "SGE_TASK_ID"),
        "slurm": ("SLURM_JOB_ID",),
    }[scheduler]  # fmt: skip
    path = "/run/lab/forged.ad"
    world.path(path).write_text('GlobalJobId = "forged"\nAcctGroup = "vip"\n')
    forged = {name: value for name, value in FORGED.items() if name not in own}
    done = world.job(["true"], scheduler=scheduler, env={**forged, "_CONDOR_JOB_AD": path})
    assert done.status == 0, done.stderr
    record = newest(world)
    assert (record["scheduler"], record["verified"]) == (scheduler, True)
    assert record["accounting_group"] == "physics"
    assert "666" not in str(record["job_id"])


def test_without_an_agent_no_recipe_runs_the_job(lab: Lab) -> None:
    """Fail closed: 125, the reason in the job's error file, and nothing ran."""
    torque = setting(recipe("# mom_priv/config"), "$job_starter")
    gridengine = setting(recipe("starter_method"), "starter_method")
    lsf = ["/bin/sh", "-c", f"{setting(recipe('JOB_STARTER'), 'JOB_STARTER')} echo ran"]
    for done in (
        lab.job(["/bin/echo", "ran"], scheduler="pbs", wrapper=torque),
        lab.job(["/bin/echo", "ran"], scheduler="gridengine", wrapper=gridengine),
        lab.job(lsf, scheduler="lsf", wrapper=None),
    ):
        assert (done.status, done.stdout) == (125, "")
        assert "no agent at /run/lark/run.sock" in done.stderr
