"""Addresses that the network gives: DHCP leases that last over jobs, and router advertisements."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lark_agent.config import Network
from lark_agent.config.resources import AddressMode
from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.linux import namespaces
from lark_agent.model import Connectivity
from lark_agent.sandbox import leases, networks
from tests.datapath.network import sh
from tests.sandbox.site import (
    DHCP,
    ROUTER,
    SITE4,
    SITE6,
    Site,
    addresses,
    kill,
    links,
    pings,
    processes_in,
    until,
)

if TYPE_CHECKING:
    from lark_agent.sandbox.connectivity import Sandbox
    from lark_agent.sandbox.layer2 import Layer2Driver

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]


def dynamic(addresses: AddressMode, connectivity: Connectivity = Connectivity.BRIDGE) -> Network:
    bridge = "br0" if connectivity is Connectivity.BRIDGE else ""
    return Network(connectivity=connectivity, bridge=bridge, addresses=addresses)


@pytest.fixture(params=[Connectivity.BRIDGE, Connectivity.MACVLAN])
def driver(request: pytest.FixtureRequest, site: Site) -> Layer2Driver:
    """Make a driver with DHCP for each kind of link."""
    if request.param is Connectivity.MACVLAN:
        sh("ip link set up0 nomaster")
    return site.driver(dynamic(AddressMode.DHCP, request.param))


def clients(sandbox: Sandbox) -> list[int]:
    """Return the DHCP clients that run in a sandbox."""
    return processes_in(sandbox)


def test_a_sandbox_gets_a_lease(driver: Layer2Driver, site: Site) -> None:
    """Address, router and resolvers are the server's, and one client renews them."""
    driver.check()
    with site.dnsmasq(DHCP, "--dhcp-option=6,198.18.20.53,198.18.20.54"):
        sandbox = driver.set_up(3)
        assert str(sandbox.ipv4).startswith("198.18.20.1")
        assert sandbox.ipv6 is None
        assert pings(sandbox, SITE4)
        assert f"default via {SITE4}" in sh(f"ip -n {sandbox.name} route")
        assert sandbox.own_resolvers
        own = (site.directory / "run" / "resolv.conf.3").read_text(encoding="ascii")
        assert own.splitlines()[1:] == ["nameserver 198.18.20.53", "nameserver 198.18.20.54"]
        assert len(clients(sandbox)) == 1


def test_nothing_is_left_of_a_client(driver: Layer2Driver, site: Site) -> None:
    """After tear-down no process and no interface is there; only the remembered lease."""
    before = links()
    with site.dnsmasq(DHCP):
        sandbox = driver.set_up(3)
        (client,) = clients(sandbox)
        assert driver.tear_down([sandbox]) == []
    until(lambda: not is_running(client), "the client to end")
    assert links() == before
    assert namespaces.names("lark") == []
    assert [p.name for p in (site.directory / "run").rglob("*")] == ["dhcp"]
    assert len(list((site.directory / "state" / "leases" / "lab").iterdir())) == 1


def is_running(pid: int) -> bool:
    """Tell a process from one that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123  one line
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_slot_keeps_its_lease_over_jobs_and_servers(site: Site) -> None:
    """The next sandbox of a slot has the same address, even from a server that forgot it."""
    driver = site.driver(dynamic(AddressMode.DHCP))
    with site.dnsmasq(DHCP):
        first = driver.set_up(3)
        driver.tear_down([first])
        assert driver.set_up(3).ipv4 == first.ipv4
        assert driver.set_up(4).ipv4 != first.ipv4
    (site.directory / "dnsmasq.leases").unlink()
    forgetful = "--dhcp-range=198.18.20.90,198.18.20.130,255.255.255.0,2m"
    assert first.ipv4 is not None
    with site.dnsmasq(forgetful) as log:
        later = site.driver(dynamic(AddressMode.DHCP))
        sandbox = networks.found_on_network(3)
        assert sandbox is not None
        later.tear_down([sandbox])
        assert later.set_up(3).ipv4 == first.ipv4
        assert log.read_text(encoding="utf-8").count("DHCPOFFER") == 1


def test_a_lease_is_renewed_without_the_agent(site: Site) -> None:
    """Renewals prolong the address: it outlives the first lease."""
    driver = site.driver(dynamic(AddressMode.DHCP))
    with site.dnsmasq(DHCP) as log:
        sandbox = driver.set_up(3)
        (client,) = clients(sandbox)

        def granted() -> int:
            return log.read_text(encoding="utf-8").count("DHCPACK")

        before = granted()
        assert lifetime(sandbox) <= 120
        shorten(sandbox, 60)
        sh(f"kill -USR1 {client}")
        until(lambda: granted() > before, "the renewal")
        until(lambda: lifetime(sandbox) > 60, "the address to be prolonged")


def shorten(sandbox: Sandbox, seconds: int) -> None:
    """Let the sandbox's IPv4 address end earlier."""
    lifetimes = f"valid_lft {seconds} preferred_lft {seconds}"
    sh(f"ip -n {sandbox.name} addr change {sandbox.ipv4}/24 dev eth0 {lifetimes}")


