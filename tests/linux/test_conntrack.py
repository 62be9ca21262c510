"""Connection tracking forgets the connections of an address, and no others."""

from __future__ import annotations

import socket
import subprocess
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from lark_agent.linux import conntrack

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def originated(family: str, address: str) -> int:
    """Count the entries whose first packet came from an address, as conntrack(8) lists them."""
    text = subprocess.run(
        ["conntrack", "-L", "-f", family], check=True, capture_output=True, text=True
    ).stdout
    return sum(line.split("src=")[1].split()[0] == address for line in text.splitlines())


@pytest.mark.parametrize(
    ("family", "going", "staying"),
    [("ipv4", "198.51.100.1", "198.51.100.2"), ("ipv6", "2001:db8::1", "2001:db8::2")],
)
def test_forget(fresh_host: Path, family: str, going: str, staying: str) -> None:
    """Every entry that the address originated is gone, and every other is still there."""
    for command in (
        "nft add table inet t",
        "nft add chain inet t c { type filter hook output priority 0 ; }",
        "nft add rule inet t c ct state new counter",
        "nft add chain inet t n { type nat hook postrouting priority 100 ; }",
        *(f"ip address add {address} dev lo nodad" for address in (going, staying)),
    ):
        words = command.split()
        if family == "ipv4" and words[-1] == "nodad":
            words.pop()
        subprocess.run(words, check=True)
    until = time.monotonic() + 10
    while min(originated(family, going), originated(family, staying)) < 20:
        assert time.monotonic() < until, "connections are not tracked"
        # each address is also the destination of the other's, which must not count
        send(going, staying)
        send(staying, going)
    before = originated(family, staying)
    assert conntrack.forget({ip_address(going)}) >= 20
    assert originated(family, going) == 0
    assert originated(family, staying) == before
    assert conntrack.forget({ip_address(going)}) == 0


@pytest.mark.parametrize(
    ("family", "server", "client"),
    [("ipv4", "198.51.100.1", "198.51.100.2"), ("ipv6", "2001:db8::1", "2001:db8::2")],
)
def test_forget_incoming(fresh_host: Path, family: str, server: str, client: str) -> None:
    """What others began to the address is gone; what it began itself stays."""
    for command in (
        "nft add table inet t",
        "nft add chain inet t c { type filter hook output priority 0 ; }",
        "nft add rule inet t c ct state new counter",
        *(f"ip address add {address} dev lo" for address in (server, client)),
    ):
        words = command.split()
        if family == "ipv6" and words[0] == "ip":
            words.append("nodad")
        subprocess.run(words, check=True)
    until = time.monotonic() + 10
    while min(originated(family, server), originated(family, client)) < 20:
        assert time.monotonic() < until, "connections are not tracked"
        send(server, client)
        send(client, server)
    before = originated(family, server)
    assert conntrack.forget_incoming({ip_address(server)}) >= 20
    assert originated(family, client) == 0
    assert originated(family, server) == before
    assert conntrack.forget_incoming({ip_address(server)}) == 0


def send(source: str, destination: str) -> None:
    kind = socket.AF_INET6 if ":" in source else socket.AF_INET
    for port in range(7000, 7020):
        with socket.socket(kind, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.sendto(b"x", (destination, port))
