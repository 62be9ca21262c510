"""The sandboxes follow the worker: its uplink's MTU, its families, its resolver."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import QUICK, Talker, final, links, python, sandboxes, until
from tests.lab.topology import CAMPUS, INTERNET
from tests.lab.world import Lab

if TYPE_CHECKING:
    from tests.lab.process import Process

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
# a stub resolver on an address of the worker's loopback: forwards to the campus' name server
STUB = f"""
import socket, sys
def serve(sock):
    while True:
        query, peer = sock.recvfrom(4096)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as up:
            up.settimeout(5)
            up.connect(("{CAMPUS.ipv4}", 53))
            up.send(query)
            sock.sendto(up.recv(4096), peer)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 53))
print("on", flush=True)
serve(sock)
"""
LOOPBACK_ONLY = """
import socket, threading
def udp():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 5000))
    print("on", flush=True)
    sock.recv(100)
    print("REACHED", flush=True)
threading.Thread(target=udp).start()
server = socket.create_server(("127.0.0.1", 5000))
server.accept()
print("REACHED", flush=True)
"""
# as root of the sandbox's network, which a job can become with a user namespace of its own at most
EVIL = """
sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.eth0.route_localnet=1
ip rule add pref 10 lookup main
ip route add 127.0.0.0/8 via $1 dev eth0 src $2
ip rule delete pref 0
shift 2
exec "$@"
"""
KNOCK = """
import socket, sys
for address in sys.argv[1:]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            udp.sendto(b"knock", (address, 5000))
        except OSError as error:
            print(address, error)
    with socket.socket(socket.AF_INET) as tcp:
        tcp.settimeout(0.5)
        try:
            tcp.connect((address, 5000))
            print("CONNECTED", address)
        except OSError as error:
            print(address, error)
"""


def outside(lab: Lab) -> set[int]:
    """Return the MTUs of the sandboxes' links on the worker."""
    return {
        int(lab.run(["cat", f"/sys/class/net/{link}/mtu"]).stdout) for link in sorted(links(lab))
    }


def inside(lab: Lab) -> set[int]:
    """Return the MTUs that jobs see, of the sandboxes that have a link."""
    show = ["ip", "-o", "link", "show", "eth0"]
    return {
        int(lab.run(["ip", "-n", name, *show[1:]]).stdout.partition("mtu ")[2].split()[0])
        for name in sorted(sandboxes(lab) & links(lab))
    }


def test_the_mtu_follows_the_uplink(lab: Lab) -> None:
    """Running and idle sandboxes get the uplink's new MTU at the next sample, also by adoption."""
    agent = lab.agent(QUICK)
    talker = Talker(lab)
    assert inside(lab) == outside(lab) == {1500}
    lab.run(["ip", "link", "set", "uplink0", "mtu", "1400"])
    until(lambda: inside(lab) == outside(lab) == {1400}, "MTU 1400", 10)
    show = lab.job(["cat", "/sys/class/net/eth0/mtu"])
    assert show.stdout == "1400\n"
    agent.terminate()
    lab.run(["ip", "link", "set", "uplink0", "mtu", "1300"])
    lab.agent(QUICK)
    until(lambda: inside(lab) == outside(lab) == {1300}, "MTU 1300 of an adopted job", 10)
    talker.talk()
    talker.end()
    assert final(lab, talker.job.job_id).usage.sent.packets == 100
    assert "Traceback" not in agent.stderr


def test_jobs_start_with_the_uplinks_mtu() -> None:
    """An uplink of 1400 bytes gives sandboxes of 1400 bytes, and full-sized packets pass."""
    with Lab(mtu=1400) as lab:
        lab.agent(QUICK)
        done = lab.job(
            ["sh", "-c", f"cat /sys/class/net/eth0/mtu; ping -qc2 -s 1372 -M do {CAMPUS.ipv4}"]
        )
        assert done.stdout.startswith("1400\n")
        assert done.status == 0, done.stdout


