"""Sandboxes on the site's own networks: they get there, have an address, and leave nothing."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from lark_agent.config import Network
from lark_agent.config.resources import AddressMode
from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.linux import namespaces
from lark_agent.linux.links import Links
from lark_agent.model import Connectivity
from lark_agent.sandbox import addressing, networks, vlan
from lark_agent.sandbox.addressing import INSIDE_BASE
from lark_agent.sandbox.firewall import VLAN_BRIDGES
from tests.datapath.network import sh
from tests.sandbox.site import SITE4, SITE6, Site, addresses, links, pings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.sandbox.layer2 import Layer2Driver

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
STATIC = {
    "addresses": AddressMode.STATIC,
    "pool4": "198.18.20.10-198.18.20.12/24",
    "gateway4": SITE4,
    "pool6": "2001:db8:20::10-2001:db8:20::12/64",
    "gateway6": SITE6,
}


def network(connectivity: Connectivity, **settings: object) -> Network:
    return Network(connectivity=connectivity, **{**STATIC, **settings})  # type: ignore[arg-type]  # tests spell settings out


BRIDGE = network(Connectivity.BRIDGE, bridge="br0")
MACVLAN = network(Connectivity.MACVLAN)
ONLY4 = {"pool6": "", "gateway6": ""}


@pytest.fixture(params=["bridge", "macvlan"])
def driver(request: pytest.FixtureRequest, site: Site) -> Layer2Driver:
    """Make a driver of each kind that needs nothing but the kernel."""
    if request.param == "macvlan":
        sh("ip link set up0 nomaster")
    return site.driver({"bridge": BRIDGE, "macvlan": MACVLAN}[request.param])


def test_a_sandbox_is_a_host_of_the_network(driver: Layer2Driver, site: Site) -> None:
    """It has addresses of the network's ranges, reaches the router, and is reached by it."""
    driver.check()
    sandbox = driver.set_up(3)
    assert (str(sandbox.ipv4), str(sandbox.ipv6)) == ("198.18.20.10", "2001:db8:20::10")
    for address in (SITE4, SITE6):
        assert pings(sandbox, address)
    for own in (sandbox.ipv4, sandbox.ipv6):
        sh(f"ip netns exec site ping -c1 -W2 {own}")
    assert "default via" in sh(f"ip -n {sandbox.name} route")
    assert "default via" in sh(f"ip -n {sandbox.name} -6 route")
    assert sandbox.mac in sh("ip -n site neigh")


def test_nothing_is_left_of_a_sandbox(driver: Layer2Driver, site: Site) -> None:
    """After tear-down, which may be repeated, no interface and no namespace of it is there."""
    before = links()
    built = [driver.set_up(slot) for slot in (0, 1)]
    assert driver.tear_down(built) == []
    assert driver.tear_down(built) == []
    assert links() == before
    assert namespaces.names("lark") == []


def test_a_stray_process_does_not_keep_the_link(driver: Layer2Driver, site: Site) -> None:
    """A process that outlives its sandbox has no interface, and the slot can be built again."""
    sandbox = driver.set_up(3)
    stray = subprocess.Popen(["ip", "netns", "exec", sandbox.name, "sleep", "60"])
    try:
        assert pings(sandbox, SITE4)  # the stray has entered, as ping did
        driver.tear_down([sandbox])
        left = sh(f"nsenter -t {stray.pid} -n ip -br link")
        again = driver.set_up(3)
        assert pings(again, SITE4)
    finally:
        stray.kill()
        stray.wait()
    assert "eth0" not in left


def test_where_the_datapath_hangs_is_unique_on_the_worker(driver: Layer2Driver, site: Site) -> None:
    """Its interface's index belongs to no other, though namespaces count on their own."""
    sandboxes = [driver.set_up(slot) for slot in (0, 1)]
    for sandbox in sandboxes:
        index = sandbox.interface
        if sandbox.inside:
            assert index == INSIDE_BASE + sandbox.slot
            listed = sh(f"ip -n {sandbox.name} -o link show eth0")
        else:
            listed = sh(f"ip -o link show lport{sandbox.slot}")
        assert listed.startswith(f"{index}:")
    assert len({sandbox.interface for sandbox in sandboxes}) == 2


