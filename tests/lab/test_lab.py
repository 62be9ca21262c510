"""What every test that stands on the laboratory takes for granted: its network and its jobs."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from lark_agent.hooks import install
from tests.lab.filesystem import STATE
from tests.lab.process import LabError
from tests.lab.topology import CAMPUS, INTERNET, WORKER, Host
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.jobs import Scheduler
    from tests.lab.process import Process

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]

# stands for lark-run: says what it was given, then becomes the job
SHOW_SELF = """#!/bin/sh
echo "user $(id -un)"
echo "cwd $(pwd)"
echo "umask $(umask)"
echo "names $_CONDOR_SLOT|$SLURM_JOB_ID"
echo "parent $(awk '/^Uid:/ { print $2 }' /proc/$PPID/status)"
echo "scratch $(stat -c '%U %a' .)"
[ -z "$_CONDOR_JOB_AD" ] || cat "$_CONDOR_JOB_AD"
[ -z "$_CONDOR_WRAPPER_ERROR_FILE" ] || echo complaint > "$_CONDOR_WRAPPER_ERROR_FILE"
exec "$@"
"""
ECHO = """
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
c = socket.socket(socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET, kind)
c.settimeout(5)
c.connect((sys.argv[2], 7))
c.send(b"echo!")
print(c.recv(100).decode(), end="")
"""
DISCARD = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 9))
for _ in range(1000):
    s.send(bytes(1000))
"""


def python(code: str, *arguments: str) -> list[str]:
    return ["/usr/bin/python3", "-I", "-S", "-c", code, *arguments]


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    """Give one lab to all the tests that leave it as it was."""
    with Lab() as made:
        yield made


@pytest.mark.parametrize("far", [CAMPUS, INTERNET], ids=lambda host: host.name)
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_hosts_reach_each_other(world: Lab, far: Host, family: str) -> None:
    """Worker and far hosts reach each other in both families, whoever begins."""
    world.run(["ping", "-c1", "-W2", getattr(far, family)])
    world.run(["ping", "-c1", "-W2", getattr(WORKER, family)], host=far.name)


def test_names_are_resolved(world: Lab) -> None:
    """A server's name has both addresses; an unknown name is known to be unknown at once."""
    found = world.run(["getent", "ahosts", "server.internet.test"], user="alice").stdout
    assert {INTERNET.ipv4, INTERNET.ipv6} <= set(found.split())
    unknown = world.run(["getent", "hosts", "nobody.test"], check=False, timeout=2)
    assert unknown.returncode == 2


@pytest.mark.parametrize("far", [CAMPUS, INTERNET], ids=lambda host: host.name)
def test_http_servers_give_and_take(world: Lab, far: Host) -> None:
    """The far servers give as many bytes as asked for, and say how many they were sent."""
    url = f"http://server.{far.name}.test"
    for family in ("-4", "-6"):
        command = ["curl", "-sSf", family, "-o", "/dev/null", "-w", "%{size_download}"]
        assert world.run([*command, f"{url}/bytes/3000001"]).stdout == "3000001"
    body = ["curl", "-sSf", "--data-binary", "@-", f"{url}/"]
    assert world.run(body, stdin="x" * 2_000_000).stdout == "2000000"


@pytest.mark.parametrize("address", [CAMPUS.ipv4, CAMPUS.ipv6])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_far_servers_echo(world: Lab, kind: str, address: str) -> None:
    """What is sent to port 7 comes back."""
    assert world.run(python(ECHO, kind, address)).stdout == "echo!"


def test_discarded_datagrams_are_counted(world: Lab) -> None:
    """A burst of a thousand datagrams to port 9 is received whole."""
    world.run(python(DISCARD, INTERNET.ipv4))
    ask = ["curl", "-sSf", f"http://{INTERNET.ipv4}/discarded"]
    until = time.monotonic() + 5
    while '"packets": 1000,' not in (answer := world.run(ask).stdout):
        assert time.monotonic() < until, answer


def sniff(lab: Lab, host: str, interface: str, what: str) -> Process:
    """Start counting packets longer than the wire allows."""
    oversized = f"ip and greater 1515 and tcp and {what}"
    tcpdump = lab.start(["tcpdump", "-nni", interface, "-c1", oversized], host=host)
    until = time.monotonic() + 10
    while "listening" not in tcpdump.stderr:
        assert time.monotonic() < until, tcpdump.stderr
        time.sleep(0.01)
    return tcpdump


def test_far_ends_see_the_wire_and_the_worker_sees_super_packets(world: Lab) -> None:
    """Offloads work at the worker, both ways; at the far ends every packet is of wire size."""
    wire = sniff(world, "campus", "eth0", "port 80")
    out = sniff(world, "worker", "uplink0", "dst port 80")
    into = sniff(world, "worker", "uplink0", "src port 80")
    url = f"http://{CAMPUS.ipv4}"
    world.run(["curl", "-sSf", "-o", "/dev/null", f"{url}/bytes/20000000"])
    world.run(["curl", "-sSf", "--data-binary", "@-", f"{url}/"], stdin="x" * 5_000_000)
    assert out.wait(10) == 0
    assert into.wait(10) == 0
    wire.signal(signal.SIGINT)
    wire.wait(10)
    assert re.search(r"^0 packets captured", wire.stderr, re.MULTILINE), wire.stderr


