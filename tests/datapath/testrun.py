"""One packet through one program, without a network: BPF_PROG_TEST_RUN (kernel: bpf/test_run)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from lark_agent.linux import bpf

_TEST_RUN = 10
_SK_BUFF_SIZE = 192
_IFINDEX, _GSO_SEGS, _GSO_SIZE = 40, 164, 176  # offsets in struct __sk_buff
PASSED, DROPPED = 0xFFFFFFFF, 2  # TC_ACT_UNSPEC (to the next filter), TC_ACT_SHOT


class Frame(NamedTuple):
    """A frame, and how the kernel would mark it."""

    data: bytes
    gso_size: int = 0
    gso_segs: int = 0


def run(program: int, frame: Frame, ifindex: int, repeat: int = 1) -> tuple[int, int]:
    """Return (verdict, mean ns) of a program for a frame that arrives at an interface."""
    context = bytearray(_SK_BUFF_SIZE)
    struct.pack_into("=I", context, _IFINDEX, ifindex)
    struct.pack_into("=I", context, _GSO_SEGS, frame.gso_segs)
    struct.pack_into("=I", context, _GSO_SIZE, frame.gso_size)
    attributes = bytearray(
        struct.pack(
            "=IIIIQQIIIIQQIII4x",
            *(program, 0, len(frame.data), 0, bpf.address_of(frame.data), 0, repeat, 0),
            *(len(context), 0, bpf.address_of(context), 0, 0, 0, 0),
        )
    )
    bpf.bpf(_TEST_RUN, attributes, "run a program")
    return struct.unpack_from("=I", attributes, 4)[0], struct.unpack_from("=I", attributes, 36)[0]
