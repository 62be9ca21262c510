"""How laboratories begin, stand side by side, and end without a trace."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.agent.worker import until
from tests.lab.filesystem import ROOT
from tests.lab.process import LabError
from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]

DAEMON = """
import os, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
notify.send(b"STATUS=warming up")
if sys.argv[1] == "fails":
    sys.exit("the sky is falling")
if sys.argv[1] == "ready":
    notify.send(b"STATUS=up\\nREADY=1")
time.sleep(1000)
"""
VICTIM = """
import sys, time
from tests.lab.world import Lab
with Lab() as lab:
    lab.run(["mount", "-t", "tmpfs", "left", "/mnt"])
    lab.start(["ip", "netns", "exec", "campus", "sleep", "1000"])
    lab.start(["sh", "-c", "trap '' TERM; setsid sleep 1000 & wait"], user="alice")
    print(lab.pid, flush=True)
    time.sleep(1000)
"""


def daemon(behaviour: str) -> list[str]:
    return ["/usr/bin/python3", "-I", "-S", "-c", DAEMON, behaviour]


def inode(path: Path | str) -> int:
    """Return the number of a namespace."""
    return Path(path).stat().st_ino


def members(pid_namespace: int) -> list[str]:
    """Return the processes in a pid namespace, by command."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and inode(process / "ns/pid") == pid_namespace:
                found.append((process / "comm").read_text())
        except OSError:
            continue  # it ended while we looked
    return found


def surroundings() -> tuple[list[str], list[str], bool]:
    """Return what a leak would change: interfaces, mounts, named network namespaces."""
    links = [name for _, name in socket.if_nameindex()]
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return links, mounts, Path("/run/netns").exists() and any(Path("/run/netns").iterdir())


def test_labs_stand_side_by_side() -> None:
    """Two labs have the same addresses, files and names and know nothing of each other."""
    with Lab() as one, Lab() as two:
        one.run(["touch", "/run/mine", "/etc/mine"])
        sleeper = one.start(["sleep", "1000"], host="campus")
        assert two.run(["ls", "/run/mine", "/etc/mine"], check=False).returncode == 2
        theirs, others = (inode(f"/proc/{lab.pid}/ns/pid") for lab in (one, two))
        until(lambda: "sleep\n" in members(theirs), "the sleeper")
        assert "sleep\n" not in members(others)
        for lab in (one, two):
            lab.run(["curl", "-sSf", "-o", "/dev/null", "http://server.campus.test/bytes/100000"])
        assert inode(one.netns("campus")) != inode(two.netns("campus"))
        assert sleeper.poll() is None


def test_a_lab_leaves_nothing() -> None:
    """After a lab no process is left, and the machine's network and mounts are as before."""
    before = surroundings()
    with Lab() as lab:
        namespace = inode(f"/proc/{lab.pid}/ns/pid")
        lab.start(["sh", "-c", "trap '' TERM; setsid sleep 1000 & wait"])
        lab.run(["ip", "link", "add", "left", "type", "veth"])
        assert surroundings() == before
        assert len(members(namespace)) >= 3
    assert members(namespace) == []
    assert surroundings() == before


def test_a_lab_ends_with_a_killed_test() -> None:
    """SIGKILL of the process that made a lab ends all that runs in it."""
    before = surroundings()
    victim = subprocess.Popen([sys.executable, "-c", VICTIM], cwd=ROOT, stdout=subprocess.PIPE)
    assert victim.stdout is not None
    with victim.stdout as output:
        pid = int(output.readline())
        namespace = inode(f"/proc/{pid}/ns/pid")
        victim.kill()
        victim.wait()
    until = time.monotonic() + 10
    while members(namespace):
        assert time.monotonic() < until, members(namespace)
        time.sleep(0.01)
    assert surroundings() == before


def test_a_daemon_is_awaited() -> None:
    """A service call returns when the daemon says READY=1 and not before; it ends on SIGTERM."""
    with Lab() as lab:
        running = lab.service(daemon("ready"))
        assert running.poll() is None
        assert running.terminate() == -signal.SIGTERM


def test_a_daemon_that_fails_is_quoted() -> None:
    """A daemon that ends before it is ready, or never is, is an error with its own words."""
    with Lab() as lab:
        with pytest.raises(LabError, match="ended with 1 before it was ready\nthe sky is falling"):
            lab.service(daemon("fails"))
        with pytest.raises(LabError, match="not ready after"):
            lab.service(daemon("hangs"), timeout=0.3)


def test_a_lab_that_cannot_be_built_says_why() -> None:
    """The reason for a failed start is in the error."""
    with pytest.raises(LabError, match=r"did not start: ip link add uplink0 mtu 10 .*Invalid"):
        Lab(mtu=10).__enter__()
