"""Jobs on a network of the site: counted to the byte, kept over restarts, gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import Connectivity, Count, ExitReason
from lark_agent.sandbox import nearby
from tests.agent import test_inbound as inbound
from tests.agent.test_isolation import KNOCK, Listener
from tests.agent.worker import (
    ONCE,
    QUICK,
    Talker,
    drops,
    final,
    in_kernel,
    kill,
    python,
    records,
    until,
)
from tests.lab.capture import Capture, flows
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
SITE4, SITE6 = "198.18.20.1", "2001:db8:20::1"
_BUILD = f"""
ip netns add site
ip link add up0 type veth peer name net0 netns site
ip link add br0 type bridge forward_delay 0
ip link set up0 master br0
ip link set up0 up
ip link set br0 up
ip -n site link set lo up
ip -n site link set net0 up
ip -n site addr add {SITE4}/24 dev net0
ip -n site addr add {SITE6}/64 dev net0 nodad
ip netns exec site ethtool -K net0 tso off gso off gro off tx-udp-segmentation off
ethtool -K up0 tso off gso off gro off tx-udp-segmentation off
"""
NETWORKS = f"""
[networks.lab]
connectivity = "bridge"
bridge = "br0"
addresses = "static"
pool4 = "198.18.20.10-198.18.20.20/24"
gateway4 = "{SITE4}"
pool6 = "2001:db8:20::10-2001:db8:20::20/64"
dns = ["198.18.20.53"]
[networks.bare]
connectivity = "macvlan"
parent = "up0"
addresses = "static"
pool4 = "198.18.20.30-198.18.20.40/24"
pool6 = "2001:db8:20::30-2001:db8:20::40/64"
[networks.served]
connectivity = "bridge"
bridge = "br0"
addresses = "dhcp"
[profiles.lab]
connectivity = "bridge"
network = "lab"
[profiles.bare]
connectivity = "macvlan"
network = "bare"
[profiles.served]
connectivity = "bridge"
network = "served"
"""
ON_LAB = 'default_profile = "lab"\n' + QUICK + NETWORKS
INBOUND = """
[[rules]]
when = 'true'
set = { inbound = 'TARGET.Want' }
[[rules]]
when = 'Want == "ports"'
set = { ports = '{"tcp/8000", "udp/8000", "tcp/8443"}' }
"""
# on the site: swallow datagrams, echo what comes by TCP
SERVE = """
import socket, threading
sink = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sink.bind(("::", 9))
server = socket.create_server(("::", 7), family=socket.AF_INET6, dualstack_ipv6=True)
def echo(talk):
    with talk:
        while data := talk.recv(65536):
            talk.sendall(data)
def accept():
    while True:
        threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
print("ready", flush=True)
while True:
    sink.recv(65536)
"""
# argv: addresses. A megabyte there and back by TCP
SPEAK = """
import socket, sys, threading
for address in sys.argv[1:]:
    with socket.create_connection((address, 7), 20) as talk:
        writer = threading.Thread(target=talk.sendall, args=(bytes(1_000_000),))
        writer.start()
        got = 0
        while got < 1_000_000:
            got += len(talk.recv(65536))
        writer.join()
"""

# argv: prefix of a network, seconds. One datagram to as many of its addresses as the kernel takes,
# by many sockets, because each has room for only so many that wait for their neighbour
SPREAD = """
import socket, sys, time
sockets = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(200)]
for each in sockets:
    each.setblocking(False)
