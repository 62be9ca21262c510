"""The servers at a far end: HTTP, UDP and TCP echo, discard; on the campus also names.

* 80/tcp: `GET /bytes/N` gives N bytes, `PUT` and `POST` answer with the number of bytes received,
  `GET /discarded` gives what port 9 got;
* 7/tcp, 7/udp: echo;
* 9/udp: discard, counted;
* 53/udp: the names of the lab (`tests.lab.names`).

All listen on IPv4 and IPv6. A thread per connection is enough for tests; blocks are large, so that
a gigabyte takes about as long as the kernel needs. READY=1 goes to $NOTIFY_SOCKET once every port
is bound, so that no test ever retries a connection.
"""

from __future__ import annotations

import http.server
import json
import os
import socket
import sys
import threading
from typing import ClassVar

from tests.lab import names

HTTP_PORT, ECHO_PORT, DISCARD_PORT, NAME_PORT = 80, 7, 9, 53
BLOCK = 1 << 20


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives and takes bytes."""

    protocol_version = "HTTP/1.1"
    zeros: ClassVar[memoryview] = memoryview(bytes(BLOCK))
    discarded: ClassVar[dict[str, int]] = {"packets": 0, "bytes": 0}

    def do_GET(self) -> None:
        """Send as many bytes as the path says."""
        if self.path == "/discarded":
            self._answer(json.dumps(self.discarded).encode())
            return
        kind, _, number = self.path.lstrip("/").partition("/")
        if kind != "bytes" or not number.isdigit():
            self.send_error(404, "use /bytes/N or /discarded")
            return
        left = int(number)
        self.send_response(200)
        self.send_header("Content-Length", str(left))
        self.end_headers()
        while left > 0:
            block = self.zeros[: min(left, BLOCK)]
            self.connection.sendall(block)
            left -= len(block)

    def do_PUT(self) -> None:
        """Take a body and say how long it was."""
        if "Content-Length" not in self.headers:
            self.send_error(411, "send a Content-Length; chunked bodies are not understood")
            return
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        left, total = int(self.headers["Content-Length"]), 0
        buffer = memoryview(bytearray(BLOCK))
        while left > total:
            got = self.rfile.readinto(buffer[: min(BLOCK, left - total)])
            if not got:
                return
            total += got
        self._answer(str(total).encode())

    do_POST = do_PUT  # noqa: N815  the name is http.server's

    def handle_expect_100(self) -> bool:
        """Leave the answer to do_PUT."""
        return True

    def _answer(self, text: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is http.server's
        """Say nothing: requests are what tests are about."""


def listen(kind: socket.SocketKind, port: int) -> socket.socket:
    """Bind one socket for both families."""
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind is socket.SOCK_DGRAM:
        # a burst must reach the program that counts it; the net.core limit does not bind root
        sock.setsockopt(socket.SOL_SOCKET, 33, 32 * BLOCK)  # SO_RCVBUFFORCE
    sock.bind(("::", port))
    if kind is socket.SOCK_STREAM:
        sock.listen(1024)
    return sock


def serve_http(sock: socket.socket) -> None:
    """Serve HTTP, a thread per connection."""
    while True:
        connection, peer = sock.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_handle, args=(connection, peer), daemon=True).start()


def _handle(connection: socket.socket, peer: tuple[str, int]) -> None:
    with connection:
        try:
            Handler(connection, peer, None)  # type: ignore[arg-type]  # the server object is not used by our methods
        except OSError:
            return  # a client that goes away is one of the things under test


def serve_tcp_echo(sock: socket.socket) -> None:
    """Give back what comes."""

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(BLOCK):
                    connection.sendall(data)
            except OSError:
                return  # as above

    while True:
        connection, _ = sock.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def serve_udp_echo(sock: socket.socket) -> None:
    """Give back what comes."""
    while True:
        data, peer = sock.recvfrom(65536)
        sock.sendto(data, peer)


def serve_discard(sock: socket.socket) -> None:
    """Count what comes."""
    buffer = bytearray(65536)
    while True:
        Handler.discarded["bytes"] += sock.recv_into(buffer)
        Handler.discarded["packets"] += 1


def serve_names(sock: socket.socket) -> None:
    """Answer questions for addresses."""
    while True:
        data, peer = sock.recvfrom(4096)
        answer = names.answer(data)
        if answer:
            sock.sendto(answer, peer)


def main() -> None:
    """Bind everything, say so, serve until killed."""
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    services = [
        (serve_http, listen(stream, HTTP_PORT)),
        (serve_tcp_echo, listen(stream, ECHO_PORT)),
        (serve_udp_echo, listen(datagram, ECHO_PORT)),
        (serve_discard, listen(datagram, DISCARD_PORT)),
    ]
    if "--dns" in sys.argv:
        services.append((serve_names, listen(datagram, NAME_PORT)))
    threads = [threading.Thread(target=serve, args=(sock,)) for serve, sock in services]
    for thread in threads:
        thread.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
