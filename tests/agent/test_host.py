"""Jobs without a sandbox: counted by control group, held to the classes and quotas of their plan.

The laboratory's processes get a control group of their own, below which the agent makes those of
the jobs. Captures at the far ends see all that the worker sends, so one job runs at a time there.
"""

from __future__ import annotations

import itertools
import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent.linux import cgroups
from lark_agent.model import Count, ExitReason
from tests.agent.test_change import change
from tests.agent.test_exactness import CAMPUS4, CAMPUS6, DATAGRAMS, INTERNET4, UPLOAD, Far
from tests.agent.worker import (
    ONCE,
    QUICK,
    Talker,
    drops,
    final,
    in_kernel,
    python,
    until,
)
from tests.lab.filesystem import USERS, WRAPPERS
from tests.lab.topology import WORKER
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.model import Record

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
CONFIG = f"""
default_profile = "host"
{QUICK}
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
[profiles.host]
connectivity = "host"
"""
CAMPUS_ONLY = CONFIG + 'reach = ["campus"]\n'
NO_IPV6 = CONFIG + 'ip = "ipv4"\n'
LIMITED = """quotas = ["q"]
[quotas.q]
bytes = "150 kB"
action = "cut-all"
"""
THROTTLED = """[quotas.q]
bytes = "150 kB"
action = "throttle"
throttle = "1 Mbit/s"
"""
_names = itertools.count(1)

ECHO = """
import socket, sys
for address in sys.argv[1:]:
    with socket.create_connection((address, 7), 30) as sock:
        sock.sendall(bytes(300000))
        left = 300000
        while left:
            left -= len(sock.recv(1 << 20))
"""
KNOCK = """
import socket, sys
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.connect((address, 9))
    for _ in range(10):
        try:
            sock.send(bytes(100))
        except PermissionError:
            print("no", address)
"""


LOOK = """
import errno, os, pathlib, sys
lines = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
print(next(line for line in lines if line.startswith("0::"))[3:])
print(os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt"))
try:
    pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
    print("left")
except OSError as error:
    print(errno.errorcode[error.errno])
"""
CONNECTIONS = f"""
import socket
for number in range(200):
    with socket.create_connection((("{CAMPUS4}", "{CAMPUS6}")[number % 2], 7), 30) as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
"""
CLOSES_LATE = """
import socket, time
server = socket.create_server(("", 6001))
print("on", flush=True)
connection, _ = server.accept()
while connection.recv(100):
    pass
time.sleep(0.5)
connection.close()
time.sleep(0.5)
"""
CLOSES_FIRST = f"""
import socket, time
with socket.create_connection(("{CAMPUS4}", 6001), 30) as sock:
    sock.sendall(b"hello")
time.sleep(1)
"""
INSIDE = """
import os, socket, subprocess
for command in (
    "link add one type veth peer name two", "link set one arp off", "link set two up",
    "link set one up", "addr add 192.0.2.1/24 dev one", "route add default dev one",
):
    subprocess.run(["ip", *command.split()], check=True)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(10):
    sock.sendto(bytes(100), ("203.0.113.10", 9))
"""
SURVIVE = f"""
import os, socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("{CAMPUS4}", 9))
while not os.path.exists("/run/lab/home/alice/stop"):
    try:
        sock.send(bytes(10))
    except OSError:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("{CAMPUS4}", 9))
    time.sleep(0.02)
"""
SURVIVOR = shlex.join(python(SURVIVE))


@pytest.fixture
def around() -> Iterator[Path]:
    """Make a control group for a laboratory, gone with all that is in it."""
    group = cgroups.mount() / f"lark-test-{os.getpid()}-{next(_names)}"
    group.mkdir()
    yield group
    until(lambda: cgroups.remove(group), "a laboratory's control group that gets empty")


@pytest.fixture
def lab(around: Path) -> Iterator[Lab]:
    with Lab() as made:
        cgroups.move(made.pid, around)
        yield made


def groups(around: Path) -> list[Path]:
    """Return the groups of jobs."""
    return list(around.glob("lark-*"))