def test_the_datapath_is_there_before_the_link_is_up(driver: Layer2Driver, site: Site) -> None:
    """Programs first, then the plan for addresses; at the end the plan goes before the link."""
    seen: list[tuple[str, bool]] = []
    record = site.guard.said.append

    def watched(step: tuple[str, int]) -> None:
        with Links() as here:
            names = here.names("lport")
        up = "lport3" in names and "UP" in sh("ip -br link show lport3").split()[1:2]
        if driver_is_inside:
            up = "UP," in sh("ip -n lark3 -o link show eth0")
        seen.append((step[0], up))
        record(step)

    driver_is_inside = "lport3" not in links() and MACVLAN.connectivity == driver._kind.connectivity
    site.guard.said = _Told(watched)
    sandbox = driver.set_up(3)
    assert seen[:2] == [("hang", False), ("admit", False)]
    driver.tear_down([sandbox])
    assert seen[-1] == ("forget", True)


class _Told(list[tuple[str, int]]):
    def __init__(self, tell: object) -> None:
        super().__init__()
        self._tell = tell

    def append(self, step: tuple[str, int]) -> None:
        assert callable(self._tell)
        self._tell(step)


def test_a_failed_building_leaves_nothing(driver: Layer2Driver, site: Site) -> None:
    """With no address left the error says so, and nothing was built."""
    built = [driver.set_up(slot) for slot in range(3)]
    before = links()
    with pytest.raises(KernelError, match=r"198\.18\.20\.10-198\.18\.20\.12 are in use"):
        driver.set_up(3)
    assert links() == before
    assert namespaces.names("lark") == [sandbox.name for sandbox in built]


def test_no_address_is_given_twice(site: Site) -> None:
    """Each sandbox has its own; a freed one comes back last; a new agent spares those in use."""
    driver = site.driver(network(Connectivity.BRIDGE, bridge="br0", **ONLY4))
    first, second = driver.set_up(0), driver.set_up(1)
    driver.tear_down([first])
    third = driver.set_up(2)
    assert [str(s.ipv4) for s in (first, second, third)] == [
        "198.18.20.10", "198.18.20.11", "198.18.20.12",
    ]  # fmt: skip
    later = site.driver(network(Connectivity.BRIDGE, bridge="br0", **ONLY4))
    later.renew(second)
    later.renew(third)
    assert later.set_up(3).ipv4 == first.ipv4
    with pytest.raises(KernelError, match="are in use"):
        later.set_up(4)


def test_the_address_of_another_host_is_left_alone(driver: Layer2Driver, site: Site) -> None:
    """An address of the range that somebody answers for is skipped, in both families."""
    sh("ip -n site addr add 198.18.20.10/24 dev net0")
    sh("ip -n site addr add 2001:db8:20::10/64 dev net0 nodad")
    sandbox = driver.set_up(0)
    assert (str(sandbox.ipv4), str(sandbox.ipv6)) == ("198.18.20.11", "2001:db8:20::11")


def test_a_range_of_others_is_an_error(site: Site) -> None:
    """If everything in the range belongs to others, the error names the last holder."""
    for last in (10, 11, 12):
        sh(f"ip -n site addr add 198.18.20.{last}/24 dev net0")
    driver = site.driver(network(Connectivity.BRIDGE, bridge="br0", **ONLY4))
    mac = sh("ip -n site -br link show net0").split()[2]
    with pytest.raises(KernelError, match=rf"in a row are in use, the last by {mac}"):
        driver.set_up(0)
    assert namespaces.names("lark") == []


def test_a_sandbox_that_lost_its_address_is_not_fit(driver: Layer2Driver, site: Site) -> None:
    """What a job would get is looked at once more before."""
    sandbox = driver.set_up(0)
    assert driver.fit(sandbox)
    sh(f"ip -n {sandbox.name} -4 addr flush dev eth0")
    assert not driver.fit(sandbox)


def test_other_hosts_addresses_stay_where_they_are(site: Site) -> None:
    """The bridge learns nothing from a sandbox's port and floods it with nothing of others."""
    site.driver(BRIDGE).set_up(3)
    shown = sh("bridge -d link show dev lport3")
    assert "learning off" in shown
    assert " flood off" in shown
    known = sh("bridge fdb show br br0 dev lport3")
    assert addressing.mac_on_network("w1.example.org", 3) in known


