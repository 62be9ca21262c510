"""The files that are written for HTCondor's config.d."""

from __future__ import annotations

import re

import pytest

from lark_agent.config import AgentSettings, parse
from lark_agent.errors import ConfigurationError
from lark_agent.hooks.htcondor_ads import ACCOUNT
from lark_agent.hooks.htcondor_config import submit_file, worker_file


def written(toml: str = "") -> dict[str, str]:
    """Return what the last line that sets each knob of a worker sets it to."""
    text = worker_file(parse(AgentSettings, toml, "agent.toml"), "/usr/bin/lark-agent")
    text = text.replace("\\\n", " ")
    return dict(re.findall(r"^(\w+) *= *(.*)$", text, re.MULTILINE))


def test_every_job_goes_through_wrapper_and_hook() -> None:
    """Both come from the directory that the agent's settings name, for all jobs."""
    knobs = written('[htcondor]\nprograms = "/opt/lark/libexec"')
    assert knobs["USER_JOB_WRAPPER"] == "/opt/lark/libexec/lark-run"
    assert knobs["LARK_HOOK_PREPARE_JOB"] == "/opt/lark/libexec/lark-prepare"
    assert knobs["LARK_HOOK_PREPARE_JOB_BEFORE_TRANSFER"] == "/opt/lark/libexec/lark-beside"
    assert knobs["STARTER_JOB_HOOK_KEYWORD"] == "LARK"
    assert "LARK_HOOK_JOB_EXIT" not in knobs


def test_the_starter_is_ours_only_where_that_is_wanted() -> None:
    """Accounting for transfers is off unless the site asks for it."""
    assert "STARTER" not in written()
    knobs = written('[htcondor]\nprograms = "/opt/lark/libexec"\naccount_transfer = true')
    assert knobs["STARTER"] == "/opt/lark/libexec/lark-starter"
    assert knobs["USE_SHARED_PORT"] == "True"
    assert knobs["DAEMON_SOCKET_DIR"].startswith("$(LOCK)/")


def test_jobs_with_programs_beside_them_are_kept_away() -> None:
    """What the starter would run of a user's without the wrapper is named in START."""
    text = worker_file(parse(AgentSettings, "", "agent.toml"), "/usr/bin/lark-agent")
    fences = re.findall(r"TARGET\.(\w+) =\?= undefined", text)
    assert {"PreCmd", "PostCmd", "ToolDaemonCmd", "TransferPlugins"} <= set(fences)
    assert written()["DOCKER"] == ""
    assert written()["STARTER_DISABLE_USER_SUPPLIED_TRANSFER_PLUGINS"] == "true"


def test_a_directory_that_would_end_the_line_is_refused() -> None:
    """Nothing of the settings can become another line of HTCondor's configuration."""
    with pytest.raises(ConfigurationError, match="programs"):
        parse(AgentSettings, '[htcondor]\nprograms = "/a\\nSTART = true"', "agent.toml")


def test_the_site_keeps_its_own_words() -> None:
    """START, the startd's programs and attributes are added to, not replaced."""
    knobs = written()
    assert knobs["START"] == "($(START)) && (MY.LarkReady =?= true)"
    assert knobs["STARTD_CRON_JOBLIST"] == "$(STARTD_CRON_JOBLIST) LARK"
    assert knobs["STARTD_ATTRS"].startswith("$(STARTD_ATTRS) ")


def test_nothing_is_a_metric() -> None:
    """The starter would carry metrics into the job's ad, from a file that the job can write."""
    assert not any("METRICS" in knob for knob in written())


def test_bandwidth_is_what_the_agent_can_promise() -> None:
    """Queues' guarantees are not for others, and the weaker direction counts."""
    knobs = written("""
[uplink]
rate = "10 Gbit/s sent, 2 Gbit/s received"
[queues.cms]
guarantee = "500 Mbit/s"
[requests]
bandwidth = "400 Mbit/s"
""")
    assert knobs["MACHINE_RESOURCE_Bandwidth"] == "1500"
    assert knobs["START"].endswith("(TARGET.RequestBandwidth ?: 0) <= 400")


@pytest.mark.parametrize(
    "toml", ['[uplink]\nrate = "1 Gbit/s"', '[requests]\nbandwidth = "400 Mbit/s"']
)
def test_bandwidth_is_no_resource_where_nobody_can_have_it(toml: str) -> None:
    """What the policy refuses, or nobody knows the size of, is not given out."""
    assert "MACHINE_RESOURCE_Bandwidth" not in written(toml)


def test_networks_can_be_asked_for_by_name_or_number() -> None:
    """Both are in what the machine matches on."""
    network = (
        'connectivity = "vlan"\nvlan = 3001\naddresses = "static"\npool4 = "192.0.2.1-192.0.2.9/24"'
    )
    knobs = written(f"[networks.lhcone]\n{network}")
    assert knobs["edVLAN"] == '"lhcone,3001"'
    assert "stringListMember(string(TARGET.RequestedVLAN), MY.VLAN)" in knobs["START"]
    assert "edVLAN" not in written()


def test_nobody_else_writes_the_account() -> None:
    """Every attribute of the account is protected, and taken out of what users submit."""
    text = submit_file("/usr/bin/lark-collector", ["--socket", "/run/lark/agent.sock"])
    protected = next(line for line in text.splitlines() if line.startswith("PROTECTED_JOB_ATTRS"))
    assert set(protected.split()[3:]) == set(ACCOUNT)
    assert protected.split()[2] == "$(PROTECTED_JOB_ATTRS)"
    assert set(re.findall(r"^   DELETE (\w+)$", text, re.MULTILINE)) == set(ACCOUNT)
    assert "SCHEDD_CRON_LARK_ARGS = htcondor-schedd --socket /run/lark/agent.sock" in text