def lifetime(sandbox: Sandbox) -> int:
    """Return the seconds that the sandbox's IPv4 address has left."""
    words = sh(f"ip -n {sandbox.name} -4 addr show eth0").split()
    return int(words[words.index("valid_lft") + 1].removesuffix("sec"))


def test_an_address_ends_with_its_lease(site: Site) -> None:
    """Without a server the kernel takes the address back when the lease is over; not fit then."""
    driver = site.driver(dynamic(AddressMode.DHCP))
    with site.dnsmasq(DHCP):
        sandbox = driver.set_up(3)
        assert driver.fit(sandbox)
    shorten(sandbox, 1)
    until(lambda: "198.18" not in addresses(sandbox), "the address to end")
    assert not driver.fit(sandbox)


def test_another_address_is_not_taken(site: Site) -> None:
    """A job is held to its address: what a server gives instead later is not configured."""
    driver = site.driver(dynamic(AddressMode.DHCP))
    with site.dnsmasq(DHCP):
        sandbox = driver.set_up(3)
        (client,) = clients(sandbox)
    (site.directory / "dnsmasq.leases").unlink()
    with site.dnsmasq("--dhcp-range=198.18.20.200,198.18.20.210,255.255.255.0,2m"):
        sh(f"kill -USR1 {client}")
        until(lambda: "198.18" not in addresses(sandbox), "the address to end")
        until(lambda: (site.directory / "dnsmasq.leases").read_text() != "", "the other lease")
        assert "198.18.20.2" not in addresses(sandbox)
    assert not driver.fit(sandbox)


def test_a_network_without_a_server_is_an_error(driver: Layer2Driver, site: Site) -> None:
    """The error says who asked where and for what, and nothing is left."""
    before = links()
    with pytest.raises(KernelError, match=r"by DHCP on network 'lab' as .*is a DHCP server there"):
        driver.set_up(3)
    assert links() == before
    assert namespaces.names("lark") == []


def test_an_address_in_use_is_refused(site: Site) -> None:
    """A server that gives somebody else's address is told so, and no sandbox has it."""
    driver = site.driver(dynamic(AddressMode.DHCP))
    for line in (
        "ip netns add other",
        "ip link add other0 type veth peer name eth0 netns other",
        "ip link set other0 master br0 up",
        "ip -n other link set eth0 up",
        "ip -n other addr add 198.18.20.150/24 dev eth0",
    ):
        sh(line)
    only = "--dhcp-range=198.18.20.150,198.18.20.150,255.255.255.0,2m"
    with site.dnsmasq(only) as log:
        with pytest.raises(KernelError, match=r"by DHCP on network 'lab'.*in use.*declining"):
            driver.set_up(3)
        assert "DHCPDECLINE" in log.read_text(encoding="utf-8")
    assert namespaces.names("lark") == []


