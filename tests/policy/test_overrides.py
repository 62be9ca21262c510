"""What the callout is told and what it may answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lark_agent.policy import ads
from lark_agent.policy.overrides import Overrides, UnreadableAnswer, question
from lark_agent.policy.site import Asking
from tests.policy.test_site import ALICE, site

VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])),
    st.integers(-(10**18) + 1, 10**18 - 1),
    st.booleans(),
)
ADS = st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True), VALUES)


@given(ADS, ADS)
def test_the_program_reads_what_rules_see(job: ads.Ad, machine: ads.Ad) -> None:
    """Both ads come back from what is written, and no value can pass for the separator."""
    first, second = question(job, machine).decode().split("------\n")
    assert ads.parse(first.encode(), "job ad") == job
    assert ads.parse(second.encode(), "machine ad") == machine


def test_a_text_of_several_lines_stays_one_line() -> None:
    """A job cannot add lines of its own to what the program reads."""
    told = question({"Title": 'a"\nOwner = "root"\n------'}, {}).decode()
    assert told.splitlines() == ['Title = "a\\"\\nOwner = \\"root\\"\\n------"', "------"]


def test_the_program_sees_the_agents_facts() -> None:
    """What an ad says about its owner is not what the program reads."""
    job, _ = site("").ads(Asking(ALICE, {"owner": "root", "Cmd": "x"}))
    lines = question(job, {}).decode().splitlines()
    assert 'Owner = "alice"' in lines
    assert not any("root" in line for line in lines)


def test_no_answer_is_no_objection() -> None:
    """Silence and empty lines leave everything as it was."""
    assert Overrides.parse(b"\n \n") == Overrides()


def test_an_answer_gives_names_in_any_case() -> None:
    """As ClassAds do."""
    answer = b'Profile = "analysis"\nREACH = "campus, other"\npeers = "owner"\n'
    assert Overrides.parse(answer) == Overrides(
        "analysis", {"reach": "campus, other", "peers": "owner"}
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"no\n", "not of the form Name = value"),
        (b"\xff = 1\n", "not of the form Name = value"),
        (b'VLAN = "312"\n', "it gives VLAN; it may give profile, connectivity, network"),
        (b"Reach = campus\n", "does not give a literal value"),
        (b"Profile = 3\n", "is not a text in double quotes"),
        (b'Reach = "a"\nreach = "b"\n', "gives reach twice"),
        (b" " * 65537, "over 65536 bytes"),
    ],
)
def test_nonsense_is_no_answer(answer: bytes, said: str) -> None:
    """What cannot be understood is a failure of the program, and says what it is."""
    with pytest.raises(UnreadableAnswer, match=said):
        Overrides.parse(answer)
