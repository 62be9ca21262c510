"""The command line against a real service on a real socket: output, JSON and exit statuses."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import grpc
import pytest

from lark_agent.accounting.questions import GroupBy, JobRun
from lark_agent.accounting.quotas import PoolKey, Standing
from lark_agent.cli import lark
from lark_agent.rpc import convert
from lark_agent.rpc.lark.v1 import query_pb2
from tests.cli.fake import HOUR, INTERRUPTIBLE, START, child_environment, make_record, samples, sums

if TYPE_CHECKING:
    from tests.cli.fake import Service

COMMANDS = list(lark.lark.commands)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "lark_agent.cli.lark", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**child_environment(), **environment},
    )


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command in this process; it must succeed and say nothing on standard error."""
    assert lark.status(list(arguments)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(output(capsys, *arguments, "--json"))


def test_jobs_into_a_pipe_are_complete(service: Service) -> None:
    """Every column of every job, without padding, whatever the width of nobody's terminal."""
    service.script.records = [make_record(2), make_record(1)]
    done = run("jobs")
    assert (done.returncode, done.stderr) == (0, "")
    head, first, second = done.stdout.splitlines()
    assert head.split()[-1] == "DROPS"
    assert first.startswith("schedd.example.org#2.0#1700000000  alice  physics.higgs  worker1")
    assert second.endswith("29.5 MB      3")


def test_jobs_json_is_the_documented_contract(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exact numbers, times twice, and exactly the documented fields."""
    service.script.records = [make_record(1)]
    answer = as_json(capsys, "jobs")
    assert answer == {
        "jobs": [
            {
                "attachment_id": "018bcfe5-0001-7000-8000-000000000001",
                "worker": "worker1.example.org",
                "slot": 1,
                "scheduler": "htcondor",
                "job_id": "schedd.example.org#1.0#1700000000",
                "owner": "alice",
                "uid": 1001,
                "accounting_group": "physics.higgs",
                "verified": True,
                "profile": "nat",
                "connectivity": "nat",
                "state": "ended",
                "started_ns": 1_700_000_001_000_000_000,
                "started": "2023-11-14T22:13:21.000000000Z",
                "ended_ns": 1_700_000_061_000_000_000,
                "ended": "2023-11-14T22:14:21.000000000Z",
                "exit_reason": "exited",
                "exit_status": 0,
                "final": True,
                "first_port": 10592,
                "last_port": 10943,
                "ipv4": "100.98.0.3",
                "ipv6": "fd6c:6172:6b00::3",
                "network": "",
                "peers": "none",
                "plan": {"reach": "other", "inbound": "established"},
                "changes": [],
                "sent": {"packets": 1001, "bytes": 52_060},
                "received": {"packets": 20_001, "bytes": 29_536_833},
                "classes": [
                    {
                        "class": "campus",
                        "sent": {"packets": 1000, "bytes": 52_000},
                        "received": {"packets": 20_000, "bytes": 29_536_789},
                        "cost_millionths": 0,
                    },
                    {
                        "class": "other",
                        "sent": {"packets": 1, "bytes": 60},
                        "received": {"packets": 1, "bytes": 44},
                        "cost_millionths": 0,
                    },
                ],
                "cost_millionths": 0,
                "drops": [{"reason": "class-denied", "packets": 3, "bytes": 180}],
                "non_ip_sent": {"packets": 1, "bytes": 28},
                "non_ip_received": {"packets": 1, "bytes": 28},
                "transfer": {
                    "sent": {"packets": 2, "bytes": 104},
                    "received": {"packets": 3, "bytes": 4096},
                    "classes": [
                        {
                            "class": "campus",
                            "sent": {"packets": 2, "bytes": 104},
                            "received": {"packets": 3, "bytes": 4096},
                        },
                    ],
                },
                "sampled_ns": 1_700_000_061_000_000_000,
                "sampled": "2023-11-14T22:14:21.000000000Z",
                "sequence": 7,
            }
        ],
        "more": False,
    }


def test_the_state_of_a_running_job_is_told(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    """No end time, no exit reason, state running."""
    service.script.records = [make_record(1, ended_ns=0, final=False, exit_reason=None)]
    (job,) = as_json(capsys, "jobs")["jobs"]
    assert (job["state"], job["ended"], job["exit_reason"]) == ("running", None, None)


def test_filters_reach_the_service(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """Each option becomes the field of the question that it names."""
    as_json(
        capsys, "jobs", "--owner", "alice", "--group", "physics", "--worker", "w1", "--ended",
        "--since", "2023-11-14T22:13:20Z", "--until", "2023-11-14T23:13:20Z",
    )  # fmt: skip
    (asked,) = service.script.requests
    assert (asked.owner, asked.accounting_group, asked.worker) == ("alice", "physics", "w1")
    assert (asked.running, asked.since_ns, asked.until_ns) == (False, START, START + HOUR)


def test_spans_are_counted_from_now(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """`--since 1d` is a day ago, and neither --running nor --ended means both."""
    before = time.time_ns()
    as_json(capsys, "jobs", "--since", "1d")
    (asked,) = service.script.requests
    assert 0 <= asked.since_ns - (before - 24 * HOUR) < 60 * 10**9
    assert asked.running is None


def test_many_pages_are_one_list(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """All jobs arrive in order over many answers."""
    service.script.page = 3
    service.script.records = [make_record(n) for n in range(20, 0, -1)]
    jobs = as_json(capsys, "jobs", "--limit", "0")["jobs"]
    assert [job["slot"] for job in jobs] == list(range(20, 0, -1))


def test_a_limit_cuts_and_says_so(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest are shown; that there are more is told to people and to programs."""
    service.script.page = 3
    service.script.records = [make_record(n) for n in range(20, 0, -1)]
    answer = as_json(capsys, "jobs", "--limit", "7")
    assert [job["slot"] for job in answer["jobs"]] == list(range(20, 13, -1))
    assert answer["more"] is True
    assert lark.status(["jobs", "--limit", "7"]) == 0
    assert "more jobs match than the 7 shown" in capsys.readouterr().err


def test_no_jobs_is_no_failure(service: Service) -> None:
    """Nothing on standard output, a word on standard error, status 0."""
    done = run("jobs")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no jobs match\n")


def test_a_job_is_found_with_all_its_runs(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs newest first, samples oldest first, in text and JSON."""
    runs = (JobRun(make_record(2), samples(0, 10, 30)), JobRun(make_record(1), ()))
    service.script.runs = {"1234.0": runs}
    answer = as_json(capsys, "job", "1234.0")
    assert [r["slot"] for r in answer["runs"]] == [2, 1]
    assert [s["received"]["bytes"] for s in answer["runs"][0]["samples"]] == [0, 10, 30]
    text = output(capsys, "job", "1234.0")
    assert text.index("#2.0#") < text.index("#1.0#")


def test_an_unknown_job_has_a_status_of_its_own(service: Service) -> None:
    """7, and one line that says where and what to do."""
    done = run("job", "99.9")
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr.startswith(f"lark: {service.path} knows no job '99.9' that you may see; ")
    assert done.stderr.count("\n") == 1


def test_usage_sums(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows under their keys; the total counts a job once that stands in two rows."""
    by = (GroupBy.OWNER, GroupBy.CLASS)
    service.script.totals = {
        by: sums((("alice", "campus"), 2, 10, 1000), (("alice", "other"), 1, 1, 5)),
        (): sums(((), 2, 11, 1005)),
    }
    answer = as_json(capsys, "usage", "--by", "owner,class", "--by", "owner")
    assert answer["by"] == ["owner", "class"]
    assert answer["until_ns"] - answer["since_ns"] == HOUR
    assert answer["since"] == "2023-11-14T22:00:00.000000000Z"
    assert answer["totals"][1] == {
        "key": {"owner": "alice", "class": "other"},
        "jobs": 1,
        "sent": {"packets": 1, "bytes": 1},
        "received": {"packets": 2, "bytes": 5},
        "cost_millionths": 0,
    }
    assert answer["total"]["jobs"] == 2
    assert answer["total"]["received"] == {"packets": 4, "bytes": 1005}
    text = output(capsys, "usage", "--by", "owner,class")
    assert text.splitlines()[0].startswith("Usage from 2023-11-14 22:00 to 2023-11-14 23:00 UTC")
    assert text.splitlines()[-1].split()[:2] == ["total", "2"]


def test_usage_of_nothing_is_zero(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """No rows still have a total."""
    service.script.totals = {(GroupBy.OWNER,): sums(), (): sums()}
    answer = as_json(capsys, "usage")
    assert answer["total"] == {
        "jobs": 0,
        "sent": {"packets": 0, "bytes": 0},
        "received": {"packets": 0, "bytes": 0},
        "cost_millionths": 0,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["jobs", "--frobnicate"],
        ["jobs", "--since", "yesterday"],
        ["jobs", "--since", "1h", "--until", "2h"],
        ["jobs", "--limit", "-1"],
        ["usage", "--by", "planet"],
        ["job"],
        ["top", "--interval", "0.5"],
        ["--agent", "/a", "--collector", "/b", "jobs"],
    ],
)
def test_wrong_words_are_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Usage errors never reach a service, and point to --help or name what is accepted."""
    assert lark.status(arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_no_service_is_status_6(tmp_path: Path) -> None:
    """One line that names the socket."""
    done = run("--agent", str(tmp_path / "none.sock"), "jobs")
    assert done.returncode == 6
    assert done.stderr.startswith(f"lark: {tmp_path}/none.sock: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_refusal_is_status_6_with_the_words_of_the_service(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the service says is passed on, with control characters disarmed."""
    service.script.refusal = grpc.StatusCode.INVALID_ARGUMENT, "page_size: \x1b[31mtoo much"
    assert lark.status(["jobs"]) == 6
    assert "page_size: \\x1b[31mtoo much" in capsys.readouterr().err


def test_a_record_from_another_version_is_status_6(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    """A word that this version does not know is not shown as if it did."""
    wire = convert.record_to_wire(make_record(1))
    wire.connectivity = "teleport"
    service.script.raw = [query_pb2.ListJobsResponse(records=[wire])]
    assert lark.status(["jobs"]) == 6
    assert "teleport" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(service: Service) -> None:
    """`lark jobs | head -1` prints one line and no traceback."""
    service.script.records = [make_record(n) for n in range(3000, 0, -1)]
    command = f"{sys.executable} -m lark_agent.cli.lark jobs --limit 0 | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True, text=True, check=False, timeout=60, env=child_environment(),
    )  # fmt: skip
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert done.returncode == 141


def test_ctrl_c_is_status_130(tmp_path: Path) -> None:
    """An interrupted question ends at once, without a traceback."""
    mute = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(mute))
        listener.listen()
        process = subprocess.Popen(
            [*INTERRUPTIBLE, sys.executable, "-m", "lark_agent.cli.lark",
             "--agent", str(mute), "jobs"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment(),
        )  # fmt: skip
        connection, _ = listener.accept()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        connection.close()
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "environment", "asked"),
    [
        ({"agent": "/a"}, "/e", "/a"),
        ({"collector": "/c"}, "/e", "/c"),
        ({}, "/e", "/e"),
        ({}, None, "agent"),
    ],
)
def test_options_beat_the_environment(
    options: dict[str, str],
    environment: str | None,
    asked: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """An option, else LARK_ENDPOINT, else the collector if it is here, else the agent."""
    monkeypatch.setattr(lark, "COLLECTOR_SOCKET", str(tmp_path / "query.sock"))
    monkeypatch.delenv("LARK_ENDPOINT", raising=False)
    if environment:
        monkeypatch.setenv("LARK_ENDPOINT", environment)
    expected = lark.AGENT_SOCKET if asked == "agent" else asked
    assert lark.endpoint(options.get("agent"), options.get("collector")) == expected
    if asked == "agent":
        (tmp_path / "query.sock").touch()
        assert lark.endpoint(None, None) == str(tmp_path / "query.sock")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """People copy examples."""
    lines = output(capsys, command, "--help").splitlines()
    start = lines.index("  Example:")
    assert all(f"lark {command}" in line for line in lines[start + 1 :])
    assert len(lines) > start + 1


def test_help_tells_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    """The statuses of the document are those of the help."""
    text = output(capsys, "--help")
    for status in ("0", "1", "2", "6", "7", "130"):
        assert f"\n    {status} " in text


def test_the_document_names_every_command_and_option() -> None:
    """docs/cli.md cannot forget an option."""
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for name, command in lark.lark.commands.items():
        assert f"`lark {name}" in text
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for option in (*parameter.opts, *parameter.secondary_opts):
                    assert option.startswith("-h") or f"`{option}" in text, option


def test_help_loads_neither_grpc_nor_rich() -> None:
    """What makes help fast: the slow libraries are not imported."""
    code = (
        "import sys; from lark_agent.cli import lark; lark.status(['jobs', '--help']);"
        "assert not {'grpc', 'rich', 'msgspec', 'pyroute2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_shells_complete_commands() -> None:
    """Completion works as click documents it."""
    done = run(_LARK_COMPLETE="bash_complete", COMP_WORDS="lark us", COMP_CWORD="1")
    assert "usage" in done.stdout


def test_a_change_is_asked_for_and_the_job_shown(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    """`set` sends the words as they are; what they mean is the agent's to say."""
    service.script.runs["5.0"] = (JobRun(make_record(1), ()),)
    assert lark.status(["job", "5.0", "set", "rate=10 Mbit/s", "reach=", "cut=yes"]) == 0
    assert service.script.changes == [("5.0", {"rate": "10 Mbit/s", "reach": "", "cut": "yes"})]
    assert "attachment" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["set"], ["set", "rate"], ["put", "rate=1"]])
def test_a_change_has_one_form(service: Service, words: list[str]) -> None:
    """Nothing is guessed about what an admin means."""
    assert lark.status(["job", "5.0", *words]) == 2
    assert service.script.changes == []


def test_quotas_are_shown(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a subject, with what is left; JSON has exact numbers; no quota is said so."""
    key = PoolKey("cloud", "owner", "alice", "2026-11")
    mine = Standing(key, 2 * 10**12, 5 * 10**11, 6 * 10**11, 3, "cut-class", START)
    spent = Standing(
        key._replace(subject="bob"), 10**6, 10**6, 10**6, 1, "notify", START, used_up=True
    )
    service.script.standings = [mine, spent]
    head, first, second = output(capsys, "quota").splitlines()
    assert head.split()[:3] == ["QUOTA", "PER", "SUBJECT"]
    assert "1.50 TB" in first
    assert "100 GB" in first
    assert first.endswith("ok")
    assert second.endswith("used up")
    (answer,) = as_json(capsys, "quota", "--owner", "alice")["quotas"]
    assert answer["left"] == 15 * 10**11
    assert answer["leased"] == 10**11
    assert (answer["subject"], answer["used_up"]) == ("alice", False)
    service.script.standings = []
    assert lark.status(["quota"]) == 0
    assert "no quota holds" in capsys.readouterr().err
