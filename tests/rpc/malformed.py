"""HTTP/2 and gRPC as nobody who means well speaks them, for any server that listens.

An attack is what is sent after connecting: frames of RFC 9113 that lie, never end or never stop,
and messages that lie within frames that are right. Frames are made here by hand, because a library
for HTTP/2 would not make most of them; headers are literals (RFC 7541, 6.2.2), which every
server takes. An attack is bounded by its own length, and by `BLOCKED_SECONDS` in which the
server takes none of it. Where `refused` is set, the server has to end the connection.

`noise` is not a list: the conversation of an honest client, with bytes changed, left out and
repeated by a seeded generator.

As a program, `python -m tests.rpc.malformed SEED SERVICE/METHOD ADDRESS [IDENTITY]`, it makes all
attacks, `AT_ONCE` of them at a time, each on a connection of its own, says how each ended (one JSON
object), and keeps the last connections until it is killed. ADDRESS is the path of a unix socket or
host:port, which speaks TLS if IDENTITY is given: an agent's file, or "-" for a stranger.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import ssl
import struct
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lark_agent.trust.identity import COLLECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BLOCKED_SECONDS = 3.0
PATIENCE_SECONDS = 20.0
"""In which a server ends what it does not take; generous, for busy machines."""
CHUNK = 16_000
AT_ONCE = 16
"""Connections: those just closed may still count for a front door that lets a user have 32."""


@dataclass(frozen=True, slots=True)
class Attack:
    """What is sent; `refused` if no server may let the connection stand, `reads` answers or not."""

    name: str
    chunks: Iterable[bytes]
    refused: bool = False
    reads: bool = True


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int = -1) -> bytes:
    """Return a frame, which may say another length than it has."""
    size = len(payload) if length < 0 else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str, index: int = 0x00) -> bytes:
    """Return a header: 0x00 is not indexed, 0x40 is put into the dynamic table."""
    parts = name.encode("latin1"), value.encode("latin1")
    return bytes([index]) + b"".join(_integer(len(part)) + part for part in parts)


def message(body: bytes, length: int = -1, flag: int = 0) -> bytes:
    """Return a message of gRPC, which may say another length than it has."""
    return struct.pack(">BI", flag, len(body) if length < 0 else length) + body


def asking(path: str) -> bytes:
    """Return the headers of an honest call."""
    named = {
        ":method": "POST", ":scheme": "http", ":path": f"/{path}", ":authority": "localhost",
        "te": "trailers", "content-type": "application/grpc",
    }  # fmt: skip
    return b"".join(literal(name, value) for name, value in named.items())


def attacks(path: str, seed: str, noises: int = 4) -> Iterator[Attack]:
    """Yield all there are, on a method's path ("lark.v1.Query/ListJobs")."""
    yield from _beginnings(seed)
    yield from _frames(path)
    yield from _headers(path)
    yield from _floods(path)
    yield from _messages(path)
    for number in range(noises):
        yield Attack(f"noise {number}", noise(path, random.Random(f"{seed}.{number}")))


def _beginnings(seed: str) -> Iterator[Attack]:
    at_random = random.Random(seed)
    yield Attack("nothing", [b""])
    yield Attack("random bytes", [at_random.randbytes(100_000)], refused=True)
    yield Attack("HTTP/1.1", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], refused=True)
    yield Attack("half a preface", [PREFACE[:11]])
    yield Attack("preface, then garbage", [PREFACE, b"\xff" * 100_000], refused=True)
    yield Attack("another frame than SETTINGS first", [PREFACE, frame(PING, 0, 0, bytes(8))])


def _frames(path: str) -> Iterator[Attack]:
    """Frames whose length, stream or form is wrong."""
    call = frame(HEADERS, END_HEADERS, 1, asking(path))
    wrong = {
        "a frame of 16 MiB": frame(DATA, 0, 1, bytes(100_000), length=2**24 - 1),
        "a length with its highest bit set": frame(DATA, 0, 1, bytes(100), length=2**23),
        "SETTINGS of five bytes": frame(SETTINGS, 0, 0, bytes(5)),
        "SETTINGS of a stream": frame(SETTINGS, 0, 1, bytes(6)),
        "an answer to SETTINGS with more in it": frame(SETTINGS, ACK, 0, bytes(6)),
        "a window of 4 GiB": frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**32 - 1)),
        "PING of seven bytes": frame(PING, 0, 0, bytes(7)),
        "a window grown by nothing": frame(WINDOW, 0, 0, bytes(4)),
        "RST_STREAM of three bytes": frame(RESET, 0, 1, bytes(3)),
        "DATA of no stream": frame(DATA, 0, 0, b"x"),
        "CONTINUATION of nothing": frame(CONTINUATION, END_HEADERS, 1, asking(path)),
        "more padding than frame": call + frame(DATA, PADDED, 1, b"\xff" + bytes(9)),
        "HEADERS in the middle of HEADERS": frame(HEADERS, 0, 1, asking(path)) + call,
    }
    lenient = {"DATA of no stream", "more padding than frame"}
    for name, sent in wrong.items():
        yield Attack(name, [opening(), sent], refused=name not in lenient)