def counted(record: Record) -> tuple[dict[str, int], dict[str, int]]:
    """Return a record's sums as `Far.sums` writes them."""
    sent, received = record.usage.sent, record.usage.received
    return (
        {"packets": sent.packets, "bytes": sent.bytes},
        {"packets": received.packets, "bytes": received.bytes},
    )


PING = "ping -q -i 0.01 -c 20"
EXACT = {
    "udp-and-udp-segment": python(DATAGRAMS),
    "icmp": ["sh", "-c", f"{PING} {CAMPUS4} && {PING} {CAMPUS6}"],
    "tcp-down": ["curl", "-sSf", "-o", "/dev/null", f"http://{INTERNET4}/bytes/60000000"],
    "tcp-up": ["sh", "-c", UPLOAD.replace("500000000", "60000000")],
    "tcp-echo": python(ECHO, CAMPUS4, CAMPUS6),
}


@pytest.mark.parametrize("case", EXACT)
def test_record_equals_captures(lab: Lab, tmp_path: Path, case: str) -> None:
    """Difference 0 in packets and bytes, both ways and both families, also of super-packets."""
    lab.agent(CONFIG)
    with Far(lab, tmp_path) as far:
        job = lab.start_job(EXACT[case])
        done = job.result(60)
        assert done.status == 0, done.stderr
        record = final(lab, job.job_id)
    assert lab.lost() == 0, "the laboratory's own links lost packets"
    assert counted(record) == far.sums()
    assert record.usage.sent.packets > 0
    assert (record.connectivity, record.ipv4, record.usage.drops) == ("host", "", ())


def test_short_connections_are_counted_whole(lab: Lab, tmp_path: Path) -> None:
    """Closing included, where the peer answers the job's FIN with its own."""
    lab.agent(CONFIG)
    with Far(lab, tmp_path) as far:
        job = lab.start_job(python(CONNECTIONS))
        assert job.result(60).status == 0
        record = final(lab, job.job_id)
    assert counted(record) == far.sums()


def test_the_last_handshake_of_a_peer_that_closes_late_is_not_counted(
    lab: Lab, tmp_path: Path
) -> None:
    """By then the job's socket is gone: one packet each way, which docs/host.md states."""
    lab.agent(CONFIG)
    server = lab.start(python(CLOSES_LATE), host="campus")
    until(lambda: "on" in server.stdout, "a server")
    with Far(lab, tmp_path) as far:
        job = lab.start_job(python(CLOSES_FIRST))
        assert job.result(60).status == 0
        record = final(lab, job.job_id)
        assert server.wait() == 0
    on_wire, here = far.sums(), counted(record)
    assert [
        wire["packets"] - mine["packets"] for wire, mine in zip(on_wire, here, strict=True)
    ] == [1, 1]


def test_job_is_in_the_workers_network_below_its_batch_systems_group(
    lab: Lab, around: Path
) -> None:
    """It has the worker's interfaces and mounts, and a group that it cannot leave."""
    lab.agent(CONFIG)
    done = lab.job(python(LOOK, f"/sys/fs/cgroup/{around.name}"))
    group, network, mounts, left = done.stdout.split()
    assert done.status == 0, done.stderr
    assert Path(group).parent == Path("/") / around.name
    worker = lab.run(["readlink", "/proc/self/ns/net", "/proc/self/ns/mnt"]).stdout.split()
    assert [network, mounts] == worker
    assert left == "EACCES"


def test_two_jobs_are_told_apart(lab: Lab, around: Path) -> None:
    """Each has what its own processes moved, and nothing of the agent stays when both are gone."""
    agent = lab.agent(CONFIG)
    first, second = Talker(lab), Talker(lab, user="bob")
    assert len(groups(around)) == 2
    first.talk()
    for _ in range(3):
        second.talk()
    first.end()
    second.end()
    assert final(lab, first.job.job_id).usage.sent == ONCE
    assert final(lab, second.job.job_id).usage.sent == Count(3 * ONCE.packets, 3 * ONCE.bytes)
    until(lambda: not groups(around), "groups that are removed")
    assert agent.terminate() == 0
    assert in_kernel(lab) == set()


