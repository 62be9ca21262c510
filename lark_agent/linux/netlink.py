"""Plain netlink requests for the two families where whole dumps are read and echoed.

Connection tracking and socket diagnostics can hold tens of thousands of entries; decoding each
into objects (pyroute2: about 0.3 ms) would stall the agent. Here a dump yields raw messages and the
callers slice the few bytes they need. Interfaces, addresses and routes go through pyroute2
(`lark_agent.linux.links`).
"""

from __future__ import annotations

import os
import socket
import struct
from itertools import islice
from typing import TYPE_CHECKING

from lark_agent.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x01, 0x04, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_DUMP_INTR = 0x10
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_DUMP_ATTEMPTS = 5


class Interrupted(Exception):  # noqa: N818  control flow inside this module's dump()
    """The table changed while it was dumped."""


class Netlink:
    """One netlink socket of a protocol, in the network namespace of the thread that opens it."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def dump(self, kind: int, body: bytes, tried: str) -> list[bytes]:
        """Return the bodies of all messages of a dump; one flagged as interrupted is repeated."""
        for _ in range(_DUMP_ATTEMPTS):
            try:
                return list(self._exchange(kind, NLM_F_DUMP, body, tried))
            except Interrupted:
                continue
        raise KernelError(tried, f"the table changed during {_DUMP_ATTEMPTS} readings in a row")

    def some(self, kind: int, body: bytes, most: int, tried: str) -> list[bytes]:
        """Return the bodies of the first messages of a dump; the rest is never asked for.

        For dumps whose length is somebody else's choice. The socket is of no more use after.
        """
        return list(islice(self._exchange(kind, NLM_F_DUMP, body, tried), most))

    def call(self, kind: int, body: bytes, tried: str, flags: int = 0) -> None:
        """Send one request and wait for its acknowledgement."""
        for _ in self._exchange(kind, NLM_F_ACK | flags, body, tried):
            pass

    def _exchange(self, kind: int, flags: int, body: bytes, tried: str) -> Iterator[bytes]:
        self._sequence += 1
        header = _HEADER.pack(
            _HEADER.size + len(body), kind, NLM_F_REQUEST | flags, self._sequence, 0
        )
        self._socket.send(header + body)
        interrupted = False
        while True:
            data = self._socket.recv(1 << 17)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, got, got_flags, sequence, _ = _HEADER.unpack_from(data, offset)
                if length < _HEADER.size:
                    raise KernelError(tried, f"a message of {length} bytes, which has no header")
                message = data[offset + _HEADER.size : offset + length]
                offset += (length + 3) & ~3
                if sequence != self._sequence:
                    continue  # the rest of an exchange that was given up
                interrupted |= bool(got_flags & NLM_F_DUMP_INTR)
                if got in {_ERROR, _DONE}:
                    number = -struct.unpack_from("=i", message)[0] if len(message) >= 4 else 0
                    if number:
                        raise KernelError(tried, os.strerror(number), number=number)
                    if interrupted:
                        raise Interrupted
                    return
                yield message


def attribute(kind: int, payload: bytes, *, nested: bool = False) -> bytes:
    """Pack one netlink attribute."""
    length = 4 + len(payload)
    return (
        struct.pack("=HH", length, kind | (0x8000 if nested else 0))
        + payload
        + b"\0" * (-length % 4)
    )


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, payload) of consecutive attributes."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