def test_a_later_agent_goes_on_with_leases(site: Site) -> None:
    """A client that runs is left alone; one that is gone is started again with its address."""
    with site.dnsmasq(DHCP):
        sandbox = site.driver(dynamic(AddressMode.DHCP)).set_up(3)
        before = clients(sandbox)
        later = site.driver(dynamic(AddressMode.DHCP))
        later.renew(sandbox)
        assert clients(sandbox) == before
        kill(*before)
        until(lambda: not clients(sandbox), "the client to end")
        later.renew(sandbox)
        assert len(clients(sandbox)) == 1
        assert str(sandbox.ipv4) in addresses(sandbox)
        assert later.fit(sandbox)


def test_only_the_client_itself_is_ended(site: Site) -> None:
    """A number in a stale file that is now another process's is left alone."""
    driver = site.driver(dynamic(AddressMode.DHCP))
    with site.dnsmasq(DHCP):
        sandbox = driver.set_up(3)
        (client,) = clients(sandbox)
        (site.directory / "run" / "dhcp" / "lark3.pid").write_text(str(os.getpid()))
        leases.stop(site.directory / "run", sandbox.name)
    assert is_running(client)
    kill(client)


def test_the_client_has_three_capabilities(site: Site) -> None:
    """It reads what anybody on the network says: no more than raw sockets, addresses, port 68."""
    with site.dnsmasq(DHCP):
        (client,) = clients(site.driver(dynamic(AddressMode.DHCP)).set_up(3))
        with open(f"/proc/{client}/status", encoding="ascii") as status:  # noqa: PTH123  one line
            held = dict(line.split(":\t") for line in status.read().splitlines() if "\t" in line)
    wanted = 1 << 10 | 1 << 12 | 1 << 13  # CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW
    assert int(held["CapEff"], 16) == wanted
    assert int(held["CapBnd"], 16) == wanted
    assert held["NoNewPrivs"] == "1"


def test_a_missing_client_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first sandbox the admin learns which package to install."""
    monkeypatch.setattr(leases, "_PATH", "/nowhere")
    with pytest.raises(PrerequisiteError, match="install udhcpc"):
        site.driver(dynamic(AddressMode.DHCP)).check()


def test_routers_give_ipv6_addresses(site: Site) -> None:
    """With slaac the address is the advertised prefix and the slot's MAC, the same every time."""
    driver = site.driver(dynamic(AddressMode.SLAAC))
    with site.dnsmasq(*ROUTER):
        sandbox = driver.set_up(3)
        assert pings(sandbox, SITE6)
        assert sandbox.ipv4 is None
        driver.tear_down([sandbox])
        assert driver.set_up(3).ipv6 == sandbox.ipv6
    first, *_, last = sandbox.mac.split(":")
    assert f"{sandbox.ipv6}".startswith("2001:db8:20:0:")
    assert f"{sandbox.ipv6}".endswith(last.lstrip("0"))
    assert sandbox.ipv6 is not None
    assert sandbox.ipv6.packed[8] == int(first, 16) ^ 2


def test_of_two_prefixes_a_sandbox_has_one(site: Site) -> None:
    """A job's plan knows one address, so its sandbox never has two."""
    sh("ip -n site addr add 2001:db8:21::1/64 dev net0 nodad")
    with site.dnsmasq(*ROUTER, "--dhcp-range=2001:db8:21::,ra-only,64,1h"):
        sandbox = site.driver(dynamic(AddressMode.SLAAC)).set_up(3)
        shown = addresses(sandbox)
    assert shown.count("2001:db8:") == 1
    assert str(sandbox.ipv6) in shown


def test_a_network_without_a_router_is_an_error(site: Site) -> None:
    """The error says what did not come, and nothing is left."""
    with pytest.raises(KernelError, match="no router advertised a prefix"):
        site.driver(dynamic(AddressMode.SLAAC)).set_up(3)
    assert namespaces.names("lark") == []


def test_both_families_together(site: Site) -> None:
    """With dhcp+slaac a sandbox has an address of each."""
    with site.dnsmasq(DHCP, *ROUTER):
        sandbox = site.driver(dynamic(AddressMode.DHCP_SLAAC)).set_up(3)
        assert pings(sandbox, SITE4)
        assert pings(sandbox, SITE6)
    assert sandbox.ipv4 is not None
    assert sandbox.ipv6 is not None