def test_loopback_counts_for_nobody(lab: Lab) -> None:
    """What does not leave the worker is no traffic: by the loopback, to whatever address."""
    lab.agent(CAMPUS_ONLY)
    job = lab.start_job(python(KNOCK, "127.0.0.1", "::1", WORKER.ipv4))
    assert job.result().stdout == ""
    usage = final(lab, job.job_id).usage
    assert (usage.sent, usage.dropped) == (Count(), Count())


def test_a_network_that_the_job_makes_counts_for_nobody(lab: Lab) -> None:
    """As rootless containers have: what leaves it does so by a socket in the worker's network.

    Before Linux 6.15 it counts inside as well, which docs/host.md states.
    """
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 15):
        pytest.skip("programs on control groups cannot tell networks apart before Linux 6.15")
    lab.agent(CAMPUS_ONLY)
    job = lab.start_job(["unshare", "--map-root-user", "--net", *python(INSIDE)])
    done = job.result()
    assert done.status == 0, done.stderr
    usage = final(lab, job.job_id).usage
    assert (usage.sent, usage.dropped) == (Count(), Count())


def test_reach_holds(lab: Lab, tmp_path: Path) -> None:
    """A class that the plan does not allow is not sent to, and the job's system call says so."""
    lab.agent(CAMPUS_ONLY)
    with Far(lab, tmp_path) as far:
        job = lab.start_job(python(KNOCK, CAMPUS4, INTERNET4))
        assert job.result().stdout == f"no {INTERNET4}\n" * 10
        record = final(lab, job.job_id)
    assert record.usage.sent == Count(10, 1280)
    assert drops(record) == {"class-denied": 10}
    assert far.sums()[0] == {"packets": 10, "bytes": 1280}


def test_family_holds(lab: Lab) -> None:
    """A job of IPv4 alone sends no IPv6."""
    lab.agent(NO_IPV6)
    job = lab.start_job(python(KNOCK, CAMPUS4, CAMPUS6))
    assert job.result().stdout == f"no {CAMPUS6}\n" * 10
    record = final(lab, job.job_id)
    assert record.usage.sent == Count(10, 1280)
    assert drops(record) == {"spoofed-address": 10}


def test_a_job_has_no_second_network(lab: Lab) -> None:
    """The wrapper inside of such a job is refused as it is inside of a sandbox."""
    lab.agent(CONFIG)
    done = lab.job([f"{WRAPPERS}/lark-run", "true"])
    assert done.status == 125
    assert "in the control group of a job already" in done.stderr


def test_a_quota_cuts_to_the_packet(lab: Lab) -> None:
    """What fits passes, the next packet does not, and the record says why."""
    lab.agent(CONFIG + LIMITED)
    job = Talker(lab)
    job.talk()
    job.talk()
    job.end()
    record = final(lab, job.job.job_id)
    assert record.usage.sent == Count(145, 145 * 1028)
    assert drops(record) == {"quota": 55}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_jobs_outlive_the_agent(lab: Lab, around: Path, number: signal.Signals) -> None:
    """A job talks before, without and after the agent; the next one adopts it: exact totals."""
    agent = lab.agent(CONFIG)
    job, other = Talker(lab), Talker(lab, user="bob")
    job.talk()
    agent.signal(number)
    agent.wait()
    job.talk()
    other.talk()
    other.end()
    agent = lab.agent(CONFIG)
    job.talk()
    absent = final(lab, other.job.job_id)
    assert (absent.exit_reason, absent.usage.sent) == (ExitReason.AGENT_ABSENT, ONCE)
    job.end()
    record = final(lab, job.job.job_id)
    assert (record.exit_reason, record.usage.sent) == (
        ExitReason.EXITED, Count(3 * ONCE.packets, 3 * ONCE.bytes),
    )  # fmt: skip
    until(lambda: not groups(around), "groups that are removed")
    assert agent.terminate() == 0
    assert in_kernel(lab) == set()


