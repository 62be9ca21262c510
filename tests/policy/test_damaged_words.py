"""What a callout answers and what a site writes, damaged: understood, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import example, given

from lark_agent.config import AgentSettings, CollectorSettings, parse
from lark_agent.errors import ConfigurationError, PolicyRefusal
from lark_agent.model import Job, Scheduler
from lark_agent.policy.overrides import Overrides, UnreadableAnswer
from lark_agent.policy.site import Asking, SitePolicy
from tests.mutating import damaged, damaged_text

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = tuple(
    block
    for page in sorted(DOCS.glob("*.md"))
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
)
"""Every configuration that the documents show, some of them in part."""
COLLECTOR = """
listen = "0.0.0.0:9620"
enroll = "[::]:9621"
socket = "/run/lark-collector/query.sock"
store = "sqlite:////var/lib/lark-collector/usage.sqlite"
admin_group = "lark-admin"
observers = ["condor"]
certificate_days = 30
"""
ANSWERS = (
    b'Profile = "nat"\nPriority = 3\nReach = "campus"\nRate = "10 Mbit/s"\n',
    b'NetworkType = "nat"\nAddressType = "static"\nVLAN = 0\n',
    b'IP = "ipv4"\nInbound = "all"\nPeers = "owner"\n\nDSCP = 10\n',
)
SITE = SitePolicy.compile(
    parse(AgentSettings, '[uplink]\nrate = "1 Gbit/s"\n[classes]\ncampus = ["10.0.0.0/8"]\n', "f")
)
JOB = Asking(Job(Scheduler.HTCONDOR, "1.0", "alice", 1001), {"Cpus": 1})


@given(damaged_text(BLOCKS, most=3))
@example('[paths]\nrun = "/run/\\u0000"\n')
@example("[[rules]]\nwhen = 'strcat(\"\\u0000\")'\n")
def test_a_damaged_configuration_is_taken_or_refused(text: str) -> None:
    """With the file's name before each line; what is taken also compiles, and decides."""
    try:
        settings = parse(AgentSettings, text, "f")
        policy = SitePolicy.compile(settings, Path("f"))
    except ConfigurationError as error:
        assert str(error).startswith("f: ")  # noqa: PT017  either end is right
        return
    try:
        policy.plan(JOB)
    except PolicyRefusal as error:
        assert str(error)  # noqa: PT017  either end is right


@given(damaged_text((COLLECTOR,)))
def test_a_damaged_configuration_of_the_collector_is_taken_or_refused(text: str) -> None:
    """The same for collector.toml."""
    try:
        parse(CollectorSettings, text, "f")
    except ConfigurationError as error:
        assert str(error).startswith("f: ")  # noqa: PT017  either end is right


@given(damaged(ANSWERS))
def test_a_damaged_answer_is_taken_or_unreadable(answer: bytes) -> None:
    """What is taken is put in a plan, or the job is refused with the site's mistake."""
    try:
        overrides = Overrides.parse(answer, {"Name": "slot1"})
    except UnreadableAnswer as error:
        assert str(error)  # noqa: PT017  either end is right
        return
    try:
        SITE.plan(JOB, overrides)
    except PolicyRefusal as error:
        assert "callout" in str(error)  # noqa: PT017  either end is right


def test_what_the_documents_show_is_taken() -> None:
    """The samples are real ones; at least half of them stand by themselves."""
    taken = 0
    for block in BLOCKS:
        try:
            parse(AgentSettings, block, "f")
            taken += 1
        except ConfigurationError:
            continue
    assert taken >= len(BLOCKS) / 2 > 5
    for answer in ANSWERS:
        assert SITE.plan(JOB, Overrides.parse(answer)).profile == "nat"
    parse(CollectorSettings, COLLECTOR, "f")
