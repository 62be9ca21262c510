"""The agent's end of the run socket's wire, against callers of every kind."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lark_agent.errors import InvalidRequest, PolicyRefusal, Unavailable
from lark_agent.hooks import request as wire

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = struct.pack("<4sHH", b"LARK", 1, 0)
SEALS = 0x1 | 0x2 | 0x4 | 0x8


def field(kind: int, payload: bytes) -> bytes:
    return struct.pack("<HH", kind, len(payload)) + payload


def memory(content: bytes, seals: int = SEALS) -> int:
    import fcntl  # noqa: PLC0415  only here

    descriptor = os.memfd_create("ad", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(descriptor, content)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_a_complete_request_arrives_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    """Command, naming environment, options and ads come out as they went in."""
    ours, theirs = pair
    ads = [memory(b'Owner = "alice"\n'), memory(b"Cpus = 8\n")]
    data = HEADER + b"".join(
        [
            field(1, b"/bin/job"), field(2, b"_CONDOR_SLOT=slot1_2"), field(2, b"SLURM_JOB_ID="),
            field(3, b"profile=none"), field(4, b"j"), field(4, b"m"),
        ]
    )  # fmt: skip
    socket.send_fds(theirs, [data], ads)
    request = wire.receive(ours)
    assert request == wire.RunRequest(
        "/bin/job", {"_CONDOR_SLOT": "slot1_2", "SLURM_JOB_ID": ""}, {"profile": "none"},
        b'Owner = "alice"\n', b"Cpus = 8\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"LAR", "shorter than its header"),
        (b"GET / HTTP/1.1\r\n", "does not start with LARK"),
        (struct.pack("<4sHH", b"LARK", 9, 0), "version 9"),
        (struct.pack("<4sHH", b"LARK", 1, 2), "flags 2"),
        (HEADER + b"\x01", "ends inside a field"),
        (HEADER + struct.pack("<HH", 1, 500) + b"x", "longer than the request"),
        (HEADER + field(77, b""), "unknown type 77"),
        (HEADER + field(2, b"no equals sign"), "not NAME=value"),
        (HEADER + field(4, b"j"), "names 1 files and carries 0"),
    ],
)
def test_malformed_requests_are_refused_by_name(data: bytes, word: str) -> None:
    """The refusal says which rule of the wire was broken."""
    with pytest.raises(InvalidRequest, match=word):
        wire.decode(data, [])


def test_an_oversized_request_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    """A datagram beyond the limit is not read in part."""
    ours, theirs = pair
    theirs.send(HEADER + field(1, b"x" * 60000))
    with pytest.raises(InvalidRequest, match="over 16384 bytes"):
        wire.receive(ours)


def test_too_many_descriptors_are_refused_and_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A caller cannot fill the agent's descriptor table."""
    ours, theirs = pair
    before = len(list(Path("/proc/self/fd").iterdir()))
    many = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
    socket.send_fds(theirs, [HEADER], many)
    for descriptor in many:
        os.close(descriptor)
    with pytest.raises(InvalidRequest, match="over 4 descriptors"):
        wire.receive(ours)
    # they are closed aside, where it may take its time
    until = time.monotonic() + 10
    while len(list(Path("/proc/self/fd").iterdir())) > before and time.monotonic() < until:
        time.sleep(0.01)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_only_sealed_memory_is_read(tmp_path: Path) -> None:
    """Files, pipes, devices and memory that can still change are refused unread."""
    (tmp_path / "ad").write_text('Owner = "alice"\n')
    os.mkfifo(tmp_path / "fifo")
    suspects = [
        os.open(tmp_path / "ad", os.O_RDONLY),
        os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK),
        os.open("/dev/zero", os.O_RDONLY),
        memory(b"A = 1\n", seals=0x2),
    ]
    for suspect in suspects:
        with pytest.raises(InvalidRequest):
            wire.decode(HEADER + field(4, b"j"), [suspect])
        os.close(suspect)


def test_a_large_ad_and_a_repeated_kind_are_refused() -> None:
    """One job ad, of at most a megabyte."""
    large, small = memory(b"x" * (1 << 20) + b"y"), memory(b"A = 1\n")
    with pytest.raises(InvalidRequest, match="over 1048576 bytes"):
        wire.decode(HEADER + field(4, b"j"), [large])
    with pytest.raises(InvalidRequest, match="repeated"):
        wire.decode(HEADER + field(4, b"j") + field(4, b"j"), [small, small])
    os.close(large)
    os.close(small)


def test_closing_without_a_request_is_not_an_error(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A caller that changes its mind leaves no trace."""
    ours, theirs = pair
    theirs.close()
    assert wire.receive(ours) is None


def test_refusals_fit_the_wire_and_name_their_kind(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """One line, cut to the limit, with the status of the decision."""
    ours, theirs = pair
    for error, status in [
        (InvalidRequest("bad\nrequest"), 1), (PolicyRefusal("no"), 2), (Unavailable("later"), 3),
        (RuntimeError("boom " * 1000), 4),
    ]:  # fmt: skip
        wire.send_refusal(ours, error)
        answer = theirs.recv(4096)
        assert len(answer) <= wire.MAX_REPLY
        assert struct.unpack_from("<4sHH", answer) == (b"LARK", 1, status)
        assert b"\n" not in answer


def test_what_a_user_writes_cannot_forge_a_log_line() -> None:
    """Control characters of the command and environment are replaced."""
    request = wire.decode(HEADER + field(1, b"a\nb\x1b[2J") + field(2, b"A=\r\n"), [])
    assert "\n" not in request.command
    assert "\x1b" not in request.command
    assert request.environment["A"].isprintable()


@given(st.binary(max_size=300))
def test_no_datagram_breaks_the_decoder(data: bytes) -> None:
    """Any bytes are a request or refused as invalid."""
    for candidate in (data, HEADER + data):
        try:
            wire.decode(candidate, [])
        except InvalidRequest:
            continue