def test_survivors_are_cut_off(lab: Lab, around: Path, tmp_path: Path) -> None:
    """A process that outlives its job sends nothing more, and spoils no other job's record."""
    lab.agent(CONFIG.replace("slots = 4", "slots = 1"))
    stop = lab.path("/run/lab/home/alice/stop")
    job = lab.start_job(["sh", "-c", f"setsid {SURVIVOR} & sleep 0.5"])
    job.result()
    record = final(lab, job.job_id)
    assert record.usage.sent.packets > 0
    until(lambda: len(groups(around)) == 1, "the survivor's group")
    with Far(lab, tmp_path) as far:
        next_job = lab.start_job(python(KNOCK, CAMPUS4))
        next_job.result()
        following = final(lab, next_job.job_id)
    assert following.slot == record.slot
    assert (following.usage.sent, following.usage.drops) == (Count(10, 1280), ())
    assert far.sums()[0] == {"packets": 10, "bytes": 1280}
    stop.touch()
    until(lambda: not cgroups.processes(groups(around)[0]), "a survivor that ends")
    lab.job(["true"])
    until(lambda: not groups(around), "groups that are removed")


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("rate", "10", "connectivity host has no rate"),
        ("peers", '"all"', "connectivity host has no peers"),
        ("inbound", '"none"', "connectivity host has no inbound"),
        ("dscp", "8", "connectivity host has no dscp"),
        ("quotas", '"q"', "connectivity host has no quota that throttles"),
    ],
)
def test_what_nothing_enforces_is_refused(lab: Lab, setting: str, value: str, words: str) -> None:
    """A plan holds as a whole, or the job does not run."""
    lab.agent(f"{CONFIG}{THROTTLED}[[rules]]\nwhen = 'true'\nset.{setting} = '{value}'\n")
    done = lab.job(["true"])
    assert done.status == 125
    assert words in done.stderr


def test_delegated_groups_are_counted_and_hold_nothing(lab: Lab, around: Path) -> None:
    """Who may move processes could leave: a plan may count there, and forbid nothing."""
    os.chown(around / "cgroup.procs", USERS["alice"].uid, -1)
    agent = lab.agent(CAMPUS_ONLY)
    done = lab.job(["true"])
    assert done.status == 125
    assert "could move out of its control group" in done.stderr
    assert groups(around) == []
    agent.terminate()
    agent = lab.agent(CONFIG)
    job = Talker(lab)
    job.talk()
    job.end()
    assert final(lab, job.job.job_id).usage.sent == ONCE
    agent.terminate()
    assert "a job can leave its control group" in agent.stderr


def test_a_worker_without_control_groups_says_so(lab: Lab) -> None:
    """Only version 2 can tell the jobs apart."""
    lab.agent(CONFIG)
    lab.run(["umount", "/sys/fs/cgroup"])
    done = lab.job(["true"])
    assert done.status == 125
    assert "no control groups of version 2" in done.stderr


def test_a_cut_holds_at_once(lab: Lab) -> None:
    """An admin's word reaches a job without a sandbox as any other."""
    lab.agent(CONFIG)
    job = Talker(lab)
    job.talk()
    lab.run(["lark", "--agent", "/run/lark/agent.sock", "job", job.job.job_id, "set", "cut=yes"])
    job.talk()
    job.end()
    record = final(lab, job.job.job_id)
    assert (record.usage.sent, drops(record)) == (ONCE, {"class-denied": 100})


@pytest.mark.parametrize("setting", ["rate=8 Mbit/s", "peers=all", "inbound=none", "dscp=8"])
def test_what_nothing_enforces_cannot_be_set(lab: Lab, setting: str) -> None:
    """Nor while the job runs: the words are those of the start, and all stays as it was."""
    lab.agent(CONFIG)
    job = Talker(lab)
    done = change(lab, job.job.job_id, setting)
    assert done.returncode == 6
    assert f"connectivity host has no {setting.partition('=')[0]}" in done.stderr
    job.talk()
    job.end()
    record = final(lab, job.job.job_id)
    assert (record.usage.sent, record.changes) == (ONCE, ())
