"""Jobs on a network whose switch or addresses are another program's: Open vSwitch and DHCP.

Open vSwitch runs in the lab with its userspace datapath, which takes frames past everything that
the kernel could do with them at its ports.
"""

from __future__ import annotations

import shlex
import shutil
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import Connectivity, Count
from tests.agent.test_change import change
from tests.agent.test_isolation import KNOCK, Listener
from tests.agent.test_networks import NETWORKS, SITE4, SITE6, SPEAK, lab, pytestmark, totals
from tests.agent.test_shaping import UPLINK, Upload, paces
from tests.agent.worker import QUICK, Talker, drops, final, in_kernel, python, sandboxes, until
from tests.lab.capture import Capture
from tests.lab.topology import WINDOW

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.world import Lab

__all__ = ["lab", "pytestmark"]
SWITCHED = (
    'default_profile = "switched"\n'
    + QUICK
    + f"""
[networks.switched]
connectivity = "ovs"
bridge = "ovs0"
vlan = 312
addresses = "static"
pool4 = "198.18.20.10-198.18.20.20/24"
gateway4 = "{SITE4}"
pool6 = "2001:db8:20::10-2001:db8:20::20/64"
[profiles.switched]
connectivity = "ovs"
network = "switched"
"""
)
_RUN = "/run/openvswitch"
_DATABASE = f"{_RUN}/conf.db"
_SERVERS = (
    f"ovsdb-server {_DATABASE} --remote=punix:{_RUN}/db.sock --pidfile --no-chdir",
    f"ovs-vswitchd unix:{_RUN}/db.sock --pidfile --no-chdir --disable-system",
)
# the switch hands frames on as they are: whoever sends them has to finish their checksums
_SWITCH = """
ip link set up0 nomaster
ovs-vsctl --timeout=10 add-br ovs0 -- set Bridge ovs0 datapath_type=netdev
ovs-vsctl --timeout=10 add-port ovs0 up0 tag=312
ethtool -K up0 tx off
ip netns exec site ethtool -K net0 tx off
"""
# its one argument is the address
BLAST = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], 9))
while True:
    sock.send(bytes(1400))
"""
TIMED_SPEECH = 'began=$(date +%s.%N); {} && date +"%s.%N $began" | awk "{{print \\$1 - \\$2}}"'
DHCP = (
    "ip netns exec site dnsmasq --no-daemon --conf-file=/dev/null --user=root --port=0"
    " --interface=net0 --bind-interfaces --log-dhcp --no-ping --dhcp-authoritative"
    " --dhcp-leasefile=/run/lab/leases --dhcp-range=198.18.20.100,198.18.20.120,255.255.255.0,2m"
)


@pytest.fixture
def switch(lab: Lab) -> Iterator[Lab]:
    """Put the site's network behind an Open vSwitch bridge, in the VLAN with tag 312."""
    if shutil.which("ovs-vswitchd") is None:
        pytest.skip("Open vSwitch is not installed (openvswitch-switch)")
    lab.path(_RUN).mkdir()
    schema = "/usr/share/openvswitch/vswitch.ovsschema"
    lab.run(["ovsdb-tool", "create", _DATABASE, schema])
    database = lab.start(_SERVERS[0].split())
    lab.run(["ovs-vsctl", "--retry", "--no-wait", "--timeout=10", "init"])
    daemon = lab.start(_SERVERS[1].split())
    for line in _SWITCH.strip().splitlines():
        lab.run(line.split())
    for key in ("tcp_rmem", "tcp_wmem"):  # what the switch loses, the job has sent nevertheless
        lab.run(["ip", "netns", "exec", "site", "sysctl", "-qw", f"net.ipv4.{key}={WINDOW}"])
    yield lab
    for server in (daemon, database):
        server.terminate()


def test_a_job_on_open_vswitch_is_counted_to_the_byte(switch: Lab, tmp_path: Path) -> None:
    """Bulk TCP of both families through the userspace datapath: the record is the capture."""
    agent = switch.agent(SWITCHED)
    with Capture("net0", tmp_path / "site.pcap", switch.path("/run/netns/site")) as capture:
        done = switch.start_job(python(SPEAK, SITE4, SITE6))
        assert done.result().status == 0, done.result().stderr
        record = final(switch, done.job_id)
    assert (record.connectivity, record.network) == (Connectivity.OVS, "switched")
    four, six = (totals(capture.path, address) for address in (record.ipv4, record.ipv6))
    assert record.usage.sent == four[0] + six[0]
    assert record.usage.received == four[1] + six[1]
    assert record.usage.sent.bytes > 2_000_000
    assert agent.terminate() == 0
    assert in_kernel(switch) == set()
    assert switch.run(["ovs-vsctl", "list-ports", "ovs0"]).stdout.split() == ["up0"]