def test_the_bridge_keeps_its_own_address(site: Site) -> None:
    """The worker's address on the bridge is the same with sandboxes as before the first."""
    before = sh("ip -br link show br0").split()[2]
    site.driver(BRIDGE).set_up(3)
    assert sh("ip -br link show br0").split()[2] == before


def test_the_mtu_is_the_networks(driver: Layer2Driver, site: Site) -> None:
    """A network with large frames has them in the sandbox too."""
    sh("ip link set up0 mtu 4000")
    sh("ip link set br0 mtu 4000")
    assert "mtu 4000" in sh(f"ip -n {driver.set_up(0).name} link show eth0")


def test_a_network_without_ipv6_has_none_inside(site: Site) -> None:
    """Where only IPv4 addresses are given, not even a link-local one is there."""
    sandbox = site.driver(network(Connectivity.BRIDGE, bridge="br0", **ONLY4)).set_up(0)
    assert ":" not in addresses(sandbox).partition("198")[2]
    assert sandbox.ipv6 is None


def test_resolvers_of_the_configuration_hold(site: Site) -> None:
    """Those of [networks] are the sandbox's; without any, and no DHCP, it has the worker's."""
    named = network(Connectivity.BRIDGE, bridge="br0", dns=("198.18.20.53", "2001:db8:20::53"))
    assert site.driver(named).set_up(0).own_resolvers
    own = (site.directory / "run" / "resolv.conf.0").read_text(encoding="ascii")
    assert own.splitlines()[1:] == ["nameserver 198.18.20.53", "nameserver 2001:db8:20::53"]
    assert not site.driver(BRIDGE).set_up(1).own_resolvers


def test_what_is_missing_is_named(site: Site) -> None:
    """A bridge that is none and a parent that is not there are errors of the configuration."""
    for wrong, said in (
        (network(Connectivity.BRIDGE, bridge="br9"), "no Linux bridge 'br9'"),
        (network(Connectivity.BRIDGE, bridge="up0"), "no Linux bridge 'up0'"),
        (network(Connectivity.MACVLAN, parent="eth9"), "no interface 'eth9'"),
        (network(Connectivity.VLAN, parent="eth9", vlan=312), "no interface 'eth9'"),
    ):
        with pytest.raises(PrerequisiteError, match=said):
            site.driver(wrong).check()


def test_an_unknown_agents_sandboxes_are_found_and_removed(
    driver: Layer2Driver, site: Site
) -> None:
    """From the kernel alone a later agent sees how an idle sandbox was connected, and ends it."""
    before = links()
    sandbox = driver.set_up(5)
    found = networks.found_on_network(5)
    assert found is not None
    assert (found.slot, found.connectivity, found.interface, found.inside) == (
        5, sandbox.connectivity, sandbox.interface, sandbox.inside,
    )  # fmt: skip
    assert networks.found_on_network(6) is None
    remains = networks.Remains(site.guard, site.directory / "run")  # type: ignore[arg-type]  # stands in for it
    assert remains.tear_down([found]) == []
    assert links() == before
    assert namespaces.names("lark") == []


@functools.cache
def has_8021q() -> bool:
    """Ask the kernel, in a namespace that goes again."""
    name = f"larktry{os.getpid()}"  # other processes ask at the same time

    def attempt() -> bool:
        with Links() as here:
            try:
                sh("ip link add try type bridge")  # the loopback takes no VLAN on any kernel
                here.add_vlan("try.1", here.index("try"), 1)
            except KernelError as error:
                return os.strerror(errno.EOPNOTSUPP) not in str(error)
        return True

    try:
        return namespaces.create(name, attempt)
    finally:
        namespaces.delete(name)


needs_8021q = pytest.mark.skipif(
    os.geteuid() == 0 and not has_8021q(),
    reason="this kernel has no 802.1Q (CONFIG_VLAN_8021Q): no VLAN can be made",
)
VLAN = network(Connectivity.VLAN, parent="up0", vlan=312)


