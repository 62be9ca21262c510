"""Packet captures as the referee of byte counts.

`Capture` runs tcpdump on one interface, in the caller's or another network namespace. What it sees
must be all of it: it starts listening before the `with` body runs; on the way out it sends a marker
frame through the same interface and waits until tcpdump has written that, hence everything before
it; and it raises `CaptureError` if the kernel dropped a packet. (So it cannot listen on the host
side of a job's veth, whose datapath lets no marker pass.) Turn GSO, TSO and GRO off where it
listens, or super-packets are seen in place of what is on the wire (`flows` refuses lengths of 0).

`flows` and `sum_ip` read the file without any library: classic pcap, Ethernet, IPv4 and IPv6.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import time
from functools import lru_cache
from typing import IO, TYPE_CHECKING, NamedTuple

from lark_agent.linux import libc, namespaces
from lark_agent.model import Count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

SNAPLEN = 192
_BUFFER_KIB = 1 << 16
_PATIENCE_SECONDS = 60.0
_MARKER_TYPE = 0x88B5  # IEEE 802: local experimental
_IPV4, _IPV6 = 0x0800, 0x86DD
_EXTENSIONS = {0, 43, 60}
_FRAGMENT = 44
_WITH_PORTS = {6, 17, 132}


class CaptureError(Exception):
    """A capture is not complete, so it proves nothing."""


class Packet(NamedTuple):
    """One IP packet on the wire."""

    src: str
    dst: str
    proto: int
    """IP protocol, behind any IPv6 extension headers."""
    sport: int
    """0 where there is none: ICMP, fragments but the first."""
    dport: int
    ip_len: int
    """Bytes, from the IP header."""
    traffic_class: int = 0
    """The whole byte: DSCP and ECN."""
    flow_label: int = 0


class Capture:
    """tcpdump on `interface` into `path`, for the time of a `with` body."""

    def __init__(self, interface: str, path: Path, netns: Path | None = None) -> None:
        self.interface, self.path, self.netns = interface, path, netns
        self._tcpdump: subprocess.Popen[bytes] | None = None
        self._words: IO[bytes] | None = None

    def __enter__(self) -> Self:
        enter = ["nsenter", f"--net={self.netns}"] if self.netns else []
        self._words = tempfile.TemporaryFile()
        self._tcpdump = subprocess.Popen(
            [
                *(*enter, "tcpdump", "-n", "-p", "-U", "-Z", "root", "--immediate-mode"),
                *("-i", self.interface, "-s", str(SNAPLEN), "-B", str(_BUFFER_KIB)),
                *("-w", str(self.path)),
            ],
            stderr=self._words,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C ends the test, which ends the capture
        )
        try:
            self._wait(lambda: "listening on" in self._said(), "listen")
        except BaseException:
            self._stop(signal.SIGKILL)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raise CaptureError, unless the body already failed, if the capture is not complete."""
        try:
            if kind is None:
                self._await_marker()
        except BaseException:
            self._stop(signal.SIGKILL)
            raise
        said = self._stop(signal.SIGINT)
        if kind is None and not re.search(r"^0 packets dropped by kernel", said, re.MULTILINE):
            raise CaptureError(f"tcpdump on {self.interface} is not complete:\n{said}")

    def _await_marker(self) -> None:
        marker = os.urandom(46)
        frame = b"\xff" * 6 + b"\x02" + bytes(5) + struct.pack("!H", _MARKER_TYPE) + marker
        namespaces.in_thread(lambda: self._send(frame))

        def written() -> bool:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
                return marker in file.read()

        self._wait(written, "write what it saw")

    def _send(self, frame: bytes) -> None:
        if self.netns:
            with self.netns.open("rb") as namespace:
                libc.set_network(namespace.fileno())
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind((self.interface, 0))
            link.send(frame)

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + _PATIENCE_SECONDS
        while not done():
            if self._tcpdump is None or self._tcpdump.poll() is not None:
                raise CaptureError(f"tcpdump on {self.interface} ended:\n{self._said()}")
            if time.monotonic() > until:
                raise CaptureError(f"tcpdump on {self.interface} did not {what}:\n{self._said()}")
            time.sleep(0.01)

    def _said(self) -> str:
        if self._words is None:
            return ""
        return os.pread(self._words.fileno(), 1 << 16, 0).decode(errors="replace")

    def _stop(self, number: signal.Signals) -> str:
        if self._tcpdump is not None:
            with contextlib.suppress(ProcessLookupError):
                self._tcpdump.send_signal(number)
            self._tcpdump.wait()
        said = self._said()
        if self._words is not None:
            self._words.close()
            self._words = None
        return said


