"""What others do to the agent and to the worker beside it, and what holds all the same."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import QUICK, python, until
from tests.lab.capture import Capture, flows
from tests.lab.topology import CAMPUS, WORKER
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.process import Process

pytestmark = pytest.mark.root

# A TCP socket whose last close waits an hour for a peer that never reads, sent as a descriptor.
LINGERER = """
import socket, struct, sys, time
listener = socket.create_server(("127.0.0.1", 0))
stuck = socket.create_connection(listener.getsockname())
peer, _ = listener.accept()
stuck.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
stuck.setblocking(False)
try:
    while True:
        stuck.send(bytes(1 << 16))
except BlockingIOError:
    pass
gate = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
gate.connect("/run/lark/run.sock")
request = struct.pack("<4sHH", b"LARK", 1, 0)
for message in {"one": [request], "empty": [b""], "queued": [request] * 3}[sys.argv[1]]:
    socket.send_fds(gate, [message], [stuck.fileno()] * 10)
stuck.close()
gate.close()
print("sent", flush=True)
time.sleep(60)
"""
STREAM = """
import socket, time
for number in range(300):
    try:
        with socket.create_connection(("198.51.100.10", 7), 1) as sock:
            sock.sendall(b"x")
            sock.recv(1)
    except OSError:
        pass
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[tuple[Lab, Process]]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces")
    with Lab() as lab:
        yield lab, lab.agent(QUICK.replace("slots = 4", "slots = 4\nper_user = 2"))


@pytest.mark.parametrize("how", ["one", "empty", "queued"])
def test_a_descriptor_whose_close_blocks_blocks_nobody(
    worker: tuple[Lab, Process], how: str
) -> None:
    """A stuck socket sent to the gate costs a thread of the agent, and other users nothing."""
    lab, _ = worker
    attacker = lab.start(python(LINGERER, how), user="alice")
    until(lambda: "sent" in attacker.stdout, "the descriptors are sent")
    done = lab.job(["true"], user="bob")
    assert done.status == 0, done.stderr
    assert done.seconds < 3
    attacker.signal(9)


def test_one_user_cannot_take_every_sandbox(worker: tuple[Lab, Process]) -> None:
    """Outside the batch system a user gets so many and a reason; the batch system's jobs go on."""
    lab, _ = worker
    wrapped = ["/run/lark-bin/lark-run", "sleep", "60"]
    holders = [lab.start(wrapped, user="alice") for _ in range(2)]
    until(lambda: len(held(lab, "alice")) == 2, "two jobs of alice")
    refused = lab.run(wrapped, user="alice", check=False)
    assert refused.returncode == 125
    assert "you have 2 jobs with a network already" in refused.stderr
    assert lab.job(["true"], user="alice").status == 0
    for holder in holders:
        holder.signal(9)


def test_a_burst_does_not_get_past_the_limit(lab: Lab) -> None:
    """Those who still wait for a sandbox count as well: of six at once, two get one."""
    lab.agent(QUICK.replace("slots = 4", "slots = 4\nper_user = 2"))
    wrapped = ["/run/lark-bin/lark-run", "sleep", "60"]
    crowd = [lab.start(wrapped, user="alice") for _ in range(6)]
    until(lambda: sum(one.poll() == 125 for one in crowd) == 4, "four refusals")
    until(lambda: len(held(lab, "alice")) == 2, "two jobs")


def held(lab: Lab, user: str) -> list[str]:
    """Return the pids of sleeping jobs of a user."""
    found = lab.run(["pgrep", "-u", user, "-x", "sleep"], check=False).stdout
    return found.split()


def test_a_flushed_firewall_comes_back(worker: tuple[Lab, Process], tmp_path: Path) -> None:
    """`nft flush ruleset` by the site does not let jobs out with private addresses for long."""
    lab, agent = worker
    job = lab.start_job(["/usr/bin/python3", "-I", "-c", STREAM], user="bob")
    lab.run(["nft", "flush", "ruleset"])
    until(lambda: "the nftables table lark was removed" in agent.stderr, "a word in the log")
    tables = lab.run(["nft", "list", "tables"]).stdout
    assert "table inet lark" in tables
    with Capture(CAMPUS.interface, tmp_path / "campus.pcap", lab.netns("campus")) as capture:
        assert lab.job(["curl", "-sSf", "http://198.51.100.10/bytes/9"], user="bob").status == 0
    assert not [packet for packet in flows(capture.path) if packet.src.startswith("100.98.")]
    job.kill(9)
    job.result()


