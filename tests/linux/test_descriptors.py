"""Closes that block are somebody else's: threads', and in the end nobody's."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent.linux import descriptors, libc
from lark_agent.linux.descriptors import GuardedConnection, GuardedListener, close_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a network of its own")


@pytest.fixture(params=["as the kernel can", "before Linux 6.16"])
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[GuardedConnection, socket.socket]]:
    """Give an accepted connection and its caller; the second time without SO_PASSRIGHTS."""
    if request.param == "before Linux 6.16":
        monkeypatch.setattr(descriptors, "SO_PASSRIGHTS", 9999)
    with GuardedListener() as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        caller.connect(str(tmp_path / "s"))
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            caller.settimeout(5)
            yield connection, caller


def send_descriptor(caller: socket.socket, flags: int = 0) -> bool:
    """Send one with a byte; returns False if the kernel refuses."""
    try:
        socket.send_fds(caller, [b"!"], [0], flags)
    except PermissionError:
        return False
    return True


def lingering() -> tuple[socket.socket, list[socket.socket]]:
    """Return a socket whose close blocks, and what to keep meanwhile, in an unnamed network."""
    libc.unshare_network()  # of this thread
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    listener, near = socket.socket(), socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    near.connect(listener.getsockname())
    far, _ = listener.accept()
    near.setblocking(False)
    try:
        while True:
            near.send(bytes(65536))
    except BlockingIOError:
        pass
    near.setblocking(True)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 10))
    return near, [listener, far]


def until(condition: Callable[[], bool]) -> bool:
    """Wait two seconds at most."""
    end = time.monotonic() + 2
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def count(what: str) -> int:
    """Count this process's "task"s or "fd"s."""
    return len(list(Path("/proc/self", what).iterdir()))


@needs_root
def test_a_lingering_socket_holds_up_nobody() -> None:
    """The close returns at once, finishes soon, and its threads end; other files stay open."""
    with ThreadPoolExecutor(1) as elsewhere:
        near, keep = elsewhere.submit(lingering).result()
    witness, threads, done = os.dup(0), count("task"), threading.Event()
    start = time.monotonic()
    close_aside([near.detach()], done.set)
    assert time.monotonic() - start < 1
    assert done.wait(2)
    assert until(lambda: count("task") <= threads)
    os.close(witness)
    for one in keep:
        one.close()


@needs_root
def test_where_tables_cannot_be_parted_a_thread_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without unshare(2) the close blocks, in the thread, and tells so by not finishing."""
    monkeypatch.setattr(descriptors, "_keep_only", lambda _: None)
    with ThreadPoolExecutor(1) as elsewhere:
        near, keep = elsewhere.submit(lingering).result()
    done = threading.Event()
    close_aside([near.detach()], done.set)
    assert not done.wait(0.5)
    for one in keep:  # the peer's reset ends the wait
        one.close()
    assert done.wait(2)


def test_bytes_pass_and_descriptors_do_not(pair: tuple[GuardedConnection, socket.socket]) -> None:
    """Bytes before arrive if read before; from the descriptor on there is but an error."""
    connection, caller = pair
    caller.sendall(b"before")
    assert connection.recv(3) == b"bef"
    assert connection.recv(100) == b"ore"
    before = count("fd")
    if send_descriptor(caller):
        for _ in range(2):
            with pytest.raises(ConnectionAbortedError):
                connection.recv(100)
    else:
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(100)
    assert count("fd") == before
    caller.close()


def test_bytes_are_not_read_past_a_descriptor(
    pair: tuple[GuardedConnection, socket.socket],
) -> None:
    """A long read that would run from bytes into a descriptor is an error already."""
    connection, caller = pair
    caller.sendall(b"before")
    if send_descriptor(caller):
        with pytest.raises(ConnectionAbortedError):
            connection.recv(100)


def test_urgent_descriptors_are_seen(pair: tuple[GuardedConnection, socket.socket]) -> None:
    """A descriptor in urgent data, which recv(2) would drop, is an error too."""
    connection, caller = pair
    if send_descriptor(caller, socket.MSG_OOB):
        caller.sendall(b"after")
        with pytest.raises(ConnectionAbortedError):
            connection.recv(100)


@pytest.mark.parametrize("unread", [b"", b"unread"])
def test_the_peer_sees_the_end_and_the_owner_hears_of_it(
    pair: tuple[GuardedConnection, socket.socket], unread: bytes
) -> None:
    """With unread bytes or without, a close is an end to the peer, and is told once."""
    connection, caller = pair
    told: list[int] = []
    connection.finished = lambda: told.append(1)
    caller.sendall(unread)
    connection.close()
    connection.close()
    try:
        assert caller.recv(1) == b""
    except ConnectionResetError:
        assert unread
    assert until(lambda: bool(told))
    assert told == [1]


def test_an_end_of_the_peer_is_an_end(pair: tuple[GuardedConnection, socket.socket]) -> None:
    """What was sent before the end is read, then nothing, as of any socket."""
    connection, caller = pair
    caller.sendall(b"last")
    caller.close()
    assert [connection.recv(9), connection.recv(9)] == [b"last", b""]
