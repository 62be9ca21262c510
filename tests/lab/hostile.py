"""What a hostile job tries, as a program that runs in its sandbox and tells how each attempt went.

Runs as ``python hostile.py CAMPUS4 CAMPUS6 INTERNET4 [--userns] NAME ...``: with the addresses of
the lab's far hosts (port 9 discards) and the names of attempts; prints JSON, name → "done" or the
kernel's refusal. With --userns it first becomes root of a user namespace of its own; with --forever
it says "begun" and tries again and again until it is killed. Standard library only: it runs without
the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

CAMPUS4, CAMPUS6, INTERNET4 = sys.argv[1:4] if len(sys.argv) > 3 else ("", "", "")
DISCARD = 9
IP_FREEBIND, IP_TRANSPARENT, IPV6_FREEBIND = 15, 19, 78
IPV6_RTHDR = 57
IPV6_FLOWLABEL_MGR, IPV6_FLOWINFO_SEND = 32, 33
LABEL = 0x5A5A5
EF = 0xB8
"""Expedited forwarding (RFC 3246), as the whole byte of the header."""
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
IFLA_GSO, IFLA_GSO_IPV4, RTM_SETLINK, NLM_F_REQUEST_ACK = 41, 63, 19, 5


def raw_socket() -> None:
    """Forge packets."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


def raw_socket6() -> None:
    """Forge neighbour discovery and router advertisements."""
    socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)


def tunnel() -> None:
    """Send IPv6 within IPv4 by hand."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPV6)


def packet_socket() -> None:
    """Forge frames: MAC, ARP, VLAN tags."""
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)


def dhcp_server() -> None:
    """Answer others' questions for an address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 67))


def mark() -> None:
    """Choose the routing and firewall rules of others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)


def precedence() -> None:
    """Jump the worker's queues."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 7)


def transparent() -> None:
    """Use an address that is not here, IPv4."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)


def own_address() -> None:
    """Give the interface another address."""
    _ip("address", "add", "203.0.113.77/32", "dev", "eth0")


def own_mac() -> None:
    """Give the interface another link-layer address."""
    _ip("link", "set", "eth0", "address", "02:00:00:00:00:99")


def own_route() -> None:
    """Route around."""
    _ip("route", "replace", "default", "dev", "eth0")


def own_qdisc() -> None:
    """Take the queue of the interface away."""
    _run("tc", "qdisc", "replace", "dev", "eth0", "root", "pfifo")


def own_filter() -> None:
    """Take the programs off the interface."""
    _run("tc", "qdisc", "delete", "dev", "eth0", "clsact")


def own_vlan() -> None:
    """Put a VLAN interface on top."""
    _ip("link", "add", "link", "eth0", "name", "tagged", "type", "macvlan")


def enter_worker() -> None:
    """Go where the batch system is."""
    with Path("/proc/1/ns/net").open("rb") as file:
        _libc("setns", file.fileno(), CLONE_NEWNET)


def sends_from_other_mac() -> None:
    """Be another machine on the link."""
    _ip("link", "set", "eth0", "address", "02:00:00:00:00:99")
    _say_something()


def sends_from_other_address() -> None:
    """Be another machine on the network."""
    _ip("address", "add", "203.0.113.77/32", "dev", "eth0")
    _say_something("203.0.113.77")


def sends_from_neighbour() -> None:
    """Be another job of this worker."""
    _ip("address", "add", "100.98.3.3/32", "dev", "eth0")
    _say_something("100.98.3.3")


def sends_tagged() -> None:
    """Be on another network of the switch."""
    _send_frame(b"\x81\x00" + b"\x00\x05" + b"\x08\x00" + bytes(50))


def sends_frames() -> None:
    """Speak something that is not IP."""
    _send_frame(b"\x88\xb5" + bytes(50))


def sends_giants() -> None:
    """Send by TCP in pieces that no length field of IP can tell (BIG TCP)."""
    sizes = b"".join(struct.pack("=HHI", 8, kind, 400_000) for kind in (IFLA_GSO, IFLA_GSO_IPV4))
    index = socket.if_nametoindex("eth0")
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0) + sizes
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(
            struct.pack("=IHHII", 16 + len(body), RTM_SETLINK, NLM_F_REQUEST_ACK, 1, 0) + body
        )
        (status,) = struct.unpack_from("=i", sock.recv(4096), 16)
    if status:
        raise OSError(-status, "RTM_SETLINK")
    head = "PUT /up HTTP/1.1\r\nHost: campus\r\nContent-Length: 25000000\r\n\r\n"
    for address in (CAMPUS4, CAMPUS6):
        with socket.create_connection((address, 80)) as sock:
            sock.sendall(head.encode() + bytes(25_000_000))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass


def _send_frame(body: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        sock.send(b"\xff" * 6 + sock.getsockname()[4] + body)


def _say_something(source: str = "") -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if source:
            sock.bind((source, 0))
        sock.sendto(b"something", (CAMPUS4, DISCARD))


def forged_dscp() -> None:
    """Claim precedence on the site's network."""
    for family, level, option, address in (
        (socket.AF_INET, socket.IPPROTO_IP, socket.IP_TOS, CAMPUS4),
        (socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPV6_TCLASS, CAMPUS6),
    ):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(level, option, EF)
            sock.sendto(b"dscp", (address, DISCARD))


