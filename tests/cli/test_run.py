"""`lark run`: the same sandbox as through lark-run, and becoming the job's user on the way."""

from __future__ import annotations

import json
import os
import pwd
from typing import TYPE_CHECKING

import pytest

from lark_agent.cli import lark
from lark_agent.hooks import install
from tests.lab.world import Lab

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = """
[profiles.closed]
connectivity = "none"

[profiles.wide]
inbound = "all"

[requests]
profiles = ["closed"]
"""
SHOW = (
    "import os, json; print(json.dumps({"
    "'ids': [*os.getresuid(), *os.getresgid()], 'groups': os.getgroups(), 'cwd': os.getcwd(), "
    "'env': dict(os.environ), 'links': sorted(os.listdir('/sys/class/net')), "
    "'status': open('/proc/self/status').read()}))"
)
PYTHON = ("/usr/bin/python3", "-I", "-S", "-c", SHOW)


def test_help_ends_with_an_example_and_the_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    """It says whose statuses are whose."""
    assert lark.status(["run", "--help"]) == 0
    said = capsys.readouterr().out
    assert "sudo lark run --user backup" in said
    assert "125" in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run"], "Missing argument"),
        (["run", "--profile"], "requires an argument"),
        (["run", "--nonsense", "true"], "No such option"),
        (["--agent", "/nowhere", "run", "true"], "--agent and --collector are not for run"),
        (["--collector", "/nowhere", "run", "true"], "--agent and --collector are not for run"),
    ],
)
def test_a_wrong_option_is_not_the_commands_status(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 125, as every other reason for which the command did not start."""
    assert lark.status(arguments) == 125
    assert reason in capsys.readouterr().err


def test_without_the_wrapper_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing runs: there is no way around the sandbox."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "DIRECTORY", tmp_path / "libexec")
    assert lark.status(["run", "touch", str(tmp_path / "ran")]) == 125
    said = capsys.readouterr().err
    assert "no lark-run on PATH nor in" in said
    assert "lark-agent install-wrapper" in said
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab() as made:
        made.agent(CONFIG)
        yield made


def shown(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """Read what SHOW printed."""
    found: dict[str, object] = json.loads(done.stdout)
    return found


root = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes a lab")]


class TestInALab:
    """With a real agent."""

    pytestmark = root

    def test_a_user_gets_a_sandbox_and_a_record(self, world: Lab) -> None:
        """Names and group are the options'; nobody vouches for them."""
        options = ["--job-id", "nightly 7", "--group", "ops", "--profile", "closed"]
        done = world.run(["lark", "run", *options, "--", *PYTHON], user="alice")
        assert shown(done)["links"] == ["lo"]
        record = newest(world, "alice")
        assert (record["job_id"], record["accounting_group"]) == ("nightly 7", "ops")
        assert (record["scheduler"], record["verified"]) == ("plain", False)
        assert (record["profile"], record["connectivity"]) == ("closed", "none")

    def test_root_becomes_the_account_completely(self, world: Lab) -> None:
        """All ids, all groups and no capability; the environment says so, and the rest is kept."""
        command = ["lark", "run", "--user", "carol", "--", *PYTHON]
        done = world.run(command, env={"KEPT": "yes", "MAIL": "/var/mail/root"}, cwd="/usr")
        found = shown(done)
        assert found["ids"] == [1003] * 6
        assert found["groups"] == [1003, 1100]
        status = dict(line.split(":\t") for line in str(found["status"]).splitlines())
        assert all(int(status[name], 16) == 0 for name in ("CapPrm", "CapEff", "CapAmb"))
        env = found["env"]
        assert isinstance(env, dict)
        assert (env["USER"], env["LOGNAME"], env["SHELL"]) == ("carol", "carol", "/bin/sh")
        assert env["HOME"] == "/run/lab/home/carol"
        assert (env["KEPT"], env["MAIL"]) == ("yes", "/var/mail/root")
        assert found["cwd"] == "/usr"
        record = newest(world, "carol")
        assert (record["owner"], record["uid"], record["verified"]) == ("carol", 1003, False)

    @pytest.mark.parametrize(
        ("command", "status"),
        [(["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -TERM $$"], -15), (["/etc"], 126),
         (["no-such-command"], 127)],
    )  # fmt: skip
    def test_exit_statuses_are_the_commands(
        self, world: Lab, command: list[str], status: int
    ) -> None:
        """There is no process between the caller and the command."""
        done = world.run(["lark", "run", *command], user="alice", check=False)
        assert done.returncode == status

    def test_the_command_finds_things_as_its_caller_left_them(self, world: Lab) -> None:
        """Environment, ignored signals and descriptors are those of a plain start."""
        look = "grep -E '^Sig(Ign|Blk)' /proc/self/status; env; ls /proc/self/fd"
        probe, env = ["/bin/sh", "-c", look], {"LANG": "", "LC_ALL": ""}
        usual = ["env", "--default-signal"]  # the laboratory's own Python ignores some
        plain = world.run([*usual, *probe], user="alice", env=env).stdout
        through = world.run([*usual, "lark", "run", *probe], user="alice", env=env).stdout
        assert through == plain

    def test_options_after_the_command_are_the_commands(self, world: Lab) -> None:
        """With and without the two dashes."""
        for dashes in ([], ["--"]):
            done = world.run(["lark", "run", *dashes, "echo", "--user", "-x"], user="alice")
            assert done.stdout == "--user -x\n"

    @pytest.mark.parametrize(
        ("user", "options", "reason"),
        [
            ("root", [], "root cannot be held in a sandbox; say with --user"),
            ("root", ["--user", "nobody-here"], "this machine has no account nobody-here"),
            ("root", ["--user", "root"], "root is root, whom no sandbox can hold"),
            ("alice", ["--user", "bob"], "only root can run a job as bob"),
            ("alice", ["--profile", "wide"], "wide"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, world: Lab, user: str, options: list[str], reason: str
    ) -> None:
        """Status 125, one line, and the command did not run."""
        command = ["lark", "run", *options, "echo", "it ran"]
        done = world.run(command, user=user, check=False)
        assert (done.returncode, done.stdout) == (125, "")
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1

    def test_a_wrapper_that_the_account_cannot_reach_is_told(self, world: Lab) -> None:
        """Root finds it, the account may not: no job, and a line that says what is wrong."""
        world.run(["sh", "-c", "mkdir -m 0700 /run/hidden; cp /run/lark-bin/lark-* /run/hidden"])
        path = {"PATH": f"/run/hidden:{os.environ['PATH']}"}
        lark_command = world.run(["sh", "-c", "command -v lark"]).stdout.strip()
        done = world.run(
            [lark_command, "run", "--user", "alice", "echo", "it ran"], env=path, check=False
        )
        assert (done.returncode, done.stdout) == (125, "")
        assert "cannot start /run/hidden/lark-run as alice: Permission denied" in done.stderr


def newest(world: Lab, owner: str) -> dict[str, object]:
    """Return the newest job of an owner."""
    listed = world.run(["lark", "jobs", "--owner", owner, "--limit", "1", "--json"]).stdout
    record: dict[str, object] = json.loads(listed)["jobs"][0]
    return record


def test_the_accounts_variables_are_those_of_su() -> None:
    """An account without a shell gets the system's."""
    from lark_agent.linux.accounts import surroundings  # noqa: PLC0415  beside its only use

    account = pwd.struct_passwd(("x", "*", 7, 7, "", "/home/x", ""))
    assert surroundings(account) == {
        "HOME": "/home/x", "SHELL": "/bin/sh", "USER": "x", "LOGNAME": "x",
    }  # fmt: skip