@pytest.fixture
def tagged(site: Site) -> Site:
    """Put the site's addresses into VLAN 312."""
    sh("ip link set up0 nomaster")
    for line in (
        "ip -n site link add net312 link net0 type vlan id 312",
        f"ip -n site addr del {SITE4}/24 dev net0",
        f"ip -n site addr del {SITE6}/64 dev net0",
        f"ip -n site addr add {SITE4}/24 dev net312",
        f"ip -n site addr add {SITE6}/64 dev net312 nodad",
        "ip -n site link set net312 up",
    ):
        sh(line)
    return site


@needs_8021q
def test_a_vlan_comes_with_its_first_sandbox_and_goes_with_its_last(tagged: Site) -> None:
    """Sandboxes reach hosts of the VLAN; its interfaces are there just as long as sandboxes."""
    driver, before = tagged.driver(VLAN), links()
    one, other = driver.set_up(0), driver.set_up(1)
    for sandbox in (one, other):
        assert pings(sandbox, SITE4)
    assert {name[:3] for name in links() - before} == {"lkb", "lkv", "lpo"}
    driver.tear_down([one])
    assert pings(other, SITE4)
    driver.tear_down([other])
    assert links() == before


@pytest.mark.skipif(
    os.geteuid() != 0 or has_8021q(), reason="this kernel has 802.1Q, so nothing is missing"
)
def test_a_kernel_without_vlans_is_named(site: Site) -> None:
    """The error says what the kernel lacks, and the bridge made for it is gone again."""
    before = links()
    with pytest.raises(KernelError, match=r"VLAN 312 on up0: .*CONFIG_VLAN_8021Q"):
        site.driver(VLAN).set_up(0)
    assert links() == before
    assert namespaces.names("lark") == []


def test_networks_without_sandboxes_are_swept(site: Site) -> None:
    """A bridge for a VLAN that a crash left empty goes; one in use, and others', stay."""
    with Links() as here:
        up0 = here.index("up0")
    for name in (f"lkb7.{up0}", f"lkb8.{up0}", "lkbother"):
        sh(f"ip link add {name} type bridge")
    sh("ip link add lport9 type veth peer name other9")
    sh(f"ip link set lport9 master lkb8.{up0}")
    assert vlan.sweep() == []
    assert {name for name in links() if name.startswith("lkb")} == {f"lkb8.{up0}", "lkbother"}


OVS = {"pool6": "", "gateway6": ""}


@contextmanager
def open_vswitch(site: Site) -> Iterator[None]:
    """Run Open vSwitch with its userspace datapath, in this test's own /run."""
    run = "/run/openvswitch"
    database = site.directory / "conf.db"
    sh(f"mkdir -p {run}")
    sh(f"ovsdb-tool create {database} /usr/share/openvswitch/vswitch.ovsschema")
    servers = [
        ["ovsdb-server", str(database), f"--remote=punix:{run}/db.sock", "--no-chdir"],
        ["ovs-vswitchd", f"unix:{run}/db.sock", "--no-chdir", "--disable-system"],
    ]
    running = []
    try:
        for number, command in enumerate(servers):
            with (site.directory / f"ovs{number}.log").open("wb") as log:
                pid = site.directory / f"ovs{number}.pid"
                running.append(
                    subprocess.Popen([*command, f"--pidfile={pid}"], stdout=log, stderr=log)
                )
            if number == 0:
                sh("ovs-vsctl --retry --no-wait --timeout=10 init")
        yield
    finally:
        for server in reversed(running):
            server.terminate()
            server.wait()


@pytest.fixture
def switch(site: Site) -> Iterator[Site]:
    """Put the host's uplink on an Open vSwitch bridge, in the VLAN with tag 312."""
    if shutil.which("ovs-vswitchd") is None:
        pytest.skip("Open vSwitch is not installed (openvswitch-switch)")
    sh("ip link set up0 nomaster")
    with open_vswitch(site):
        sh("ovs-vsctl --timeout=10 add-br ovs0 -- set Bridge ovs0 datapath_type=netdev")
        sh("ovs-vsctl --timeout=10 add-port ovs0 up0 tag=312")
        sh("ethtool -K up0 tx off")
        yield site


