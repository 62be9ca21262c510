"""A port that is held is nobody else's."""

from __future__ import annotations

import socket

import pytest

from lark_agent.errors import Unavailable
from lark_agent.linux import ports
from lark_agent.model import Port

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("fresh_host")]
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_what_a_program_has_cannot_be_held(protocol: str, address: str) -> None:
    """Whatever address the program has bound; the port is named."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, KINDS[protocol]) as taken:
        taken.bind((address, 8443))
        with pytest.raises(Unavailable, match=f"{protocol}/8443"):
            ports.hold(Port(protocol, 8443))
    ports.hold(Port(protocol, 8443)).close()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_what_is_held_no_program_gets(protocol: str) -> None:
    """Neither family; the other protocol's port of the same number is another."""
    other = {"tcp": "udp", "udp": "tcp"}[protocol]
    with ports.hold(Port(protocol, 8443)), ports.hold(Port(other, 8443)):
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with (
                socket.socket(family, KINDS[protocol]) as program,
                pytest.raises(OSError, match="in use"),
            ):
                program.bind((address, 8443))
