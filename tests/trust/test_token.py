"""Tokens survive copy and paste, and whatever is not one is refused without being repeated."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lark_agent.errors import ConfigurationError
from lark_agent.trust import token

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def test_a_token_is_one_line_and_read_as_it_was_made() -> None:
    """Spaces and line ends around it do not matter."""
    made = token.make(PEM)
    assert "\n" not in str(made)
    assert token.parse(f"  {made}\r\n\n") == made


def test_no_two_tokens_are_alike() -> None:
    """Neither the name nor the secret, which has 256 bits."""
    made = [token.make(PEM) for _ in range(20)]
    assert len({each.name for each in made} | {each.secret for each in made}) == 40
    assert {len(each.secret) for each in made} == {64}


@given(st.text())
def test_what_is_no_token_is_refused(text: str) -> None:
    """Whatever it is, and with no other error."""
    with pytest.raises(ConfigurationError, match="the whole line"):
        token.parse(text)
    with pytest.raises(ConfigurationError, match="the whole line"):
        token.parse(f"lark1:{text}")


@pytest.mark.parametrize("body", [[], ["a", "b"], ["a", "b", 3], {"a": 1}, ["a", "b", "c", "d"]])
def test_what_looks_like_a_token_is_refused(body: object) -> None:
    """The form inside is checked too."""
    text = "lark1:" + base64.urlsafe_b64encode(json.dumps(body).encode()).decode()
    with pytest.raises(ConfigurationError, match="the whole line"):
        token.parse(text)


def test_half_a_token_is_refused_and_not_repeated() -> None:
    """The error goes to terminals and logs."""
    made = token.make(PEM)
    with pytest.raises(ConfigurationError) as refused:
        token.parse(str(made)[:-9])
    assert str(made)[6:20] not in str(refused.value)
    assert made.secret not in str(refused.value)
