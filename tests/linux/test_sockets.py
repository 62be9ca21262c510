"""What sockets a namespace has left, and how they are ended."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from lark_agent.errors import KernelError
from lark_agent.linux import sockets
from lark_agent.linux.netlink import Netlink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root


FAMILIES = pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)


@contextmanager
def connected(family: int, address: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.socket(family) as server:
        server.bind((address, 0))
        server.listen()
        with socket.create_connection(server.getsockname()[:2]) as client:
            peer, _ = server.accept()
            server.close()
            with peer:
                yield client, peer


@FAMILIES
def test_orphans_are_counted(fresh_host: Path, family: int, address: str) -> None:
    """A closed socket with unread data at its peer counts, until the peer has closed too."""
    with socket.socket(family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.bind((address, 0))
        server.listen()
        assert sockets.undelivered() == 0, "a listener has nothing to deliver"
        client = socket.create_connection(server.getsockname()[:2])
        peer, _ = server.accept()
        assert sockets.undelivered() == 0, "connections with an owner are the owner's"
        client.setblocking(False)
        client.send(bytes(1 << 20))
        client.close()
        assert sockets.undelivered() == 1
        peer.setblocking(True)
        while peer.recv(1 << 20):
            pass
        peer.close()
    until = time.monotonic() + 10
    while sockets.undelivered():
        assert time.monotonic() < until, subprocess.check_output(["ss", "-tan"], text=True)
        time.sleep(0.01)
    assert "TIME-WAIT" in subprocess.check_output(["ss", "-tan"], text=True)


@FAMILIES
def test_what_has_an_owner_is_aborted(fresh_host: Path, family: int, address: str) -> None:
    """Both ends of a connection, UDP and listeners fail at their owners; then nothing is left."""
    with (
        connected(family, address) as (client, peer),
        socket.create_server((address, 0), family=family) as server,
        socket.socket(family, socket.SOCK_DGRAM) as udp,
    ):
        waiting = socket.create_connection(server.getsockname()[:2])  # never accepted
        udp.connect((address, 9))
        # client, peer, waiting, server, udp; what waits to be accepted has no owner yet
        assert sockets.abort() == sockets.Remains(undelivered=1, owned=5)
        for sock in (client, peer, waiting):
            with pytest.raises(ConnectionError):  # reset by the other end or aborted: the first
                sock.recv(1)
        with pytest.raises(ConnectionAbortedError):
            udp.recv(1)
        with pytest.raises(OSError, match="Invalid argument"):
            server.accept()
        waiting.close()
        assert sockets.abort().undelivered == 0


def test_a_kernel_that_destroys_no_sockets(
    fresh_host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without CONFIG_INET_DIAG_DESTROY what has an owner is still seen, and nothing fails."""

    def refuse(_self: Netlink, _kind: int, _body: bytes, tried: str) -> None:
        raise KernelError(tried, "Operation not supported")

    monkeypatch.setattr(Netlink, "call", refuse)
    with connected(socket.AF_INET, "127.0.0.1") as (client, peer):
        assert sockets.abort() == sockets.Remains(undelivered=0, owned=2)
        client.send(b"x")
        assert peer.recv(1) == b"x"


@pytest.mark.parametrize(
    ("family", "net", "other"),
    [
        (socket.AF_INET, "192.0.2.1/24", "192.0.2.2"),
        (socket.AF_INET6, "2001:db8::1/64", "2001:db8::2"),
    ],
)
def test_a_silent_namespace_sends_nothing(
    fresh_host: Path, family: int, net: str, other: str
) -> None:
    """After `silence` also a connected socket cannot send, but the own addresses still receive."""
    subprocess.run(["ip", "link", "add", "v0", "up", "type", "veth", "peer", "v1"], check=True)
    subprocess.run(["ip", "link", "set", "v1", "up"], check=True)
    subprocess.run(
        ["ip", "address", "add", net, "dev", "v0", *(["nodad"] if ":" in net else [])], check=True
    )
    own = net.partition("/")[0]
    # IPv6 uses an address only once the link is known to have a carrier, up to a second later
    until = time.monotonic() + 10
    route = ["ip", "route", "get", own]
    while not subprocess.run(route, capture_output=True, check=False).stdout.startswith(b"local"):
        assert time.monotonic() < until
        time.sleep(0.01)
    with socket.socket(family, socket.SOCK_DGRAM) as out, connected(family, own) as (one, two):
        out.connect((other, 9))
        out.send(b"x")
        sockets.silence()
        sockets.silence()  # after a restart of the agent
        with pytest.raises(OSError, match="Invalid argument"):
            out.send(b"x")
        one.send(b"y")
        assert two.recv(1) == b"y"
