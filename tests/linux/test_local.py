"""What a machine takes for itself is found whole, and every change of it is told."""

from __future__ import annotations

import subprocess
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from lark_agent.linux import local

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root
COMMANDS = (
    "ip link add near type veth peer name far", "ip link set near up", "ip link set far up",
    "ip address add 192.0.2.10/24 broadcast 192.0.2.255 dev near",
    "ip address add 2001:db8:1::10/64 nodad dev near",
    "ip route add local 198.18.9.0/28 dev lo",
)  # fmt: skip
EXPECTED = {
    ip_network(text)
    for text in ("192.0.2.10", "192.0.2.255", "2001:db8:1::10", "198.18.9.0/28")
}  # fmt: skip


def run(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)


@pytest.mark.usefixtures("fresh_host")
def test_all_that_is_delivered_here() -> None:
    """Addresses, broadcasts and prefixes routed to the machine; no loopback, no link-local."""
    assert local.networks() == frozenset()
    run(*COMMANDS)
    assert local.networks() == EXPECTED
    run("sysctl -qw net.ipv6.conf.all.forwarding=1")
    assert local.networks() == EXPECTED | {ip_network("2001:db8:1::/128")}


@pytest.mark.parametrize("address", ["192.0.2.77/24", "2001:db8:1::77/64"])
def test_changes_are_told_but_for_known_ones(fresh_host: Path, address: str) -> None:
    """An address that comes and goes is a change; one that is known is none, nor is a route."""
    del fresh_host
    run(*COMMANDS[:3])
    single = ip_network(address.partition("/")[0])
    broadcast = ip_network("192.0.2.255")
    with local.watch() as events:
        assert not local.has_changed(events, ())
        run(f"ip address add {address} dev near {'nodad' if ':' in address else 'brd +'}")
        assert local.has_changed(events, ())
        run("ip route add 198.51.100.0/24 dev near")
        assert not local.has_changed(events, ())
        run(f"ip address del {address} dev near")
        assert local.has_changed(events, {broadcast})
        run(f"ip address add {address} dev near {'nodad' if ':' in address else 'brd +'}")
        assert not local.has_changed(events, {single, broadcast})
