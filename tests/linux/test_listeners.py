"""Which ports of the loopback a process listens on."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from lark_agent.linux import listeners, namespaces

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]


def test_listeners_on_the_loopback_and_no_others(fresh_host: Path) -> None:
    """Not on all addresses, not bound alone, not connected, not by UDP, not of IPv6."""
    del fresh_host
    wanted = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    client = socket.create_connection(wanted[0].getsockname())
    accepted, _ = wanted[0].accept()
    bound, datagrams = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
    others = [
        socket.create_server(("0.0.0.0", 0)),
        socket.create_server(("127.0.0.2", 0)),
        socket.create_server(("::1", 0), family=socket.AF_INET6),
        client, accepted, bound, datagrams,
    ]  # fmt: skip
    bound.bind(("127.0.0.1", 0))
    datagrams.bind(("127.0.0.1", 0))
    ports = {each.getsockname()[1] for each in wanted}
    assert listeners.on_loopback(os.getpid()) == ports
    for each in (*wanted, *others):
        each.close()
    assert listeners.on_loopback(os.getpid()) == frozenset()


def test_of_that_process_alone(fresh_host: Path) -> None:
    """Another's listener is not its own, unless it was handed on; one that is gone has none."""
    del fresh_host
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as stranger:
            assert listeners.on_loopback(stranger.pid) == frozenset()
            stranger.kill()
        assert listeners.on_loopback(stranger.pid) == frozenset()
        command = ["/bin/cat"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()]) as heir:
            assert listeners.on_loopback(heir.pid) == {port}
            heir.kill()


def test_of_another_network_namespace_there_are_none(fresh_host: Path) -> None:
    """A loopback elsewhere is not this one, though the descriptor is here."""
    del fresh_host

    def inside() -> socket.socket:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return socket.create_server(("127.0.0.1", 0))

    with namespaces.create("elsewhere", inside):
        assert listeners.on_loopback(os.getpid()) == frozenset()
    namespaces.delete("elsewhere")