def _headers(path: str) -> Iterator[Attack]:
    """Header blocks that do not end, refer to nothing, or are larger than they look."""
    yield Attack("HEADERS without an end", [opening(), frame(HEADERS, 0, 1, asking(path))])
    more = frame(CONTINUATION, 0, 1, literal("x", "y" * 1000) * 10)
    yield Attack("CONTINUATION for ever", _many(frame(HEADERS, 0, 1, asking(path)), more, 1000))
    empty = frame(CONTINUATION, 0, 1) * 1000
    yield Attack("empty CONTINUATION", _many(frame(HEADERS, 0, 1, asking(path)), empty, 100))
    # one entry of 4000 bytes in the dynamic table (index 62), then 100,000 references to it
    bomb = literal("x", "y" * 3900, index=0x40) + b"\xbe" * 12_000
    rest = frame(CONTINUATION, 0, 1, b"\xbe" * CHUNK)
    yield Attack("a bomb of headers", _many(frame(HEADERS, 0, 1, bomb), rest, 20))
    for name, block in (
        ("an index of nothing", b"\xff\xff\xff\xff\x0f"),
        ("an integer without an end", b"\xff" * 1000),
        ("Huffman that is none", b"\x00\x84\xff\xff\xff\xff\x84\xff\xff\xff\xff"),
        ("a string that is longer than its frame", b"\x00\x7f\xff\xff\x03"),
        ("a table of 4 GiB", b"\x3f\xe1\xff\xff\xff\x0f"),
    ):
        yield Attack(name, [opening(), frame(HEADERS, END_HEADERS, 1, block)])
    many = b"".join(literal(f"k{n}", "v") for n in range(1500))
    yield Attack("1500 headers", [opening(), frame(HEADERS, END_HEADERS, 1, asking(path) + many)])
    for name, other in {
        "a path that is no text": path[:-2] + "\xff\xfe",
        "a path with a zero in it": path + "\0",
        "a path of 8000 bytes": path + "x" * 8000,
    }.items():
        call = frame(HEADERS, END_HEADERS | END_STREAM, 1, asking(other))
        yield Attack(name, [opening(), call])
    yield Attack("no path", [opening(), frame(HEADERS, END_HEADERS, 1, literal("te", "trailers"))])


def _floods(path: str) -> Iterator[Attack]:
    """More of what is right than anybody needs."""
    settings = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)) * 500
    for reads in (True, False):
        how = "read" if reads else "not read"
        yield Attack(f"SETTINGS, answers {how}", _many(b"", settings, 200), reads=reads)
        pings = frame(PING, 0, 0, bytes(8)) * 500
        yield Attack(f"PING, answers {how}", _many(b"", pings, 200), reads=reads)
    headers = asking(path)
    reset = struct.pack(">I", 8)
    for name, calls in {
        "calls that are given up": (
            frame(HEADERS, END_HEADERS, n, headers) + frame(RESET, 0, n, reset) for n in _streams()
        ),
        "calls that ask nothing": (frame(HEADERS, END_HEADERS, n, headers) for n in _streams()),
        "calls whose answers are not read": (
            frame(HEADERS, END_HEADERS, n, headers) + frame(DATA, END_STREAM, n, message(b""))
            for n in _streams()
        ),
        "watches": (
            frame(HEADERS, END_HEADERS, n, asking("grpc.health.v1.Health/Watch"))
            + frame(DATA, END_STREAM, n, message(b""))
            for n in _streams()
        ),
    }.items():
        unread = "not read" in name
        yield Attack(name, itertools.chain([opening()], _joined(calls)), reads=not unread)
    priorities = frame(PRIORITY, 0, 1, struct.pack(">IB", 3, 7)) * 500
    yield Attack("PRIORITY", _many(b"", priorities, 200))
    unknown = frame(0xEE, 0xFF, 7, bytes(1000)) * 15
    yield Attack("frames of no kind", _many(b"", unknown, 200))