print("spreading", flush=True)
until, number = time.monotonic() + float(sys.argv[2]), 4096
while time.monotonic() < until:
    number += 1
    try:
        sockets[number % 200].sendto(b"x", (f"{sys.argv[1]}{number >> 16:x}:{number & 65535:x}", 9))
    except OSError:
        pass
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Put the worker of a lab on a network of the site as well."""
    with Lab() as made:
        for line in _BUILD.strip().splitlines():
            made.run(line.split())
        server = made.start(["ip", "netns", "exec", "site", *python(SERVE)])
        until(lambda: server.stdout == "ready\n", "the site's server")
        yield made


def totals(path: Path, address: str) -> tuple[Count, Count]:
    """Return what a capture shows that an address sent and received, but for its upkeep.

    That is neighbour discovery (ICMPv6) and DHCP, neither of which these jobs speak themselves.
    """
    packets = [
        packet for packet in flows(path) if packet.proto != 58 and packet.dport not in {67, 68}
    ]
    sent = [packet.ip_len for packet in packets if packet.src == address]
    received = [packet.ip_len for packet in packets if packet.dst == address]
    return Count(len(sent), sum(sent)), Count(len(received), sum(received))


@pytest.mark.parametrize("network", ["lab", "bare"])
def test_a_job_is_counted_to_the_byte(lab: Lab, network: str, tmp_path: Path) -> None:
    """Both families, both ways: the record is what a capture on the site shows, and says where."""
    if network == "bare":
        lab.run(["ip", "link", "set", "up0", "nomaster"])
    lab.agent(f'default_profile = "{network}"\n' + QUICK + NETWORKS)
    with Capture("net0", tmp_path / "site.pcap", lab.path("/run/netns/site")) as capture:
        done = lab.start_job(python(SPEAK, SITE4, SITE6))
        assert done.result().status == 0, done.result().stderr
        record = final(lab, done.job_id)
    kind = {"lab": Connectivity.BRIDGE, "bare": Connectivity.MACVLAN}[network]
    assert (record.connectivity, record.network) == (kind, network)
    four, six = (totals(capture.path, address) for address in (record.ipv4, record.ipv6))
    assert record.usage.sent == four[0] + six[0]
    assert record.usage.received == four[1] + six[1]
    assert record.usage.sent.bytes > 2_000_000
    assert record.usage.non_ip_sent.packets > 0


def test_jobs_on_a_network_outlive_the_agent(lab: Lab) -> None:
    """Adopted with address and plan; totals are exact, and in the end nothing is left."""
    agent = lab.agent(ON_LAB)
    job = Talker(lab, to=SITE4)
    job.talk()
    kill(agent)
    job.talk()
    agent = lab.agent(ON_LAB)
    job.talk()
    job.end()
    record = final(lab, job.job.job_id)
    assert (record.exit_reason, record.usage.sent) == (
        ExitReason.EXITED, Count(3 * ONCE.packets, 3 * ONCE.bytes),
    )  # fmt: skip
    assert agent.terminate() == 0
    assert in_kernel(lab) == set()
    assert "lport" not in lab.run(["ip", "-br", "link"]).stdout


def test_a_job_with_forged_addresses_reaches_nobody(lab: Lab) -> None:
    """Another MAC or IP address of the network is dropped on the job's link and counted."""
    lab.agent(ON_LAB)
    job = Talker(lab, to=SITE4)
    (record,) = records(lab).values()
    there = ["ip", "netns", "exec", f"lark{record.slot}"]
    lab.run([*there, "ip", "addr", "add", "198.18.20.99/24", "dev", "eth0"])
    ping = [*there, "ping", "-c1", "-W1", "-I", "198.18.20.99", SITE4]
    assert lab.run(ping, check=False).returncode != 0
    job.end()
    record = final(lab, job.job.job_id)
    assert drops(record).get("spoofed-address", 0) > 0
    assert record.usage.sent == Count()


def test_a_job_that_calls_its_whole_network_deafens_nobody(lab: Lab) -> None:
    """The kernel's neighbours are the worker's: while one job takes all, another finds its own."""
    lab.agent(ON_LAB)
    flood = lab.start_job(python(SPREAD, "2001:db8:20::", "60"))
    until(lambda: "spreading" in flood.starter.stdout, "the flood")
    slot = records(lab)[flood.job_id].slot
    known = ["ip", "-n", f"lark{slot}", "-6", "neigh", "show", "nud", "all"]
    seen: set[str] = set()
    for _ in range(10):
        seen |= {line.split()[0] for line in lab.run(known).stdout.splitlines()}
        time.sleep(0.1)
    # groups that are solicited come and go with their packets
    found = [address for address in seen if not address.startswith("ff")]
    assert nearby.MOST // 2 < len(found) <= nearby.MOST
    find = "import socket, sys; socket.create_connection((sys.argv[1], 7), 8)"
    other = lab.start_job(python(find, SITE6), user="bob")
    assert other.result().status == 0, other.result().stderr
    flood.kill(9)
    flood.result()


def test_names_are_asked_where_the_network_says(lab: Lab) -> None:
    """The job's resolv.conf is its network's, and goes with the sandbox."""
    lab.agent(ON_LAB)
    done = lab.job(["cat", "/etc/resolv.conf"])
    assert done.stdout.splitlines()[-1] == "nameserver 198.18.20.53"
    until(lambda: not list(lab.path("/run/lark").glob("resolv.conf.*")), "the file to go")


