"""What a job cannot reach: other jobs, the worker's neighbours through it, classes its plan denies.

Two sandboxes stand side by side in one lab for all of these tests.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

import pytest

from lark_agent.datapath.pins import CURRENT
from lark_agent.datapath.plan import plan_state
from lark_agent.linux.bpf import Map
from tests.agent.worker import ONCE, QUICK, Talker, drops, final, pins, python, records, until
from tests.lab.topology import CAMPUS, INTERNET
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
CONFIG = (
    QUICK.replace("slots = 4", "slots = 8")
    + """
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
[profiles.campus-only]
reach = ["campus"]
[[rules]]
when = "WantCampusOnly"
profile = "campus-only"
[[rules]]
when = "WantNone"
profile = "none"
"""
)
# waits for a datagram and a connection from anywhere
LISTEN = """
import pathlib, select, socket, subprocess, sys
there = pathlib.Path(sys.argv[1])
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
for sock in (udp, tcp):
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 5000))
tcp.listen()
print(subprocess.run(["ip", "-o", "address", "show", "dev", "eth0"], capture_output=True,
                     text=True).stdout, flush=True)
there.touch()
end = there.with_suffix(".end")
while not end.exists():
    ready, _, _ = select.select([udp, tcp], [], [], 0.02)
    if ready:
        print("REACHED", flush=True)
        break
"""
KNOCK = """
import errno, socket, sys
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"knock", (address, 5000))
    with socket.socket(family, socket.SOCK_STREAM) as tcp:
        tcp.settimeout(0.5)
        try:
            tcp.connect((address, 5000))
            print("CONNECTED", address)
        except OSError as error:
            print(address, error)
"""
FETCH = "curl -sS -m 3 -o /dev/null {url} && echo got || echo refused"


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab() as made:
        made.agent(CONFIG)
        yield made


class Listener:
    """A job of bob that listens on port 5000 and says whether anybody got through."""

    def __init__(self, lab: Lab, name: str) -> None:
        inside = f"/run/lab/home/bob/{name}"
        self._file = lab.path(inside)
        self.job = lab.start_job(python(LISTEN, inside), user="bob")
        until(self._file.exists, "a job that listens")
        words = self.job.starter.stdout.split()
        self.addresses = [
            words[n + 1].partition("/")[0] for n, w in enumerate(words) if w in {"inet", "inet6"}
        ]

    def end(self) -> str:
        self._file.with_suffix(".end").touch()
        return self.job.result().stdout


def test_jobs_do_not_reach_each_other(world: Lab) -> None:
    """Neither family, neither protocol gets from job to job; drops are counted as peer-denied."""
    listener = Listener(world, "peer")
    assert len(listener.addresses) == 2
    knocker = world.start_job(python(KNOCK, *listener.addresses))
    done = knocker.result()
    assert "CONNECTED" not in done.stdout
    assert "REACHED" not in listener.end()
    record = final(world, knocker.job_id)
    assert drops(record)["peer-denied"] >= 4
    assert record.usage.sent.packets == 0
    assert final(world, listener.job.job_id).usage.received.packets == 0


def test_neighbours_do_not_reach_jobs(world: Lab) -> None:
    """A host that routes a sandbox's address to the worker gets nothing through."""
    listener = Listener(world, "neighbour")
    families = {address: "-6" if ":" in address else "-4" for address in listener.addresses}
    for address, family in families.items():
        via = "2001:db8:1::10" if family == "-6" else "192.0.2.10"
        world.run(["ip", family, "route", "replace", address, "via", via], host="router")
    # from the router itself and from a host behind it
    for host in ("router", "campus"):
        done = world.run(python(KNOCK, *listener.addresses), host=host)
        assert "CONNECTED" not in done.stdout
    for address, family in families.items():
        world.run(["ip", family, "route", "delete", address], host="router")
    assert "REACHED" not in listener.end()
    assert final(world, listener.job.job_id).usage.received.packets == 0


