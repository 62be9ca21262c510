"""One packet through one program, without a network: BPF_PROG_TEST_RUN (kernel: bpf/test_run)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from lark_agent.linux import bpf

_TEST_RUN = 10
_SK_BUFF_SIZE = 192
_MARK, _PRIORITY = 8, 32
_IFINDEX, _GSO_SEGS, _GSO_SIZE = 40, 164, 176  # offsets in struct __sk_buff
PASSED, DROPPED = 0xFFFFFFFF, 2  # TC_ACT_UNSPEC (to the next filter), TC_ACT_SHOT


class Frame(NamedTuple):
    """A frame, and how the kernel would mark it."""

    data: bytes
    gso_size: int = 0
    gso_segs: int = 0


class Outcome(NamedTuple):
    """What a program made of a frame."""

    verdict: int
    nanoseconds: int
    """Mean of the repetitions."""
    data: bytes
    priority: int
    mark: int


def run(program: int, frame: Frame, ifindex: int, repeat: int = 1) -> tuple[int, int]:
    """Return (verdict, mean ns) of a program for a frame that arrives at an interface."""
    return outcome(program, frame, ifindex, repeat)[:2]


def outcome(program: int, frame: Frame, ifindex: int, repeat: int = 1) -> Outcome:
    """Run a program for a frame that arrives at an interface."""
    context, after = bytearray(_SK_BUFF_SIZE), bytearray(_SK_BUFF_SIZE)
    struct.pack_into("=I", context, _IFINDEX, ifindex)
    struct.pack_into("=I", context, _GSO_SEGS, frame.gso_segs)
    struct.pack_into("=I", context, _GSO_SIZE, frame.gso_size)
    data = bytearray(len(frame.data) + 64)
    attributes = bytearray(
        struct.pack(
            "=IIIIQQIIIIQQIII4x",
            *(program, 0, len(frame.data), len(data), bpf.address_of(frame.data)),
            *(bpf.address_of(data), repeat, 0, len(context), len(after)),
            *(bpf.address_of(context), bpf.address_of(after), 0, 0, 0),
        )
    )
    bpf.bpf(_TEST_RUN, attributes, "run a program")
    verdict, _, size = struct.unpack_from("=III", attributes, 4)
    nanoseconds = struct.unpack_from("=I", attributes, 36)[0]
    mark, priority = (struct.unpack_from("=I", after, at)[0] for at in (_MARK, _PRIORITY))
    return Outcome(verdict, nanoseconds, bytes(data[:size]), priority, mark)