class Blast(Upload):
    """A job that sends datagrams to the site as fast as it may."""

    command = tuple(python(BLAST, SITE4))


def test_guarantees_and_rates_hold_on_open_vswitch(switch: Lab) -> None:
    """30 of 40 Mbit/s are kept against another job, lent when free; a changed cap holds at once."""
    sure = '[profiles.sure]\nconnectivity = "ovs"\nguarantee = "30 Mbit/s"\n'
    rule = '[[rules]]\nwhen = \'Share =?= "sure"\'\nprofile = "sure"\n'
    agent = switch.agent(SWITCHED + UPLINK + sure + rule)
    first, second = Blast(switch, Share="sure"), Blast(switch)
    kept, rest = paces(switch, first, second)
    assert kept > 24
    assert rest > 2, "what is left is shared"
    assert kept + rest < 42
    first.end()
    (alone,) = paces(switch, second)
    assert 20 < alone < 42
    assert change(switch, second.job.job_id, "rate=8 Mbit/s").returncode == 0
    (capped,) = paces(switch, second)
    assert 4 < capped < 8.4
    second.end()
    assert agent.terminate() == 0
    assert in_kernel(switch) == set()


def test_what_a_job_receives_by_open_vswitch_keeps_its_rate(switch: Lab) -> None:
    """A megabyte of echo through 4 Mbit/s takes its time; the other direction is not held."""
    slow = "[profiles.switched]\n"
    switch.agent(SWITCHED.replace(slow, f'{slow}rate = "4 Mbit/s received"\n'))
    done = switch.start_job(["sh", "-c", TIMED_SPEECH.format(shlex.join(python(SPEAK, SITE4)))])
    result = done.result()
    assert result.status == 0, result.stderr
    took = float(result.stdout)
    record = final(switch, done.job_id)
    assert took > 0.9 * 8 * record.usage.received.bytes / 4e6
    assert took < 10 * 8 * record.usage.received.bytes / 4e6


def test_owners_on_one_open_vswitch_do_not_meet(switch: Lab) -> None:
    """Two jobs in one VLAN of one switch: neither protocol or family passes between owners."""
    switch.agent(SWITCHED)
    listener = Listener(switch, "on-the-switch")
    assert len(listener.addresses) >= 2
    stranger = switch.start_job(python(KNOCK, *listener.addresses), user="alice")
    assert "CONNECTED" not in stranger.result().stdout
    assert drops(final(switch, stranger.job_id))["peer-denied"] >= 4
    assert "REACHED" not in listener.end()
    assert final(switch, listener.job.job_id).usage.received == Count()


def test_a_forged_source_does_not_reach_open_vswitch(switch: Lab) -> None:
    """Root in the sandbox takes another address: dropped on its own link, under that reason."""
    switch.agent(SWITCHED.replace("ready = 1", "ready = 0"))
    job = Talker(switch, to=SITE4)
    (name,) = sandboxes(switch)
    inside = ["ip", "netns", "exec", name]
    switch.run([*inside, "ip", "addr", "add", "198.18.20.99/24", "dev", "eth0"])
    ping = [*inside, "ping", "-c1", "-W1", "-I", "198.18.20.99", SITE4]
    assert switch.run(ping, check=False).returncode != 0
    job.end()
    record = final(switch, job.job.job_id)
    assert drops(record).get("spoofed-address", 0) > 0
    assert record.usage.sent == Count()


def test_a_job_with_a_lease_is_counted_to_the_byte(lab: Lab, tmp_path: Path) -> None:
    """The address is the DHCP server's, and what keeps it is not the job's traffic."""
    server = lab.start(DHCP.split())
    until(lambda: "started" in server.stderr, "dnsmasq to start")
    agent = lab.agent('default_profile = "served"\n' + QUICK + NETWORKS)
    with Capture("net0", tmp_path / "site.pcap", lab.path("/run/netns/site")) as capture:
        done = lab.start_job(python(SPEAK, SITE4))
        assert done.result().status == 0, done.result().stderr
        record = final(lab, done.job_id)
    assert (record.connectivity, record.network) == (Connectivity.BRIDGE, "served")
    assert f"DHCPACK(net0) {record.ipv4}" in server.stderr
    assert (record.usage.sent, record.usage.received) == totals(capture.path, record.ipv4)
    assert record.usage.sent.bytes > 1_000_000
    assert agent.terminate() == 0
    assert in_kernel(lab) == set()
    assert "udhcpc" not in lab.run(["ps", "-e"]).stdout