def _messages(path: str) -> Iterator[Attack]:
    """Right frames, with messages of gRPC in them that are not."""
    start = opening() + frame(HEADERS, END_HEADERS, 1, asking(path))
    for name, sent in {
        "no protobuf": message(b"\xff" * 100),
        "a message that lacks most of itself": message(b"ab", length=1000),
        "a message of 4 GiB": message(bytes(1000), length=2**32 - 1),
        "a message that ends early": message(b"\n\x05hello", length=2),
        "compressed, and is not": message(b"\x1f\x8bjunk", flag=1),
        "a flag of its own": message(b"", flag=0xFE),
        "strings in strings": message(_nested(500)),
        "a length that is longer than the message": message(b"\n\xff\xff\xff\xff\x0f"),
    }.items():
        yield Attack(name, [start, frame(DATA, END_STREAM, 1, sent)])
    empty = frame(DATA, END_STREAM, 1, message(b""))
    yield Attack(
        "more after the end of a stream", [start, empty, *[empty, start[len(opening()) :]]]
    )
    even = frame(HEADERS, END_HEADERS, 2, asking(path))
    yield Attack("a stream with the server's number", [opening(), even])
    yield Attack("more than the window", [start, *[frame(DATA, 0, 1, bytes(16_000))] * 400])


def noise(path: str, at_random: random.Random) -> Iterator[bytes]:
    """Yield an honest conversation with some of its bytes changed, left out or repeated."""
    honest = bytearray(opening())
    for stream in range(1, 41, 2):
        honest += frame(HEADERS, END_HEADERS, stream, asking(path))
        honest += frame(DATA, END_STREAM, stream, message(b"\n\x02\x08\x01"))
    for _ in range(at_random.randint(1, 5)):
        # behind the preface, which other attacks spoil
        begin = at_random.randrange(len(PREFACE), len(honest))
        end = begin + at_random.randint(1, 12)
        piece = bytes(honest[begin:end])
        honest[begin:end] = at_random.choice(
            (at_random.randbytes(len(piece)), b"", piece * 2, piece[::-1], b"\xff" * len(piece))
        )
    yield bytes(honest)


def opening() -> bytes:
    """Return what a client begins with."""
    return PREFACE + frame(SETTINGS, 0, 0)


def _many(first: bytes, more: bytes, times: int) -> Iterator[bytes]:
    yield opening() + first
    yield from itertools.repeat(more, times)


def _streams(number: int = 5000) -> range:
    return range(1, 2 * number, 2)


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small frames, to send what a single write carries."""
    gathered = iter(pieces)
    while some := b"".join(itertools.islice(gathered, 100)):
        yield some


def _nested(depth: int) -> bytes:
    body = b""
    for _ in range(depth):
        body = b"\n" + _integer_of_protobuf(len(body)) + body
    return body


def _integer(number: int) -> bytes:
    """Encode a string's length with a prefix of seven bits (RFC 7541, 5.1)."""
    return bytes([number]) if number < 127 else b"\x7f" + _integer_of_protobuf(number - 127)


def _integer_of_protobuf(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _integer_of_protobuf(rest) if rest else bytes([low])


async def make(attack: Attack, address: str, tls: ssl.SSLContext | None) -> str:
    """Make an attack; returns "closed" by the server, "open", or "blocked" where it took no more.

    An open connection is left to the end of the process.
    """
    reader, writer = await _connected(address, tls)
    _kept.append(writer)
    # what nobody reads fills the stream's buffer, and then the server's
    reading = asyncio.create_task(_read(reader)) if attack.reads else None
    try:
        for chunk in attack.chunks:
            writer.write(chunk)
            await asyncio.wait_for(writer.drain(), BLOCKED_SECONDS)
    except TimeoutError:
        return "blocked"
    except OSError:
        return "closed"
    if reading is None:
        return "open"
    done, _ = await asyncio.wait([reading], timeout=PATIENCE_SECONDS if attack.refused else 0.2)
    return "closed" if done else "open"


_kept: list[asyncio.StreamWriter] = []


async def _connected(
    address: str, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("/"):
        return await asyncio.open_unix_connection(address)
    host, _, port = address.rpartition(":")
    name = COLLECTOR if tls else None
    return await asyncio.open_connection(host, int(port), ssl=tls, server_hostname=name)


async def _read(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(65_536):
            pass
    except OSError:
        pass  # closed, and not gently


def context(identity: str) -> ssl.SSLContext:
    """Return TLS as a worker with an identity has it, or as a stranger ("-") who trusts anybody."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.set_alpn_protocols(["h2"])
    if identity != "-":
        with open(identity, encoding="utf-8") as file, tempfile.NamedTemporaryFile("w") as both:  # noqa: PTH123
            held = json.load(file)
            both.write(held["key"] + held["certificate"])
            both.flush()
            made.load_cert_chain(both.name)
    return made


async def main(seed: str, path: str, address: str, identity: str = "") -> None:
    """Make all attacks, tell how they ended, and keep the last ones open until killed."""
    tls = context(identity) if identity else None
    ends: dict[str, str] = {}
    left = list(attacks(path, seed))
    while left:
        some, left = left[:AT_ONCE], left[AT_ONCE:]
        made = await asyncio.gather(*(make(attack, address, tls) for attack in some))
        ends |= zip((attack.name for attack in some), made, strict=True)
        while left and _kept:
            _kept.pop().transport.abort()
    print(json.dumps(ends), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