def test_the_network_loses_nothing(world: Lab) -> None:
    """Sixteen transfers at once, half of them up, reach their ends without a lost packet."""
    down = ["curl", "-sSf", "-o", "/dev/null", "http://server.campus.test/bytes/10000000"]
    up = ["curl", "-sSf", "-o", "/dev/null", "--data-binary", "@-", "http://server.campus.test/"]
    running = [world.start(down) for _ in range(8)]
    running += [world.start(up, stdin="x" * 10_000_000) for _ in range(8)]
    assert [process.wait() for process in running] == [0] * 16
    assert world.lost() == 0


def test_users_are_the_labs_own(world: Lab) -> None:
    """Commands run as the user named, with that user's groups and home."""
    assert world.run(["id", "-Gn"], user="carol").stdout.split() == ["carol", "lark-admin"]
    assert world.run(["sh", "-c", "cd && pwd"], user="bob").stdout.strip().endswith("/bob")
    intrusion = world.run(["ls", f"{STATE}/home/bob"], user="alice", check=False)
    assert intrusion.returncode == 2


def test_file_capabilities_work(world: Lab) -> None:
    """An ordinary user who execs a program with a file capability has it, as on a real worker."""
    program = f"{STATE}/bin/show"
    world.run(["cp", "/bin/cat", program])
    os.setxattr(world.path(program), "security.capability", install.CAPABILITY)
    status = world.run([program, "/proc/self/status"], user="alice").stdout
    effective = re.search(r"^CapEff:\s*(\w+)", status, re.MULTILINE)
    assert effective is not None
    assert int(effective[1], 16) == 1 << 21


def test_ends_are_reported_as_they_happened(world: Lab) -> None:
    """Exit statuses and signals arrive, a failure is an error unless expected, lateness always."""
    assert world.run(["sh", "-c", "exit 7"], check=False).returncode == 7
    assert world.run(["sh", "-c", "kill -SEGV $$"], check=False).returncode == -signal.SIGSEGV
    assert world.run(["no-such-program"], check=False).returncode == 127
    with pytest.raises(LabError, match="ended with 3\nwhy"):
        world.run(["sh", "-c", "echo why >&2; exit 3"])
    with pytest.raises(LabError, match="still runs"):
        world.run(["sleep", "5"], timeout=0.1)


def test_orphans_are_reaped(world: Lab) -> None:
    """A process whose parent has gone vanishes when it ends; it does not stay as a zombie."""
    orphan = "sleep 0.05 & echo $!"
    pid = world.run(["sh", "-c", orphan]).stdout.strip()
    until = time.monotonic() + 5
    while world.path(f"/proc/{pid}").exists():
        assert time.monotonic() < until, world.path(f"/proc/{pid}/status").read_text()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("scheduler", "parent", "names"),
    [("htcondor", "0", r"slot1_\d+\|"), ("slurm", "0", r"\|\d+"), ("plain", "1001", r"\|")],
)
def test_jobs_start_as_their_batch_system_starts_them(
    world: Lab, scheduler: Scheduler, parent: str, names: str
) -> None:
    """The wrapper runs as the user, in the user's scratch directory, named by the batch system.

    Its parent is root's, or the user's own where no batch system took part.
    """
    wrapper = f"{STATE}/bin/show-self"
    world.path(wrapper).write_text(SHOW_SELF)
    world.path(wrapper).chmod(0o755)
    command = ["sh", "-c", "exit 5"]
    done = world.job(
        command, scheduler=scheduler, wrapper=wrapper, umask=0o027, ad={"AcctGroup": 'a"b'}
    )
    facts = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert facts["user"] == "alice"
    assert facts["cwd"] == done.scratch
    assert facts["umask"] == "0027"
    assert facts["parent"] == parent
    assert facts["scratch"] == "alice 700"
    assert re.fullmatch(names, facts["names"])
    assert done.status == 5
    condor = scheduler == "htcondor"
    assert ('AcctGroup = "a\\"b"' in done.stdout) is condor
    assert ('Owner = "alice"' in done.stdout) is condor
    assert done.wrapper_error == ("complaint\n" if condor else "")


def test_jobs_run_side_by_side_and_can_be_killed(world: Lab) -> None:
    """A job is killed by its pid; another, with parent and user of its own, goes on."""
    first = world.start_job(["sleep", "1000"], wrapper=None)
    second = world.start_job(["sh", "-c", "read x; id -un"], user="bob", wrapper=None)
    assert first.starter.pid != second.starter.pid
    first.kill(signal.SIGKILL)
    assert first.result().status == -signal.SIGKILL
    assert second.result().stdout == "bob\n"


def test_the_whole_ad_can_be_the_tests(world: Lab) -> None:
    """A text given as the ad is the ad, whatever it is."""
    done = world.job(["cat", ".job.ad"], ad="not an ad", wrapper=None)
    assert done.stdout == "not an ad"


def test_uplink_options() -> None:
    """A lab may have no IPv6, and an uplink with another MTU."""
    with Lab(ipv6=False, mtu=1400) as lab:
        addresses = lab.run(["ip", "address", "show", "dev", "uplink0"]).stdout
        assert "mtu 1400" in addresses
        assert "scope global" in addresses
        assert WORKER.ipv6 not in addresses
        lab.run(["curl", "-sSf", "-o", "/dev/null", "http://server.campus.test/bytes/100000"])
