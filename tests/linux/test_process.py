"""Processes by descriptor: who they are, whether they live, how they ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from lark_agent.errors import KernelError
from lark_agent.linux import process


def ended(code: str) -> tuple[int, int]:
    """Run a program to its end without waiting for it; returns its pid and pidfd."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", code], os.environ)
    pidfd = os.pidfd_open(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid, pidfd


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(7)", 7 << 8),
        ("pass", 0),
        ("import os; os.kill(os.getpid(), 9)", int(signal.SIGKILL)),
    ],
    ids=["code", "zero", "signal"],
)
def test_how_a_process_ended(code: str, status: int) -> None:
    """A zombie tells; one that was waited for tells on new kernels, and never tells wrong."""
    pid, pidfd = ended(code)
    assert process.wait_status(pidfd, pid) == status
    assert not process.alive(pidfd)
    os.waitpid(pid, 0)
    assert process.wait_status(pidfd, pid) in {status, None}
    os.close(pidfd)


def test_a_living_process_has_no_status() -> None:
    """As long as it runs it is alive, and what it is can be read."""
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        pidfd = process.open_pid(sleeper.pid)
        assert process.alive(pidfd)
        assert process.wait_status(pidfd, sleeper.pid) is None
        assert process.parent(sleeper.pid) == os.getpid()
        assert process.start_time(sleeper.pid) >= process.start_time(os.getpid()) > 0
        assert process.network_identity(sleeper.pid) == process.network_identity(os.getpid())
        sleeper.kill()
        sleeper.wait()
        assert not process.alive(pidfd)
        os.close(pidfd)
    assert process.start_time(sleeper.pid) == 0
    assert process.parent(sleeper.pid) == 0
    assert process.network_identity(sleeper.pid) is None
    with pytest.raises(KernelError, match=f"opening process {sleeper.pid}: No such process"):
        process.open_pid(sleeper.pid)


def test_a_name_cannot_forge_the_fields_behind_it() -> None:
    """A command may contain ') R 1 ' and spaces; parent and start time are still right."""
    rename = "import ctypes, time; ctypes.CDLL(None).prctl(15, b') R 1 1 1', 0, 0, 0)"
    code = f"{rename}; print(flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as forger:
        assert forger.stdout is not None
        forger.stdout.readline()
        assert process.parent(forger.pid) == os.getpid()
        assert process.start_time(forger.pid) > 1
        forger.kill()


def test_the_peer_is_who_connected() -> None:
    """The kernel's word about the other end, and a pidfd of it."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        peer = process.peer(here)
        assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.getuid(), os.getgid())
        pidfd = process.open_peer(here, peer)
        assert process.alive(pidfd)
        os.close(pidfd)


def test_an_old_kernel_does_not_hand_out_another_users_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where only the number is known, a process of another user behind it is not the peer."""
    monkeypatch.setattr(process, "SO_PEERPIDFD", 9999)  # ENOPROTOOPT, as before Linux 6.5
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        peer = process.peer(here)
        os.close(process.open_peer(here, peer))
        stranger = process.Peer(os.getpid(), peer.uid + 1, peer.gid)
        with pytest.raises(KernelError, match="gone"):
            process.open_peer(here, stranger)