def forged_label() -> None:
    """Claim another experiment's flow label."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        label = socket.htonl(LABEL)
        wanted = struct.pack(
            "=16sIBBHHHI", socket.inet_pton(socket.AF_INET6, CAMPUS6), label, 0, 255, 1, 0, 6, 0
        )
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FLOWLABEL_MGR, wanted)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FLOWINFO_SEND, 1)
        sock.sendto(b"label", (CAMPUS6, DISCARD, LABEL, 0))


def forged_source6() -> None:
    """Send from an address that is not the sandbox's."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        sock.bind(("2001:db8:2::66", 0))
        sock.sendto(b"source", (CAMPUS6, DISCARD))


def source_route() -> None:
    """Reach a class that is denied, by way of one that is not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        route = bytes([131, 7, 4]) + socket.inet_aton(INTERNET4) + bytes(1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
        sock.sendto(b"route", (CAMPUS4, DISCARD))


def segment_route6() -> None:
    """Do the same by IPv6, where any user may (RFC 8754); the last segment is denied."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        denied = socket.inet_pton(socket.AF_INET6, "2001:db8:3::10")
        way = denied + socket.inet_pton(socket.AF_INET6, CAMPUS6)
        header = struct.pack("!BBBBBBH", 0, len(way) // 8, 4, 1, 1, 0, 0) + way
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RTHDR, header)
        sock.sendto(b"route", (CAMPUS6, DISCARD))


def denied_fragments() -> None:
    """Hide the ports in fragments, and the class behind them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(bytes(4000), (INTERNET4, DISCARD))


def conntrack() -> None:
    """Fill the worker's table of connections."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(4000):
            with contextlib.suppress(BlockingIOError):
                sock.sendto(b"x", (CAMPUS4, 10_000 + number))


def neighbours() -> None:
    """Fill the worker's table of neighbours."""
    base = bytearray(socket.inet_aton("100.98.0.0"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(2000):
            base[2:] = divmod(number + 256, 256)
            sock.sendto(b"x", (socket.inet_ntoa(bytes(base)), DISCARD))


def ports() -> None:
    """Take every port there is."""
    held = []
    try:
        for _ in range(70_000):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            held.append(sock)
            sock.connect((CAMPUS4, DISCARD))
            sock.send(b"x")
    except OSError as error:
        if error.errno not in {errno.EADDRNOTAVAIL, errno.EAGAIN, errno.EMFILE}:
            raise


def packets() -> None:
    """Send as many packets as the worker takes, each as small as can be."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((CAMPUS4, DISCARD))
        for _ in range(1000):
            sock.send(b"x")


def connections() -> None:
    """Begin connections and give them up."""
    for number in range(200):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            sock.connect_ex((CAMPUS4, 10_000 + number))


def fragments() -> None:
    """Send what the worker has to put together before it can judge it."""
    for family, address in (socket.AF_INET, CAMPUS4), (socket.AF_INET6, CAMPUS6):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            for _ in range(20):
                sock.sendto(bytes(8000), (address, DISCARD))


def raw_sockets() -> None:
    """Ask for what forges, and do what any user may."""
    for attempt in (raw_socket, raw_socket6, tunnel, packet_socket, forged_source6, segment_route6):
        with contextlib.suppress(PermissionError):
            attempt()


def namespaces() -> None:
    """Make networks of its own, and look for a way out of one."""
    for _ in range(40):
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(OSError):
                _libc("unshare", CLONE_NEWUSER | CLONE_NEWNET)
                _ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
                _ip("link", "set", "lo", "up")
            with (
                contextlib.suppress(OSError),
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s,
            ):
                s.sendto(b"out", (CAMPUS4, DISCARD))
                os._exit(0)  # it got out
            os._exit(1)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            return
    raise OSError(errno.ENETUNREACH, "no way out")


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*command: str) -> None:
    search = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=search)
    if done.returncode:
        raise OSError(errno.EPERM, done.stderr.strip() or f"status {done.returncode}")


def _libc(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main() -> None:
    """Try, and tell."""
    names = sys.argv[4:]
    if names[:1] == ["--userns"]:
        names = names[1:]
        uid, gid = os.getuid(), os.getgid()
        _libc("unshare", CLONE_NEWUSER)
        for file, text in (
            ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"),
        ):  # fmt: skip
            Path("/proc/self", file).write_text(text, encoding="ascii")
    if names[:1] == ["--forever"]:
        print("begun", flush=True)
        while True:
            for name in names[1:]:
                with contextlib.suppress(OSError):
                    globals()[name]()
    told = {}
    for name in names:
        try:
            globals()[name]()
            told[name] = "done"
        except OSError as error:
            told[name] = errno.errorcode.get(error.errno or 0, str(error))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
