"""Job ads are read as a user may have written them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lark_agent.errors import InvalidRequest
from lark_agent.policy import ads


def test_literals_of_every_kind_are_taken_and_expressions_are_not() -> None:
    """Strings, numbers and booleans arrive; what would have to be evaluated stays undefined."""
    text = rb"""
MyType = "Job"
Owner = "alice"
Args = "say \"hi\" \\ there"
ClusterId = 4711
Load = 1.5e3
WantNetwork = False
Requirements = (TARGET.Arch == "X86_64") && regexp(".*", Owner)
Rank = Rank
"""
    assert ads.parse(text, "job ad") == {
        "MyType": "Job",
        "Owner": "alice",
        "Args": 'say "hi" \\ there',
        "ClusterId": 4711,
        "Load": 1500.0,
        "WantNetwork": False,
    }


def test_bracketed_ads_are_read_too() -> None:
    """The new syntax between brackets, one attribute a line, means the same."""
    assert ads.parse(b'[\n  Owner = "bob";\n  ProcId = 3;\n]\n', "job ad") == {
        "Owner": "bob",
        "ProcId": 3,
    }


def test_names_are_found_in_any_case() -> None:
    """ClassAd attribute names do not depend on case."""
    ad = ads.parse(b'OWNER = "alice"\nclusterid = 5\nFlag = true\n', "job ad")
    assert ads.text_of(ad, "Owner") == "alice"
    assert ads.integer_of(ad, "ClusterId") == 5
    assert ads.integer_of(ad, "Flag") is None
    assert ads.text_of(ad, "ClusterId", "AcctGroup") == ""


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\x7fELF\x02\x01\x01\xff\xfe", "not text"),
        (b"just some words\nand more\n", "no line of the form"),
        (b"x" * (ads.MAX_BYTES + 1), "over"),
        (b"".join(b"A%d = 1\n" % n for n in range(ads.MAX_ATTRIBUTES + 1)), "attributes"),
    ],
)
def test_what_is_not_an_ad_is_refused_with_the_reason(data: bytes, word: str) -> None:
    """Binary data, prose, and ads beyond any batch system's size are the caller's mistake."""
    with pytest.raises(InvalidRequest, match=word):
        ads.parse(data, "job ad")


def test_an_empty_ad_has_no_attributes() -> None:
    """An ad that lacks everything is no error: the job is named by what else is known."""
    assert ads.parse(b"", "job ad") == {}


@given(st.binary(max_size=400))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    """Whatever a user writes is an ad or refused, never another error."""
    try:
        parsed = ads.parse(data, "job ad")
    except InvalidRequest:
        return
    assert all(isinstance(value, (str, int, float, bool)) for value in parsed.values())


def test_a_slow_pattern_cannot_be_written() -> None:
    """Lines made to make regular expressions backtrack are read in no time."""
    ads.parse(b'A = "' + b"\\" * 500_000 + b"\n", "job ad")
    ads.parse(b"A = " + b"1" * 500_000 + b"x\n", "job ad")