def frames(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (UTC nanoseconds, length on the wire, captured bytes) of each frame."""
    data = memoryview(path.read_bytes())
    magic, *_, link = struct.unpack_from("=IHHiIII", data)
    if magic != 0xA1B2C3D4 or link != 1:
        raise CaptureError(f"{path} is not a pcap file of Ethernet frames in host byte order")
    offset = 24
    while offset + 16 <= len(data):
        seconds, micros, captured, length = struct.unpack_from("=IIII", data, offset)
        offset += 16
        at_ns = seconds * 1_000_000_000 + micros * 1000
        yield at_ns, length, bytes(data[offset : offset + captured])
        offset += captured


def timed(path: Path) -> Iterator[tuple[int, Packet]]:
    """Yield (UTC nanoseconds, packet) of every IP packet in a capture, in order."""
    for at_ns, length, frame in frames(path):
        kind = int.from_bytes(frame[12:14], "big")
        if kind == _IPV4:
            packet = _ipv4(frame)
        elif kind == _IPV6:
            packet = _ipv6(frame)
        else:
            continue
        if packet.ip_len > length - 14 or not packet.ip_len:
            raise CaptureError(f"{path}: a length that is not the wire's (offloads on?): {packet}")
        yield at_ns, packet


def flows(path: Path) -> list[Packet]:
    """Return every IP packet in a capture, in order."""
    return [packet for _, packet in timed(path)]


def sum_ip(path: Path, match: Callable[[Packet], bool] = lambda _: True) -> Count:
    """Sum the IP packets of a capture for which `match` holds."""
    lengths = [packet.ip_len for packet in flows(path) if match(packet)]
    return Count(len(lengths), sum(lengths))


def _ipv4(frame: bytes) -> Packet:
    size = (frame[14] & 15) * 4
    first = not int.from_bytes(frame[20:22], "big") & 0x1FFF
    sport, dport = _ports(frame, 14 + size, frame[23]) if first else (0, 0)
    length = int.from_bytes(frame[16:18], "big")
    source, destination = _text(frame[26:30]), _text(frame[30:34])
    return Packet(source, destination, frame[23], sport, dport, length, frame[15])


def _ipv6(frame: bytes) -> Packet:
    proto, at, first = frame[20], 54, True
    while (proto in _EXTENSIONS or proto == _FRAGMENT) and at + 8 <= len(frame):
        if proto == _FRAGMENT:
            first = not int.from_bytes(frame[at + 2 : at + 4], "big") & 0xFFF8
        size = 8 if proto == _FRAGMENT else frame[at + 1] * 8 + 8
        proto, at = frame[at], at + size
        if not first:
            break
    sport, dport = _ports(frame, at, proto) if first else (0, 0)
    length = 40 + int.from_bytes(frame[18:20], "big")
    source, destination = _text(frame[22:38]), _text(frame[38:54])
    word = int.from_bytes(frame[14:18], "big")
    marks = word >> 20 & 0xFF, word & 0xFFFFF
    return Packet(source, destination, proto, sport, dport, length, *marks)


def _ports(frame: bytes, at: int, proto: int) -> tuple[int, int]:
    if proto not in _WITH_PORTS or at + 4 > len(frame):
        return 0, 0
    sport, dport = struct.unpack_from("!HH", frame, at)
    return sport, dport


@lru_cache(maxsize=1024)
def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