def test_a_sandbox_is_a_port_of_open_vswitch(switch: Site) -> None:
    """In the VLAN of its tag it reaches the site, also with bulk TCP; the port goes with it."""
    tagged = network(Connectivity.OVS, bridge="ovs0", vlan=312, **OVS)
    driver, before = switch.driver(tagged), links()
    driver.check()
    sandbox = driver.set_up(3)
    assert pings(sandbox, SITE4)
    assert sh("ovs-vsctl get Port lkbs3 tag").strip() == "312"
    assert bulk(sandbox.name) == 5_000_000
    assert driver.tear_down([sandbox]) == []
    assert driver.tear_down([sandbox]) == []
    assert links() == before
    assert "lkbs3" not in sh("ovs-vsctl list-ports ovs0")


def test_the_worker_hears_a_broadcast_on_open_vswitch_and_is_silent(switch: Site) -> None:
    """A job that asks its network for the worker's own address is not told the host end's.

    What it sends there without asking is the firewall's, which knows the port by its name.
    """
    assert addressing.SWITCH_PREFIX.startswith(VLAN_BRIDGES)
    sh("ip addr add 198.18.20.77/32 dev lo")
    sandbox = switch.driver(network(Connectivity.OVS, bridge="ovs0", vlan=312, **OVS)).set_up(3)
    assert pings(sandbox, SITE4)
    assert not pings(sandbox, "198.18.20.77", patience=2)
    known = sh(f"ip -n {sandbox.name} neigh show 198.18.20.77")
    assert "lladdr" not in known
    assert known.split()[-1] in {"FAILED", "INCOMPLETE"}


def test_another_tag_is_another_network(switch: Site) -> None:
    """A sandbox with another tag reaches nobody of VLAN 312."""
    other = network(Connectivity.OVS, bridge="ovs0", vlan=313, **OVS)
    assert not pings(switch.driver(other).set_up(3), SITE4, patience=2)


def test_ports_of_a_crashed_agent_are_removed(switch: Site) -> None:
    """What is left of a sandbox on Open vSwitch goes from its database too."""
    driver = switch.driver(network(Connectivity.OVS, bridge="ovs0", vlan=312, **OVS))
    driver.set_up(3)
    found = networks.found_on_network(3)
    assert found is not None
    assert found.connectivity is Connectivity.OVS
    remains = networks.Remains(switch.guard, switch.directory / "run")  # type: ignore[arg-type]  # stands in for it
    assert remains.tear_down([found]) == []
    assert sh("ovs-vsctl list-ports ovs0").split() == ["up0"]
    assert not {"lport3", "lkbs3"} & links()


def test_a_missing_switch_is_named(switch: Site) -> None:
    """A bridge that Open vSwitch does not have is an error of the configuration."""
    with pytest.raises(PrerequisiteError, match="add-br ovs9"):
        switch.driver(network(Connectivity.OVS, bridge="ovs9")).check()


def bulk(sandbox: str) -> int:
    """Send 5 MB by TCP from a sandbox to the site; returns how many arrived."""
    take = (
        "import socket; s = socket.create_server(('0.0.0.0', 5001)); print('ready', flush=True)\n"
        "c, _ = s.accept(); c.settimeout(20); n = 0\n"
        "while (got := c.recv(1 << 20)): n += len(got)\n"
        "print(n)"
    )
    give = f"import socket; socket.create_connection(('{SITE4}', 5001), 10).sendall(bytes(5000000))"
    receiver = subprocess.Popen(
        ["ip", "netns", "exec", "site", "python3", "-c", take], stdout=subprocess.PIPE, text=True
    )
    assert receiver.stdout is not None
    with receiver:
        try:
            assert receiver.stdout.readline() == "ready\n"
            subprocess.run(
                ["ip", "netns", "exec", sandbox, "python3", "-c", give], check=True, timeout=60
            )
            return int(receiver.stdout.readline())
        finally:
            receiver.kill()


def test_what_a_network_lacks_is_known_before_any_sandbox(site: Site) -> None:
    """Each part of it is looked at, without building: what is there lacks nothing."""
    assert networks.lacking("lab", BRIDGE, "up0") == []
    assert networks.lacking("lab", MACVLAN, "up0") == []
    (gone,) = networks.lacking("lab", MACVLAN, "up9")
    assert "up9" in str(gone)
    (none,) = networks.lacking("lab", network(Connectivity.BRIDGE, bridge="br9"), "up0")
    assert "there is no Linux bridge 'br9' here; make it" in str(none)