def test_what_waits_on_each_network_is_told(lab: Lab) -> None:
    """`lark doctor` looks at every network, and the agent tells how many of each kind are ready."""
    config = ON_LAB.replace('bridge = "br0"', 'bridge = "br0"\nready = 1', 1)
    lab.agent(config)
    file = "/run/lab/doctor.toml"
    lab.path(file).write_text(config.replace('parent = "up0"', 'parent = "up9"'))

    def findings() -> list[str]:
        answer = lab.run(["lark", "doctor", "--json", "--config", file], check=False).stdout
        return [f"{found['check']}: {found['found']}" for found in json.loads(answer)["findings"]]

    found = until(lambda: [line for line in findings() if "bridge lab 1" in line], "a ready one")
    assert "nat 1" in found[0]
    said = [line for line in findings() if line.startswith("networks:")]
    assert said[0] == "networks: bridge lab: there, addresses static"
    assert "up9" in said[1]
    assert said[2] == "networks: bridge served: there, addresses dhcp"


def test_a_network_without_a_server_refuses_with_the_reason(lab: Lab) -> None:
    """The job's user reads what was tried; jobs on other networks start meanwhile."""
    lab.agent(ON_LAB + '[[rules]]\nwhen = "Served"\nprofile = "served"\n')
    refused = lab.start_job(["true"], ad={"Served": True})
    other = lab.job(["true"])
    assert other.status == 0
    result = refused.result()
    assert result.status == 125
    assert "by DHCP on network 'served'" in result.stderr


def test_an_agent_that_stops_in_between_leaves_nothing(lab: Lab) -> None:
    """SIGTERM while a sandbox waits for a DHCP server: no namespace, port or client stays."""
    agent = lab.agent('default_profile = "served"\n' + QUICK + NETWORKS)
    lab.start_job(["true"])
    until(lambda: "lport" in lab.run(["ip", "-br", "link"]).stdout, "a sandbox to be built")
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 0
    assert in_kernel(lab) == set()
    assert "lport" not in lab.run(["ip", "-br", "link"]).stdout
    assert "udhcpc" not in lab.run(["ps", "-e"]).stdout


def test_peers_hold_between_jobs_on_one_network(lab: Lab) -> None:
    """On one bridge an owner's jobs meet, and others' are neither reached nor reach."""
    lab.agent(ON_LAB + "[[rules]]\nwhen = 'true'\nset = { peers = '\"owner\"' }\n")
    listener = Listener(lab, "on-the-bridge")
    stranger = lab.start_job(python(KNOCK, *listener.addresses), user="alice")
    assert "CONNECTED" not in stranger.result().stdout
    assert "REACHED" not in listener.job.starter.stdout
    # the kernel's own multicast (MLD) is dropped as martian, whenever it comes
    assert drops(final(lab, stranger.job_id)).keys() - {"martian"} == {"peer-denied"}
    friend = lab.start_job(python(KNOCK, *listener.addresses), user="bob")
    assert friend.result().status == 0
    until(lambda: "REACHED" in listener.job.starter.stdout, "bob's other job")
    listener.end()
    listed = ["bpftool", "-j", "map", "dump", "pinned", "/sys/fs/bpf/lark/v3/remote_jobs"]
    until(lambda: lab.run(listed).stdout.strip() == "[]", "a list without ended jobs")


@pytest.mark.parametrize("network", ["lab", "bare"])
def test_what_may_come_in_holds_on_a_network(lab: Lab, network: str) -> None:
    """Hosts of the site reach nothing, what is listed, or everything, as the job's plan says."""
    answers = {
        "established": set[str](),
        "ports": inbound.LISTED,
        "all": inbound.LISTED | inbound.both("udp 8443", "tcp 9000", "udp 9000"),
    }
    if network == "bare":
        lab.run(["ip", "link", "set", "up0", "nomaster"])
    lab.agent(ON_LAB.replace('"lab"', f'"{network}"', 1) + INBOUND)
    for want, answered in answers.items():
        server = inbound.Server(lab, want, 8000, 8443, 9000)
        targets = [f"{address},{port}" for address in server.own for port in (8000, 8443, 9000)]
        knocks = [
            lab.start(["ip", "netns", "exec", "site", *python(inbound.KNOCK, target)])
            for target in targets
        ]
        assert [knock.wait() for knock in knocks] == [0] * len(targets)
        assert {line for k in knocks for line in k.stdout.splitlines()} == answered, want
        dropped = drops(server.end()).keys() - {"martian"}
        assert dropped == (set() if want == "all" else {"inbound-denied"}), want
