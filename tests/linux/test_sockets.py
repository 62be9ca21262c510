"""What still has to be delivered after a process is gone."""

from __future__ import annotations

import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from lark_agent.linux import sockets

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
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