def test_a_worker_without_ipv6() -> None:
    """Its sandboxes have no IPv6 address or route, and IPv4 works."""
    with Lab(ipv6=False) as lab:
        agent = lab.agent(QUICK)
        show = (
            f"ip -6 -o address show dev eth0; ip -6 route; curl -sSf http://{CAMPUS.ipv4}/bytes/5"
        )
        job = lab.start_job(["sh", "-c", show])
        done = job.result()
        assert done.status == 0, done.stderr
        assert done.stdout == "\0" * 5
        assert final(lab, job.job_id).usage.received.bytes > 5
        assert "Traceback" not in agent.stderr


def test_running_jobs_see_a_new_resolver(lab: Lab) -> None:
    """resolv.conf of a running job follows the worker's, whose kind may change to a stub."""
    lab.path("/etc/resolv.conf").write_text("nameserver 192.0.2.99\n")
    lab.agent(QUICK)
    wait = (
        "while ! grep -q {} /etc/resolv.conf; do sleep 0.1; done; getent ahosts server.campus.test"
    )
    ask = f"{wait.format('198.51')} && touch ~/first; {wait.format('100.98')}"
    job = lab.start_job(["sh", "-c", ask], env={"HOME": "/run/lab/home/alice"})
    lab.path("/etc/resolv.conf").write_text(f"nameserver {CAMPUS.ipv4}\n")
    until(lab.path("/run/lab/home/alice/first").exists, "the first answer")
    stub(lab, "127.0.0.1")
    lab.path("/etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
    done = job.result()
    assert done.status == 0, done.stderr
    assert done.stdout.count(CAMPUS.ipv4) >= 2


def stub(lab: Lab, address: str) -> Process:
    process = lab.start(python(STUB, address))
    until(lambda: "on" in process.stdout, "a stub resolver")
    return process


def test_behind_systemd_resolved(lab: Lab) -> None:
    """127.0.0.53 is replaced by the servers that systemd-resolved itself asks."""
    lab.path("/etc/resolv.conf").write_text("nameserver 127.0.0.53\n")
    lab.run(["mkdir", "-p", "/run/systemd/resolve"])
    real = f"nameserver {CAMPUS.ipv4}\nsearch campus.test\n"
    lab.path("/run/systemd/resolve/resolv.conf").write_text(real)
    lab.agent(QUICK)
    done = lab.job(["sh", "-c", "cat /etc/resolv.conf; getent ahosts server"])
    assert real in done.stdout
    assert CAMPUS.ipv6 in done.stdout


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.1.1"])
def test_behind_a_stub_resolver(lab: Lab, address: str) -> None:
    """A stub on the loopback is asked by way of the gateway; nothing else there is reached."""
    stub(lab, address)
    server = lab.start(python(LOOPBACK_ONLY))
    until(lambda: "on" in server.stdout, "a server on the loopback")
    lab.path("/etc/resolv.conf").write_text(f"nameserver {address}\nsearch internet.test\n")
    lab.agent(QUICK)
    job = lab.start_job(["sh", "-c", "cat /etc/resolv.conf; getent ahosts server; sleep 20"])
    until(lambda: INTERNET.ipv4 in job.starter.stdout, "a name's address")
    assert "nameserver 100.98.0.1" in job.starter.stdout
    (name,) = [n for n in sandboxes(lab) & links(lab) if sleeping(lab, n)]
    own = f"100.98.0.{int(name.removeprefix('lark')) + 2}"
    enter = ["ip", "netns", "exec", name, "sh", "-c", EVIL, "sh", "100.98.0.1", own]
    done = lab.run([*enter, *python(KNOCK, "127.0.0.1", address, "100.98.0.1")])
    assert done.stdout.count("\n") >= 3, done.stderr
    assert "CONNECTED" not in done.stdout
    assert "REACHED" not in server.stdout
    job.kill(9)
    record = final(lab, job.job_id)
    assert {drop.reason for drop in record.usage.drops} == {"martian", "service-denied"}


def sleeping(lab: Lab, name: str) -> bool:
    """Tell whether a job runs in a sandbox."""
    return bool(lab.run(["ip", "netns", "pids", name]).stdout.strip())
