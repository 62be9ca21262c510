"""`lark policy`: what an admin reads before a job does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lark_agent.cli import lark
from lark_agent.policy.vocabulary import SETTINGS

if TYPE_CHECKING:
    from pathlib import Path

SITE = """\
[classes]
campus = ["198.51.100.0/24"]
[profiles.campus-only]
reach = ["campus"]
[[rules]]
when = 'AcctGroup == "students"'
set = { peers = '"owner"' }
[[rules]]
when = 'MY.Cpus > 3'
profile = "campus-only"
"""
JOB = """\
GlobalJobId = "schedd#1.0#1"
Owner = "alice"
AcctGroup = "students"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "job.ad").write_text(JOB)
    (tmp_path / "machine.ad").write_text("Cpus = 4\n")
    (tmp_path / "agent.toml").write_text(SITE)
    return tmp_path


def explain(site: Path, *more: str) -> list[str]:
    """Return the command line that explains alice's job."""
    words = ["policy", "explain", "--config", str(site / "agent.toml")]
    words += ["--ad", str(site / "job.ad"), "--machine-ad", str(site / "machine.ad")]
    return [*words, *more]


def test_a_good_file_is_good(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 0."""
    assert lark.status(["policy", "check", str(site / "agent.toml")]) == 0
    assert capsys.readouterr().out == f"{site}/agent.toml: good\n"


def test_all_mistakes_are_told_with_their_lines(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Findings of the settings and of the expressions come together; status 2."""
    file = site / "bad.toml"
    file.write_text("[pool]\nslots = 0\n" + SITE.replace("'MY.Cpus > 3'", "'('"))
    assert lark.status(["policy", "check", str(file)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{file}:2: pool.slots: 0 is not between 1 and")
    assert lines[-1].startswith(f"{file}:11: rules[2].when: '(' is not a ClassAd expression; ")
    assert lark.status(["policy", "check", "--json", str(file)]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["good"], answer["file"]) == (False, str(file))
    assert {row["line"] for row in answer["findings"]} >= {2, 11}
    assert {row["key"] for row in answer["findings"]} >= {"pool.slots", "rules[2].when"}


def test_what_only_this_machine_lacks_is_a_note(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file may be for other machines: status 0, and the line of what is not here."""
    file = site / "agent.toml"
    programs = (
        '[callout]\ncommand = ["/no/such/program"]\nuser = "nobody-here"\n'
        f'[quota_hook]\ncommand = ["{site}/job.ad"]\n'
    )
    file.write_text(SITE + programs)
    assert lark.status(["policy", "check", str(file)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{file}: good\n"
    said = [line.partition(" (a note")[0] for line in captured.err.splitlines()]
    assert said == [
        f"{file}:12: callout.command: this machine has no program /no/such/program that can be run",
        f"{file}:13: callout.user: this machine has no user nobody-here",
        f"{file}:15: quota_hook.command: this machine has no program {site}/job.ad that can be run",
    ]
    assert lark.status(["policy", "check", "--json", str(file)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["good"], answer["findings"]) == (True, [])
    assert [note["line"] for note in answer["notes"]] == [12, 13, 15]
    file.write_text(SITE + '[callout]\ncommand = ["/bin/true"]\n')
    assert lark.status(["policy", "check", str(file)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [b"worker = ", b"\xff\xfe"])
def test_what_is_not_toml_is_told(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, no traceback."""
    (tmp_path / "x.toml").write_bytes(content)
    assert lark.status(["policy", "check", str(tmp_path / "x.toml")]) == 2
    captured = capsys.readouterr()
    assert str(tmp_path / "x.toml") in captured.out + captured.err


def test_the_plan_and_who_made_it(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each rule has its line, and the plan stands at the end."""
    assert lark.status(explain(site)) == 0
    text = capsys.readouterr().out
    assert 'rules[1]  peers    owner        computed by "owner"' in text
    assert "rules[2]  profile  campus-only  MY.Cpus > 3 is true" in text
    assert told(text) == {
        "profile": "campus-only rules[2]",
        "connectivity": "nat default",
        "reach": "campus profile campus-only",
        "peers": "owner rules[1]",
    }


def told(text: str) -> dict[str, str]:
    """Return setting → value and who said it, of the last table."""
    rows = [line.split() for line in text.splitlines()]
    first = next(number for number, row in enumerate(rows) if row[:3] == ["THE", "JOB", "GETS"])
    return {row[0]: " ".join(row[1:]) for row in rows[first + 1 :]}


def test_every_setting_can_be_shown(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings that nobody set come with --all, and are always in the JSON."""
    assert lark.status(explain(site, "--all")) == 0
    rows = told(capsys.readouterr().out)
    assert set(rows) == {"profile", *SETTINGS}
    assert rows["rate"] == "none default"
    assert rows["inbound"] == "established default"
    assert lark.status(explain(site, "--json")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["plan"]) == set(answer["set_by"]) == {"profile", *SETTINGS}


def test_requests_and_the_callout_are_among_those_who_say(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A callout's profile takes back what rules said; a job's request has the last word."""
    (site / "agent.toml").write_text(f'{SITE}[uplink]\nrate = "1 Gbit/s"\n')
    (site / "answer").write_text('Profile = "nat"\nPriority = 2\n')
    (site / "job.ad").write_text(JOB + 'IPProtocol = "IPv6"\n')
    assert lark.status(explain(site, "--answer", str(site / "answer"))) == 0
    assert told(capsys.readouterr().out) == {
        "profile": "nat callout",
        "connectivity": "nat default",
        "ip": "ipv6 IPProtocol",
        "priority": "2 callout",
    }


def test_json_is_for_programs(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plan, refusal and steps, as documented."""
    assert lark.status(explain(site, "--json")) == 0
    answer = json.loads(capsys.readouterr().out)
    expected = {
        "profile": "campus-only",
        "connectivity": "nat",
        "reach": ["campus"],
        "peers": "owner",
        "rate": {"sent": 0, "received": 0},
    }
    assert answer["plan"].items() >= expected.items()
    assert answer["refused"] is None
    assert answer["steps"][0] == {
        "by": "rules[1]",
        "setting": "peers",
        "value": "owner",
        "why": 'computed by "owner"',
    }


def test_options_stand_for_the_ads(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Owner, group and identity can be tried without writing an ad."""
    assert lark.status(explain(site, "--group", "staff", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["peers"] == "none"
    assert lark.status(explain(site, "--unverified", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["profile"] == "nat", "no machine ad is seen"
    (site / "agent.toml").write_text('[[rules]]\nwhen = \'Owner == "bob"\'\nprofile = "none"\n')
    assert lark.status(explain(site, "--owner", "bob", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["profile"] == "none"


def test_a_job_without_an_ad_needs_an_owner(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rules look at the owner, so it is not made up."""
    config = str(site / "agent.toml")
    assert lark.status(["policy", "explain", "--config", config]) == 2
    assert "give --owner" in capsys.readouterr().err
    assert lark.status(["policy", "explain", "--config", config, "--owner", "root"]) == 0


def test_a_refusal_is_an_answer(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, and the words that the user would read."""
    assert lark.status(explain(site, "--profile", "fast")) == 1
    said = "this site has no network profile 'fast'; it has campus-only, nat, none"
    assert f"\nrefused: {said}\n" in capsys.readouterr().out
    assert lark.status(explain(site, "--profile", "fast", "--json")) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["plan"], answer["refused"]) == (None, said)


def test_the_callout_is_not_run(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its answer can be given; a reader is told if it is not."""
    text = SITE + f'[callout]\ncommand = ["/bin/touch", "{site}/ran"]\n'
    (site / "agent.toml").write_text(text)
    (site / "answer").write_text('Peers = "all"\n')
    assert lark.status(explain(site)) == 0
    assert "the callout was not asked" in capsys.readouterr().err
    assert lark.status(explain(site, "--answer", str(site / "answer"), "--json")) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["peers"] == "all"
    (site / "answer").write_text("nonsense\n")
    assert lark.status(explain(site, "--answer", str(site / "answer"))) == 2
    assert not (site / "ran").exists()


@pytest.mark.parametrize("command", ["check", "explain"])
def test_every_help_ends_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """People copy examples."""
    assert lark.status(["policy", command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"lark policy {command}" in line for line in lines[lines.index("  Example:") + 1 :])
