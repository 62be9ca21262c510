"""Interfaces, rules and the uplink, through the doors that the agent uses."""

from __future__ import annotations

import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted

from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.linux import namespaces, nftables, uplink
from lark_agent.linux.links import Links

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root
GROUP = 4242


def add_link(name: str, mtu: int = 1500) -> None:
    """Make an interface that is up (one end of a veth pair: not every kernel has dummies)."""
    ip(
        f"link add {name} mtu {mtu} type veth peer name p-{name}",
        f"link set {name} up",
        f"link set p-{name} up",
    )


def ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


def show(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def test_a_veth_is_made_wired_and_deleted(fresh_host: Path) -> None:
    """Addresses, permanent neighbours and routes are as asked for; deleting is by group."""
    namespaces.create("lark1", lambda: None)
    with Links() as links, namespaces.path("lark1").open() as there:
        links.add_veth(
            "lark1", "02:00:00:00:00:01", "eth0", "02:00:00:00:00:02", there.fileno(), 1400
        )
        index = links.index("lark1")
        assert links.names("lark") == {"lark1": index}
        assert (links.mtu(index), links.name_of(index)) == (1400, "lark1")
        links.up(index, silent=True)
        for text in ("100.98.0.1", "fd6c::1"):
            links.add_address(index, ip_address(text))
        links.add_neighbour(index, ip_address("100.98.0.2"), "02:00:00:00:00:02")
        links.add_route(index, ip_address("100.98.0.2"))
        links.set_mtu(index, 1300)
        assert "NOARP" in show("link", "show", "lark1")
        assert "mtu 1300" in show("link", "show", "lark1")
        assert "PERMANENT" in show("neigh", "show", "dev", "lark1")
        assert "100.98.0.2" in show("route", "show", "dev", "lark1")
        assert "tentative" not in show("-6", "address", "show", "dev", "lark1")
        links.delete([index, 9999], GROUP)
        links.delete([index], GROUP)
        assert links.names("lark") == {}
        assert links.index("lark1") == 0


def test_refusals_name_what_was_tried(fresh_host: Path) -> None:
    """The kernel's refusal comes with the operation and the interface."""
    with Links() as links:
        with pytest.raises(KernelError, match="setting MTU 1300 on interface 9999: No such device"):
            links.set_mtu(9999, 1300)
        with pytest.raises(KernelError, match="reading the MTU of interface 9999"):
            links.mtu(9999)


def test_rules_are_all_or_nothing(fresh_host: Path) -> None:
    """One wrong line in a text, and none of it holds; nft's own words are in the error."""
    nftables.run("table inet kept {\n chain c { }\n}\n")
    with pytest.raises(KernelError, match="No such file or directory"):
        nftables.run("add table inet lost\nadd rule inet absent c accept\n")
    assert nftables.run("list tables").strip() == "table inet kept"


def test_the_uplink_is_that_of_the_best_default_route(fresh_host: Path) -> None:
    """The default route with the lowest metric leads; a named interface comes first."""
    with Links() as links:
        with pytest.raises(PrerequisiteError, match="no default route"):
            uplink.find(links, "")
        for number in (1, 2):
            add_link(f"up{number}", 1400 + number)
            ip(
                f"address add 192.0.{number}.1/24 dev up{number}",
                f"route add default via 192.0.{number}.254 metric {300 - number}",
            )  # fmt: skip
        found = uplink.find(links, "")
        assert (found.interface, found.mtu, found.has_ipv6) == ("up2", 1402, False)
        assert uplink.find(links, "up1").mtu == 1401
        with pytest.raises(PrerequisiteError, match="no interface 'up3'"):
            uplink.find(links, "up3")
        ip("address add 2001:db8::1/64 dev up1 nodad", "route add ::/0 via 2001:db8::2 dev up1")
        assert uplink.find(links, "").has_ipv6


def test_overlapping_routes_are_found(fresh_host: Path) -> None:
    """A route inside, around or equal to a range is named; our own links' do not count."""
    add_link("up0")
    add_link("lark0")
    ip("address add 10.1.2.1/24 dev up0", "route add 100.98.0.2/32 dev lark0")
    with Links() as links:
        for text in ("10.1.0.0/16", "10.1.2.0/24", "10.1.2.128/25"):
            assert uplink.overlapping_route(links, ip_network(text), "lark") == "10.1.2.0/24"
        assert uplink.overlapping_route(links, ip_network("100.98.0.0/16"), "lark") == ""
        assert uplink.overlapping_route(links, ip_network("100.98.0.0/16"), "x") == "100.98.0.2/32"
        assert uplink.overlapping_route(links, ip_network("fd00::/64"), "lark") == ""


def test_a_delegated_network_may_lie_behind_a_router(fresh_host: Path) -> None:
    """Larger networks by way of a router, and routes that discard, are no overlap of it."""
    add_link("up0")
    ip(
        "address add 10.1.2.1/24 dev up0", "route add 172.16.0.0/12 via 10.1.2.9",
        "route add 172.16.9.0/25 via 10.1.2.9", "route add unreachable 172.16.7.0/24",
        "route add blackhole 172.16.8.0/28", "address add 2001:db8::1/64 dev up0 nodad",
        "route add 2001:db8:7::/48 via 2001:db8::9", "route add unreachable 2001:db8:7:1::/112",
    )  # fmt: skip

    def overlap(text: str, *, delegated: bool = True) -> str:
        return uplink.overlapping_route(links, ip_network(text), "lark", delegated=delegated)

    with Links() as links:
        assert overlap("172.16.7.0/24") == overlap("172.16.8.0/24") == ""
        assert overlap("2001:db8:7:1::/112") == ""
        assert overlap("172.16.9.0/24") == overlap("172.16.9.0/25") == "172.16.9.0/25"
        assert overlap("10.1.2.128/25") == "10.1.2.0/24"
        assert overlap("2001:db8::7:0/112") == "2001:db8::/64"
        assert overlap("172.16.7.0/24", delegated=False) == "172.16.0.0/12"


def test_forwarding_keeps_the_workers_own_route(fresh_host: Path) -> None:
    """Where router advertisements were accepted they still are, although the worker forwards."""
    add_link("up0")
    key = Path("/proc/sys/net/ipv6/conf/up0/accept_ra")
    key.write_text("1")
    closed = uplink.not_forwarding(ipv6=True)
    uplink.let_forward(uplink.Uplink("up0", 2, 1500, has_ipv6=True), closed)
    assert key.read_text().strip() == "2"
    assert Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text().strip() == "1"
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"


def test_an_interrupted_dump_of_links_is_read_again(fresh_host: Path) -> None:
    """A list that the kernel flags as interrupted is read again; after five the caller is told."""
    del fresh_host
    with Links() as links:
        whole, left = links._ip.get_links, [2]

        def interrupted() -> Iterator[object]:
            yield from whole()
            if left[0]:
                left[0] -= 1
                raise NetlinkDumpInterrupted

        links._ip.get_links = interrupted
        assert links.names("lo") == {"lo": 1}
        assert left == [0]
        left[0] = 5
        with pytest.raises(KernelError, match="changed during every reading"):
            links.names("lo")