def put_a_host_behind(lab: Lab, name: str, network: str) -> list[str]:
    """Put a host on an interface of the worker's; returns a command that pings from it."""
    lab.run(["ip", "netns", "add", name])
    for command in (
        f"link add {name} type veth peer name eth0 netns {name}", f"link set {name} up",
        f"address add {network}.1/24 dev {name}", f"-n {name} link set eth0 up",
        f"-n {name} address add {network}.2/24 dev eth0",
        f"-n {name} route add default via {network}.1",
    ):  # fmt: skip
        lab.run(["ip", *command.split()])
    lab.run(["ip", "route", "add", f"{network}.0/24", "via", WORKER.ipv4], host="router")
    return ["ip", "netns", "exec", name, "ping", "-c2", "-W1"]


def test_the_worker_does_not_become_its_neighbours_router(worker: tuple[Lab, Process]) -> None:
    """Forwarding is on for the jobs only, where it was off before: in no direction for others."""
    lab, _ = worker
    assert lab.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout.strip() == "1"
    one = put_a_host_behind(lab, "behind", "10.77.0")
    put_a_host_behind(lab, "further", "10.79.0")
    assert lab.run(["ping", "-c1", "-W2", "10.77.0.2"], check=False).returncode == 0
    inward = ["ping", "-c2", "-W1", "10.77.0.2"]
    assert lab.run(inward, host="router", check=False).returncode == 1
    for address in (WORKER.gateway4, "10.79.0.2"):  # outwards, and to another interface
        assert lab.run([*one, address], check=False).returncode == 1, address
    assert lab.job(["curl", "-sSf", "http://198.51.100.10/bytes/9"], user="bob").status == 0


def test_what_a_bridge_of_the_site_carries_is_not_forwarding(
    worker: tuple[Lab, Process],
) -> None:
    """Hosts on one bridge find each other, also where the kernel shows their frames to nftables."""
    lab, _ = worker
    lab.run(["ip", "link", "add", "shared", "type", "bridge", "forward_delay", "0"])
    lab.run(["ip", "link", "set", "shared", "up"])
    for number in (1, 2):
        host = f"bridged{number}"
        lab.run(["ip", "netns", "add", host])
        for command in (
            f"link add {host} type veth peer name eth0 netns {host}",
            f"link set {host} master shared up", f"-n {host} link set eth0 up",
            f"-n {host} address add 10.80.0.{number}/24 dev eth0",
        ):  # fmt: skip
            lab.run(["ip", *command.split()])
    lab.run(["ip", "netns", "exec", "bridged1", "ping", "-c1", "-W2", "10.80.0.2"])


def test_a_worker_that_was_a_router_goes_on_as_one(lab: Lab) -> None:
    """Where the site forwards on its own account the agent leaves it alone, and at its end too."""
    lab.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    one = put_a_host_behind(lab, "behind", "10.77.0")
    agent = lab.agent(QUICK)
    lab.run([*one, WORKER.gateway4])
    lab.run(["ping", "-c1", "-W2", "10.77.0.2"], host="router")
    assert agent.terminate() == 0
    lab.run([*one, WORKER.gateway4])


def test_hosts_of_a_vlan_do_not_reach_the_worker_by_its_bridge(
    worker: tuple[Lab, Process],
) -> None:
    """A host of an 802.1Q network that sends to the bridge's MAC reaches nothing, and nobody."""
    lab, _ = worker
    bridge = "lkb312.7"  # named as one that the agent makes; the host is a port like a VLAN's
    lab.run(["ip", "netns", "add", "beside"])
    for command in (
        f"link add {bridge} type bridge", f"link set {bridge} up",
        "link add port type veth peer name eth0 netns beside", f"link set port master {bridge} up",
        "-n beside link set eth0 up", "-n beside address add 10.78.0.2/24 dev eth0",
        "-n beside route add default via 10.78.0.1", f"route add 10.78.0.0/24 dev {bridge}",
    ):  # fmt: skip
        lab.run(["ip", *command.split()])
    mac = lab.run(["cat", f"/sys/class/net/{bridge}/address"]).stdout.strip()
    lab.run(f"ip -n beside neighbour add 10.78.0.1 lladdr {mac} dev eth0".split())
    lab.run(["ip", "route", "add", "10.78.0.0/24", "via", "192.0.2.10"], host="router")
    for address in ("192.0.2.10", "192.0.2.1"):  # the worker, and its router
        ping = ["ip", "netns", "exec", "beside", "ping", "-c2", "-W1", address]
        assert lab.run(ping, check=False).returncode == 1, address


def test_forwarding_is_taken_back_at_the_end(lab: Lab) -> None:
    """An agent that stops without jobs leaves forwarding as it found it."""
    before = lab.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout
    agent = lab.agent(QUICK)
    assert lab.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "1\n"
    agent.terminate()
    assert agent.wait(20) == 0
    assert lab.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == before == "0\n"
