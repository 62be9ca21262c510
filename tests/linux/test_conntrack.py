"""Connection tracking forgets the connections of an address, and no others."""

from __future__ import annotations

import socket
import subprocess
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from lark_agent.linux import conntrack

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def listed(family: str) -> str:
    return subprocess.run(
        ["conntrack", "-L", "-f", family], check=True, capture_output=True, text=True
    ).stdout


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
    kind = socket.AF_INET if family == "ipv4" else socket.AF_INET6
    for source in (going, staying):
        for port in range(7000, 7020):
            with socket.socket(kind, socket.SOCK_DGRAM) as sock:
                sock.bind((source, 0))
                # to the other address, so that each is also the destination of an entry
                sock.sendto(b"x", (staying if source == going else going, port))
    assert listed(family).count(f"src={going} ") >= 20
    before = listed(family).count("udp      17 ")
    assert conntrack.forget({ip_address(going)}) == 20
    after = [line for line in listed(family).splitlines() if line]
    assert len(after) == before - 20
    assert all(line.split("src=")[1].startswith(staying) for line in after)
    assert conntrack.forget({ip_address(going)}) == 0
