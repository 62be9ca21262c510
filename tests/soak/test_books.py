"""What the soak compares: a wrong record is seen even where all sums are right."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from lark_agent.model import Count
from tests.lab.topology import CAMPUS, WORKER
from tests.soak.books import compare

if TYPE_CHECKING:
    from pathlib import Path

PREFIXES = ("198.18.7.0/24",)
FIRST, SECOND = 1_000_000_000, 5_000_000_000
"""When a slot was given to one job, and to the next."""
UDP = 17


def frame(source: str, destination: str, ports: tuple[int, int], length: int) -> bytes:
    """Return the headers of a datagram whose IP packet has some length."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    ip = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, 64, UDP, 0) + addresses
    return bytes(12) + b"\x08\x00" + ip + struct.pack("!HHHH", *ports, length - 20, 0)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Two jobs of one slot, one after the other, and a routed one."""
    seen = [
        (FIRST + 1_000_000, frame(WORKER.ipv4, CAMPUS.ipv4, (20_000, 9), 100)),
        (FIRST + 2_000_000, frame(CAMPUS.ipv4, WORKER.ipv4, (9, 20_000), 60)),
        (SECOND + 1_000_000, frame(WORKER.ipv4, CAMPUS.ipv4, (20_000, 9), 100)),
        (SECOND + 1_000_000, frame("198.18.7.9", CAMPUS.ipv4, (20_000, 9), 70)),
        (SECOND + 1_000_000, frame(CAMPUS.ipv4, "198.51.100.1", (9, 20_000), 70)),
    ]
    data = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for at_ns, octets in seen:
        seconds, rest = divmod(at_ns, 1_000_000_000)
        wire = int.from_bytes(octets[16:18], "big") + 14
        data += struct.pack("=IIII", seconds, rest // 1000, len(octets), wire) + octets
    file = tmp_path / "campus.pcap"
    file.write_bytes(data)
    return file


def job(name: str, started_ns: int, sent: Count, received: Count = Count(), **more: Any) -> Any:  # noqa: B008  Count is frozen
    """Return a record as `lark jobs --json` has it."""
    moved = {
        "class": "campus",
        "sent": {"packets": sent.packets, "bytes": sent.bytes},
        "received": {"packets": received.packets, "bytes": received.bytes},
    }
    return {
        "attachment_id": name, "connectivity": "nat", "started_ns": started_ns, "ipv4": "",
        "ipv6": "", "first_port": 20_000, "last_port": 20_099, "classes": [moved], **more,
    }  # fmt: skip


ONE = job("one", FIRST, Count(1, 100), Count(1, 60))
TWO = job("two", SECOND, Count(1, 100))
ROUTED = job(
    "routed", FIRST, Count(1, 70), connectivity="routed", ipv4="198.18.7.9", first_port=0
)  # fmt: skip


def test_books_that_equal_the_wire(capture: Path) -> None:
    """Ports, addresses and times tell whose each packet was; what is not ours is left out."""
    found = compare([ROUTED, TWO, ONE], {"campus": capture}, PREFIXES)
    assert found.wrong == ()
    assert (found.records, found.difference) == (3, Count())
    assert (found.sent, found.received) == (Count(3, 270), Count(1, 60))


@pytest.mark.parametrize(
    ("records", "difference"),
    [
        pytest.param(
            [job("one", FIRST, Count(1, 90), Count(1, 60)), job("two", SECOND, Count(1, 110))],
            Count(0, 20), id="bytes of one in another's record",
        ),
        pytest.param(
            [job("one", FIRST, Count(1, 100)), job("two", SECOND, Count(1, 100), Count(1, 60))],
            Count(2, 120), id="an answer in the next job's record",
        ),
        pytest.param(
            [job("one", FIRST, Count(1, 60), Count(1, 100)), TWO],
            Count(0, 80), id="directions changed over",
        ),
        pytest.param([TWO], Count(2, 160), id="a record that is missing"),
    ],
)  # fmt: skip
def test_sums_that_are_right_hide_nothing(
    capture: Path, records: list[Any], difference: Count
) -> None:
    """Each record is compared for itself."""
    found = compare([*records, ROUTED], {"campus": capture}, PREFIXES)
    assert found.difference == difference
    assert found.wrong


def test_a_packet_in_another_class_is_a_difference(capture: Path) -> None:
    """Where it was seen is its class."""
    found = compare([ROUTED, TWO, ONE], {"other": capture}, PREFIXES)
    assert found.difference == Count(8, 660)
