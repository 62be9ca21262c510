"""Which startd a starter in a sandbox can be let reach, by what HTCondor says of its address."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from lark_agent.agent.starters import address_of
from lark_agent.errors import InvalidRequest, Unavailable


def test_an_address_as_htcondor_writes_it() -> None:
    """The primary one, with shared port."""
    text = "<192.0.2.10:9618?addrs=192.0.2.10-9618+[2001-db8-1--10]-9618&noUDP&sock=startd_73_a6>"
    assert address_of(text) == (IPv4Address("192.0.2.10"), 9618)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<127.0.0.1:9618?addrs=127.0.0.1-9618&sock=startd_1>", "NETWORK_INTERFACE"),
        ("<192.0.2.10:40123?addrs=192.0.2.10-40123>", "USE_SHARED_PORT"),
        ("<192.0.2.10:40123>", "USE_SHARED_PORT"),
    ],
)
def test_what_a_sandbox_cannot_reach_is_refused(text: str, why: str) -> None:
    """With what the admin can do about it; the starter runs as ever then."""
    with pytest.raises(Unavailable, match=why):
        address_of(text)


@pytest.mark.parametrize("text", ["", "<>", "<999.0.2.1:1?sock=x>", "<[::1]:9618?sock=x>", "x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(InvalidRequest, match="no IPv4 address"):
        address_of(text)
