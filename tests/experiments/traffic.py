"""One TCP stream: a giver that sends, and a taker that watches what arrives. Runs as a program.

    traffic.py listen  give|take PORT      SECONDS BYTES    on a server; READY=1 once bound
    traffic.py connect give|take HOST PORT SECONDS BYTES    in a job

The giver sends BYTES and waits until the taker has closed: that is its completion. If BYTES is 0,
it sends until the taker, after SECONDS, closes: what a slow shaper still holds by then is not
waited for. The taker notes every 20 ms how many segments the *kernel* has received (TCP_INFO), with
the time of that look: a taker that is scheduled late makes a longer step, not a wrong one. Both
print one JSON object at their end; the taker of a server also prints a line when the stream is
connected. Times are CLOCK_MONOTONIC, the same for all namespaces.

Congestion control is Reno, the only one that every kernel has and every user may choose. The
machine's default can be BBR, whose pauses of 200 ms every 10 s show the sender and not the link.

Payload is thrown away in the kernel (MSG_TRUNC): copying it would compete with what is measured.
Nothing but the standard library is used, so that it runs with `python3 -I -S -c` in any sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import time

BLOCK = 1 << 16
CONGESTION_CONTROL = b"reno"
STEP_NS = 20_000_000
SECOND_NS = 1_000_000_000
_BYTES_RECEIVED, _DATA_SEGMENTS_IN = 128, 152
"""Offsets in struct tcp_info (linux/tcp.h)."""


def look(stream: socket.socket) -> tuple[int, int, int]:
    """Return the time, segments with data and bytes that the kernel has received by then."""
    before = time.monotonic_ns()
    info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    after = time.monotonic_ns()
    (segments,) = struct.unpack_from("I", info, _DATA_SEGMENTS_IN)
    (received,) = struct.unpack_from("Q", info, _BYTES_RECEIVED)
    return (before + after) // 2, segments, received


def take(stream: socket.socket, seconds: float) -> dict[str, object]:
    """Receive until the other side ends, for at most `seconds`."""
    buffer = bytearray(1 << 20)
    stream.settimeout(STEP_NS / SECOND_NS)
    samples = [look(stream)]
    following, until = samples[0][0] + STEP_NS, samples[0][0] + int(seconds * SECOND_NS)
    going = True
    while going:
        try:
            going = stream.recv_into(buffer, len(buffer), socket.MSG_TRUNC) > 0
        except TimeoutError:
            pass
        except ConnectionResetError:
            going = False
        if not going or time.monotonic_ns() >= following:
            samples.append(look(stream))
            following = samples[-1][0] + STEP_NS
            going = going and following <= until
    return {"samples": samples}


def give(stream: socket.socket, octets: int) -> dict[str, object]:
    """Send an amount, or (0) until the other side closes."""
    block, began, left = memoryview(bytes(BLOCK)), time.monotonic_ns(), octets
    if octets:
        while left:
            left -= stream.send(block[: min(left, BLOCK)])
        stream.shutdown(socket.SHUT_WR)
        stream.recv(1)
    else:
        with contextlib.suppress(ConnectionError):
            while True:
                stream.send(block)
    return {"began": began, "ended": time.monotonic_ns()}


def listen(port: int) -> socket.socket:
    """Wait for the one stream of this server."""
    with socket.create_server(("", port)) as server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
        return server.accept()[0]


def main() -> None:
    """Do as the command line says."""
    side, what, *place, seconds, octets = sys.argv[1:]
    if side == "listen":
        stream = listen(int(place[0]))
        print(json.dumps({"connected": time.monotonic_ns()}), flush=True)
    else:
        stream = socket.create_connection((place[0], int(place[1])), 10)
        stream.settimeout(None)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL)
    with stream:
        told = take(stream, float(seconds)) if what == "take" else give(stream, int(octets))
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