def test_no_network(world: Lab) -> None:
    """Profile `none`: a loopback that works, and nothing else."""
    show = "ip -o link; ip route; ip -6 route show default; ping -qc1 127.0.0.1 && ping -qc1 ::1"
    job = world.start_job(["sh", "-c", show], ad={"WantNone": True})
    done = job.result()
    assert done.status == 0, done.stdout + done.stderr
    assert [line.split(":")[1] for line in done.stdout.splitlines() if "mtu" in line] == [" lo"]
    assert not re.search(r"^default", done.stdout, re.MULTILINE), "a default route"
    record = final(world, job.job_id)
    assert (record.connectivity, record.first_port, record.usage.sent.bytes) == ("none", 0, 0)


def test_denied_classes(world: Lab) -> None:
    """A plan that reaches campus only lets campus through and drops the rest as class-denied."""
    script = "; ".join(
        FETCH.format(url=f"http://{address}/bytes/1000")
        for address in (CAMPUS.ipv4, f"[{CAMPUS.ipv6}]", INTERNET.ipv4, f"[{INTERNET.ipv6}]")
    )
    job = world.start_job(["sh", "-c", script], ad={"WantCampusOnly": True})
    assert job.result().stdout.split() == ["got", "got", "refused", "refused"]
    record = final(world, job.job_id)
    assert record.profile == "campus-only"
    assert [share.traffic_class for share in record.usage.classes] == ["campus"]
    assert set(drops(record)) == {"class-denied"}
    (denied,) = record.usage.drops
    assert denied.count.packets >= 2
    assert denied.classes == (("other", denied.count.packets),)


def test_abstract_sockets_are_the_networks(world: Lab) -> None:
    """Abstract unix sockets belong to the network namespace: a job sees none of the worker's."""
    listen = (
        "import socket, time\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('\\0worker'); s.listen()\n"
        "print('on', flush=True); time.sleep(1000)"
    )
    server = world.start(python(listen))
    until(lambda: "on" in server.stdout, "a server")
    connect = python("import socket; socket.socket(socket.AF_UNIX).connect('\\0worker')")
    assert world.run(connect, user="alice", check=False).returncode == 0
    done = world.job(connect)
    assert done.status == 1
    assert "Connection refused" in done.stderr
    server.signal(9)


def test_a_daemonized_child_has_no_network(world: Lab) -> None:
    """When the job's process has ended, what it left behind sends nothing, and nothing counts."""
    stay = f"""
import os, pathlib, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("{CAMPUS.ipv4}", 9))
if os.fork():
    for _ in range(100):
        sock.send(bytes(1000))
    os._exit(0)
os.setsid()
go = pathlib.Path("/run/lab/home/alice/go")
while not go.exists():
    time.sleep(0.01)
sent = 0
for _ in range(100):
    try:
        sock.send(bytes(1000)); sent += 1
    except OSError as error:
        why = error
(go.parent / "told").write_text(f"{{sent}} {{why if sent < 100 else ''}}")
"""
    job = world.start_job(python(stay))
    assert job.result().status == 0
    record = final(world, job.job_id)
    assert record.usage.sent == ONCE
    before = discarded(world)
    home = world.path("/run/lab/home/alice")
    (home / "go").touch()
    until((home / "told").exists, "the child's report")
    until((home / "told").read_text, "the child's report")
    probe = Talker(world, user="bob")
    probe.talk()
    until(lambda: discarded(world) >= before + 100, "the other job's datagrams")
    assert discarded(world) == before + 100, "the child's datagrams arrived"
    probe.end()
    assert final(world, job.job_id) == record


def test_the_plan_of_an_ended_job_is_off(world: Lab) -> None:
    """Whoever is left, and whatever right to its links and routes it has: nothing passes.

    Sockets are aborted and routes are taken away, too, so traffic alone would not show it.
    """
    job = world.start_job(["sleep", "60"])
    until(lambda: job.job_id in records(world), "its record")
    with Map.open(pins(world) / CURRENT / "plan") as plans:

        def active() -> bool:
            slot = records(world)[job.job_id].slot
            return plan_state(plans.get(slot.to_bytes(4, sys.byteorder)) or b"")[0]

        assert active()
        job.kill(9)
        job.result()
        final(world, job.job_id)
        assert not active()


def discarded(lab: Lab) -> int:
    """Return how many datagrams the campus server's port 9 has got."""
    words = lab.run(["curl", "-sf", f"http://{CAMPUS.ipv4}/discarded"], host="campus").stdout
    return int(words.partition('"packets": ')[2].partition(",")[0])
