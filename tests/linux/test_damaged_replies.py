"""What the kernel says, damaged, and names in it that users choose.

The kernel does not damage its messages. Yet lengths in them move these readers on, and processes,
mount points and control groups have the names that users gave them.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given

from lark_agent.errors import KernelError
from lark_agent.linux import cgroups, conntrack, local, process
from lark_agent.linux.mounts import mounts
from lark_agent.linux.netlink import Netlink, attribute, attributes
from tests.conftest import LIBC, check, mount
from tests.mutating import damaged

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts")
PR_SET_NAME = 15
LINE = "\u2028"
"""Ends a line for str.splitlines(), and is an ordinary character for the kernel."""


def message(kind: int, body: bytes, sequence: int = 1) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body


def route(packed: bytes, bits: int, table: int = 255, kind: int = 2) -> bytes:
    head = struct.pack("=BBBBBBBBI", 2, bits, 0, 0, table, 0, 0, kind, 0)
    return head + attribute(1, packed)


LOCAL4, LOCAL6 = route(bytes([192, 0, 2, 1]), 32), route(bytes(15) + b"\x02", 128)
TUPLE = attribute(1, attribute(1, bytes([10, 0, 0, 1])), nested=True)
CONNECTION = bytes(4) + attribute(1, TUPLE, nested=True) + attribute(12, b"\0\0\0\7")
DONE = message(3, struct.pack("=i", 0))
MOUNTS = b"""24 30 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
33 24 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
34 24 0:29 /part /mnt/with\\040space rw - cgroup2 cgroup2 rw
35 24 0:30 / /home/alice/x rw - fuse.sshfs alice@host:/ rw
"""


def replies(data: bytes) -> list[bytes]:
    """Read a dump from a socket on which these bytes arrive, and then the end."""
    netlink = Netlink(0)
    netlink.close()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    netlink._socket = ours
    with ours, theirs:
        theirs.send(data)
        for sequence in range(1, 6):  # an interrupted one is asked for again
            theirs.send(message(3, struct.pack("=i", 0), sequence))
        return netlink.dump(1, b"", "listing what a test sends")


@given(damaged((message(16, LOCAL4) + DONE, message(16, LOCAL6) + message(16, LOCAL4) + DONE)))
@example(struct.pack("=IHHII", 0, 16, 0, 9, 0))
def test_a_damaged_dump_ends(data: bytes) -> None:
    """With the messages that it has, or the error; no length keeps the reader where it is."""
    try:
        found = replies(data) if data else []
    except KernelError as error:
        assert "listing what a test sends" in str(error)  # noqa: PT017  either end is right
        return
    assert sum(map(len, found)) <= len(data)


@given(damaged((attribute(1, b"abcd") + attribute(2, b""), CONNECTION[4:])))
def test_damaged_attributes_end(data: bytes) -> None:
    """Payloads are slices of what came."""
    assert sum(4 + len(payload) for _, payload in attributes(data)) <= len(data) + 3


@given(damaged((LOCAL4, LOCAL6, route(bytes(4), 8, kind=3))))
@example(route(bytes([192, 0, 2, 1]), 24))
@example(route(bytes([192, 0, 2, 1]), 99))
@example(route(b"abc", 8))
@example(b"\2")
def test_a_damaged_route_is_a_network_or_none(data: bytes) -> None:
    """Also as an event: what is no route is passed over."""
    found: IPv4Network | IPv6Network | None = local._network(data)
    if found is not None:
        assert not found.is_multicast
    assert len(list(local._in_events(message(24, data)))) == (found is not None)


@given(damaged((CONNECTION, CONNECTION * 2)))
def test_a_damaged_connection_is_chosen_or_passed_over(data: bytes) -> None:
    """What is chosen has the wanted source."""
    wanted = {bytes([10, 0, 0, 1])}
    for original, entry, _ in conntrack._chosen([data], socket.AF_INET, 1, 1, wanted):
        assert original
        assert isinstance(entry, bytes)


@given(damaged((MOUNTS,)))
@example(MOUNTS.replace(b"alice/x", f"alice/x{LINE}y".encode()))
@example(MOUNTS.replace(b"alice/x", b"alice/\xff"))
def test_damaged_mounts_are_read(text: bytes) -> None:
    """Each has a place, whose options can be asked for, and a kind."""
    for each in mounts(os.fsdecode(text)):
        assert Path(each.point)
        assert each.kind
        assert each.options


def test_undamaged_samples_are_what_they_seem() -> None:
    """Each reader finds in them what is there."""
    assert replies(message(16, LOCAL4) + DONE) == [LOCAL4]
    assert str(local._network(LOCAL4)) == "192.0.2.1/32"
    read = [(each.root, each.point, each.kind) for each in mounts(os.fsdecode(MOUNTS))]
    assert read == [
        ("/", "/sys", "sysfs"),
        ("/", "/sys/fs/cgroup", "cgroup2"),
        ("/part", "/mnt/with space", "cgroup2"),
        ("/", "/home/alice/x", "fuse.sshfs"),
    ]
    wanted = {bytes([10, 0, 0, 1])}
    assert len(list(conntrack._chosen([CONNECTION], socket.AF_INET, 1, 1, wanted))) == 1


@needs_root
@pytest.mark.parametrize("name", [f"a{LINE}b".encode(), b"a\x1cb", b"a\xffb", b"a b"])
def test_a_mount_point_of_any_name_hides_nothing(fresh_host: Path, name: bytes) -> None:
    """Users with fusermount3 choose them; the hierarchy is found all the same."""
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
    place = os.fsencode(fresh_host) + b"/" + name
    os.mkdir(place)  # noqa: PTH102  bytes, some of them no text
    check(LIBC.mount(b"x", place, b"tmpfs", 0, None), "mount a tmpfs")
    assert cgroups.mount() == Path("/sys/fs/cgroup")


def test_a_process_of_any_name_is_whose_it_is() -> None:
    """A name that looks like more lines of /proc/PID/status is a name."""
    code = (
        f"import ctypes, sys; ctypes.CDLL(None).prctl({PR_SET_NAME}, sys.argv[1].encode()); input()"
    )
    for name in (f"x{LINE}Name:\tudhcpc", f"x{LINE}Uid:\t0", "x\x1cUid:\t0"):
        with subprocess.Popen(
            ["/usr/bin/python3", "-ISc", f"{code}", name], stdin=subprocess.PIPE
        ) as child:
            assert child.stdin
            comm = Path(f"/proc/{child.pid}/comm")
            while comm.read_text().rstrip("\n") != name.encode()[:15].decode(errors="replace"):
                assert child.poll() is None
            assert process.command_and_user(child.pid) == (
                name.encode()[:15].decode(errors="replace"), os.geteuid(),
            )  # fmt: skip
            child.stdin.close()
