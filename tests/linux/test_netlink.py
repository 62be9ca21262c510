"""The plain netlink socket: dumps that change under the reader, errors, answers to others."""

from __future__ import annotations

import socket
import struct
from collections import deque

import pytest

from lark_agent.errors import KernelError
from lark_agent.linux.netlink import NLM_F_DUMP_INTR, Netlink, attribute, attributes

ERROR, DONE, DATA = 2, 3, 16


class Kernel:
    """Answers requests from a script: per request, messages of (type, flags, body)."""

    def __init__(self, *answers: list[tuple[int, int, bytes]]) -> None:
        self.answers = deque(answers)
        self.requests: list[bytes] = []
        self._data: deque[bytes] = deque()

    def send(self, request: bytes) -> None:
        self.requests.append(request)
        (sequence,) = struct.unpack_from("=I", request, 8)
        for kind, flags, body in self.answers.popleft():
            self._data.append(message(kind, flags, sequence, body))

    def recv(self, _size: int) -> bytes:
        return self._data.popleft()

    def close(self) -> None:
        pass


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    padded = body + b"\0" * (-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + padded


def talking_to(kernel: Kernel) -> Netlink:
    netlink = Netlink(socket.NETLINK_ROUTE)
    netlink._socket.close()
    netlink._socket = kernel  # type: ignore[assignment]  # the script in place of the kernel
    return netlink


DONE_WELL = (DONE, 0, struct.pack("=i", 0))


def test_an_interrupted_dump_is_read_again() -> None:
    """Half a table and half of another is nobody's answer: the dump is repeated."""
    kernel = Kernel(
        [(DATA, 0, b"old1"), (DATA, NLM_F_DUMP_INTR, b"new2"), DONE_WELL],
        [(DATA, 0, b"new1"), (DATA, 0, b"new2"), DONE_WELL],
    )
    assert talking_to(kernel).dump(1, b"", "listing") == [b"new1", b"new2"]
    assert len(kernel.requests) == 2


def test_a_table_that_never_rests_is_an_error() -> None:
    """After five interrupted readings the caller is told."""
    kernel = Kernel(*[[(DATA, NLM_F_DUMP_INTR, b"half"), DONE_WELL]] * 5)
    with pytest.raises(KernelError, match="listing: the table changed during 5 readings"):
        talking_to(kernel).dump(1, b"", "listing")


def test_refusals_are_errors_with_the_kernels_word() -> None:
    """An error message, also in the place of the end of a dump, is raised."""
    for kind in (ERROR, DONE):
        kernel = Kernel([(DATA, 0, b"some"), (kind, 0, struct.pack("=i", -1))])
        with pytest.raises(KernelError, match="listing: Operation not permitted"):
            talking_to(kernel).dump(1, b"", "listing")


def test_answers_to_an_earlier_request_are_skipped() -> None:
    """What is left of an exchange that was given up does not end up in the next."""
    kernel = Kernel([(ERROR, 0, struct.pack("=i", -2))], [(DATA, 0, b"mine"), DONE_WELL])
    netlink = talking_to(kernel)
    with pytest.raises(KernelError):
        netlink.call(1, b"", "asking")
    kernel._data.append(message(DATA, 0, 1, b"late"))
    assert netlink.dump(1, b"", "listing") == [b"mine"]


def test_attributes_survive_packing() -> None:
    """Attributes of any length come back, nested or not; a length of nonsense ends the list."""
    packed = (
        attribute(1, b"a") + attribute(2, b"") + attribute(3, attribute(4, b"12345"), nested=True)
    )
    assert len(packed) % 4 == 0
    found = dict(attributes(packed))
    assert found[1] == b"a"
    assert found[2] == b""
    assert dict(attributes(found[3])) == {4: b"12345"}
    assert list(attributes(struct.pack("=HH", 2, 1) + b"rest")) == []


def test_the_kernel_itself_answers() -> None:
    """A dump of interfaces has the loopback in it, and a senseless request is refused."""
    with Netlink(socket.NETLINK_ROUTE) as netlink:
        links = netlink.dump(18, struct.pack("=BxHiII", 0, 0, 0, 0, 0), "listing interfaces")
        assert any(b"lo\0" in link for link in links)
        with pytest.raises(KernelError, match="asking nonsense"):
            netlink.call(17, struct.pack("=BxHiII", 0, 0, 999_999, 0, 0), "asking nonsense")


def test_of_a_long_dump_only_as_much_is_read_as_was_wanted() -> None:
    """What the kernel still has to say is not asked for."""
    kernel = Kernel([(DATA, 0, b"a"), (DATA, 0, b"b"), (DATA, 0, b"c"), DONE_WELL])
    assert talking_to(kernel).some(1, b"", 2, "reading") == [b"a", b"b"]
    assert len(kernel._data) == 2
