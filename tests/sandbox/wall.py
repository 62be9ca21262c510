"""A worker, two sandboxes and all who are around them, for packets one by one through the firewall.

The worker is the test's own network namespace; the others are namespaces on links of the names that
the firewall's rules ask for. No datapath hangs on the links, so what comes through has met the
firewall alone. ::

    job0, job1   sandboxes of slots 0 and 1, with addresses of nat and of routed
    far          the router on the worker's uplink, and all the world behind it
    other        on another interface of the worker's
    beside       a host on the bridge of an 802.1Q network
    b1, b2       each on a bridge of the site's

Somebody says something to an address (`say`), and an ear is held to the link or the socket where it
would come out (`wire`, `listen`, `accept`). `hears` waits no longer than `patience` seconds: a test
that expects silence waits a moment, one that expects to hear waits for long.
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from lark_agent.linux import namespaces, sysctl
from lark_agent.sandbox.addressing import Addressing, Delegated, mac_inside, mac_outside

if TYPE_CHECKING:
    from collections.abc import Callable

ADDRESSING = Addressing(
    IPv4Network("100.98.0.0/16"), IPv6Network("fd6c:6172:6b00::/64"), 2, 10240, 100,
    Delegated(IPv4Network("198.18.7.0/24"), IPv6Network("2001:db8:7::/112")),
)  # fmt: skip
JOBS = ("job0", "job1")
WORKER = "worker"
LONG, SHORT = 5.0, 0.05
"""Seconds to wait for what must come, and for what must not: a link is crossed in the sender's own
system call, but for a busy machine."""
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_IP_MULTICAST_IF, _IPV6_MULTICAST_IF = 32, 17
_ALL = 0x0003
_tokens = itertools.count(1)
Result = TypeVar("Result")

_HERE = """
link set uplink0 address 02:00:00:00:00:10
addr add 192.0.2.10/24 dev uplink0
addr add 2001:db8:1::10/64 dev uplink0 nodad
neigh replace 2001:db8:1::1 lladdr 02:00:00:00:00:01 dev uplink0
route add default via 192.0.2.1
route add default via 2001:db8:1::1
link set extra address 02:00:00:00:00:11
addr add 10.79.0.1/24 dev extra
addr add 2001:db8:79::1/64 dev extra nodad
link add lkb312.7 type bridge
link add br1 type bridge
link add br2 type bridge
link set port0 master lkb312.7
link set port1 master br1
link set port2 master br2
link set lkb312.7 up
link set br1 up
link set br2 up
addr add 10.78.0.1/24 dev lkb312.7
addr add 10.81.0.1/24 dev br1
addr add 10.82.0.1/24 dev br2
"""
_THERE = {
    "far": """
link set eth0 address 02:00:00:00:00:01
addr add 192.0.2.1/24 dev eth0
addr add 2001:db8:1::1/64 dev eth0 nodad
neigh replace 2001:db8:1::10 lladdr 02:00:00:00:00:10 dev eth0
route add default via 192.0.2.10
route add default via 2001:db8:1::10
""",
    "other": """
addr add 10.79.0.2/24 dev eth0
addr add 2001:db8:79::2/64 dev eth0 nodad
neigh replace 2001:db8:79::1 lladdr 02:00:00:00:00:11 dev eth0
route add default via 10.79.0.1
route add default via 2001:db8:79::1
""",
    "beside": "addr add 10.78.0.2/24 dev eth0\nroute add default via 10.78.0.1\n",
    "b1": "addr add 10.81.0.2/24 dev eth0\nroute add default via 10.81.0.1\n",
    "b2": "addr add 10.82.0.2/24 dev eth0\nroute add default via 10.82.0.1\n",
}
_LINKS = {
    "job0": "lark0", "job1": "lark1", "far": "uplink0", "other": "extra", "beside": "port0",
    "b1": "port1", "b2": "port2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """The addresses of one IP version."""

    version: int
    jobs: tuple[str, str]
    routed: tuple[str, str]
    gateway: str
    worker: str
    far: str
    other: str
    unused: str
    """Of the delegated prefix, and of no sandbox."""
    pool: str
    """Of a job of another worker."""
    group: str

    @property
    def number(self) -> int:
        """The socket family."""
        return socket.AF_INET if self.version == 4 else socket.AF_INET6


IPV4 = Family(
    4, ("100.98.0.2", "100.98.0.3"), ("198.18.7.2", "198.18.7.3"), "100.98.0.1", "192.0.2.10",
    "192.0.2.1", "10.79.0.2", "198.18.7.200", "198.18.9.2", "224.0.0.251",
)  # fmt: skip
IPV6 = Family(
    6, ("fd6c:6172:6b00::2", "fd6c:6172:6b00::3"), ("2001:db8:7::2", "2001:db8:7::3"),
    "fd6c:6172:6b00::1", "2001:db8:1::10", "2001:db8:1::1", "2001:db8:79::2", "2001:db8:7::c8",
    "2001:db8:9::2", "ff02::fb",
)  # fmt: skip
POOL = ("198.18.9.0/24", "2001:db8:9::/112")


class Heard(NamedTuple):
    """Whom a packet says it is from."""

    address: str
    port: int


class Ear:
    """A socket that something may arrive at."""

    def __init__(self, sock: socket.socket, read: Callable[[socket.socket], Heard | None]) -> None:
        self.sock, self._read = sock, read

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def hears(self, patience: float, of: Callable[[Heard], bool]) -> bool:
        """Wait until something arrives that is `of` somebody, no longer than `patience` s."""
        end = time.monotonic() + patience
        while (left := end - time.monotonic()) > 0:
            if select.select([self.sock], [], [], left)[0]:
                heard = self._read(self.sock)
                if heard is not None and of(heard):
                    return True
        return False


class Wall:
    """Everything around one firewall. Belongs to a `fresh_host`, and goes with it."""

    def __init__(self) -> None:
        self.patience = SHORT
        self.token = b""
        """What the packet in question carries; others are heard by nobody."""
        here, there = [], dict(_THERE)
        for name, link in _LINKS.items():
            namespaces.create(name, lambda: None)
            here.append(f"link add {link} type veth peer name eth0 netns {name}")
            here.append(f"link set {link} up")
        here.append(_HERE)
        for slot, name in enumerate(JOBS):
            outside, there[name] = _sandbox(slot)
            here.append(outside)
        _ip("\n".join(here))
        for name, lines in there.items():
            _ip("link set lo up\nlink set eth0 up\n" + lines, "-n", name)
        # without sandboxes of the agent's, these are what the agent sets
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            sysctl.write(f"net/{setting}", 1)
        for link in (*_LINKS.values(), "lkb312.7", "all"):
            sysctl.write(f"net/ipv4/conf/{link}/rp_filter", 0)
            sysctl.write(f"net/ipv4/conf/{link}/route_localnet", 1)

    def begin(self, patience: float) -> None:
        """Be about to say something new, and wait so long for it."""
        self.patience = patience
        self.token = b"token %d;" % next(_tokens)

    def say(
        self, host: str, to: str, port: int, *, source: str = "", sport: int = 0, link: str = "",
        token: bytes | None = None,
    ) -> None:  # fmt: skip
        """Send a datagram, from whatever address; `link` is for multicast."""

        def send() -> None:
            with _datagrams(source or to) as sock:
                if source or sport:
                    sock.bind((source, sport))
                if link:
                    level, option = (
                        (socket.IPPROTO_IPV6, _IPV6_MULTICAST_IF) if ":" in to
                        else (socket.IPPROTO_IP, _IP_MULTICAST_IF)
                    )  # fmt: skip
                    index = socket.if_nametoindex(link)
                    value = index if ":" in to else struct.pack("=4s4si", bytes(4), bytes(4), index)
                    sock.setsockopt(level, option, value)
                sock.sendto(self.token if token is None else token, (to, port))

        self.inside(host, send)

    def wire(self, host: str, *, of_tcp: int = 0) -> Ear:
        """Listen on a host's link: for the token, or for what is for a port of TCP."""

        def read(sock: socket.socket) -> Heard | None:
            packet, (_, _, way, *_) = sock.recvfrom(4096)
            if way == socket.PACKET_OUTGOING:
                return None
            return _told(packet, self.token, of_tcp)

        def make() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
            sock.bind(("eth0", _ALL))
            return sock

        return Ear(self.inside(host, make), read)

    def listen(self, host: str, address: str, port: int) -> Ear:
        """Hold a UDP socket."""

        def read(sock: socket.socket) -> Heard | None:
            data, origin = sock.recvfrom(4096)
            return Heard(*origin[:2]) if data == self.token else None

        return Ear(self.bound(host, address, port), read)

    def accept(self, host: str, address: str, port: int) -> Ear:
        """Hold a TCP socket that listens."""

        def read(sock: socket.socket) -> Heard:
            stream, origin = sock.accept()
            stream.close()
            return Heard(*origin[:2])

        return Ear(self.inside(host, lambda: socket.create_server((address, port))), read)

    def bound(self, host: str, address: str, port: int) -> socket.socket:
        """Return a UDP socket of a host."""

        def make() -> socket.socket:
            sock = _datagrams(address)
            sock.bind((address, port))
            sock.settimeout(LONG)
            return sock

        return self.inside(host, make)

    def say_by(self, ear: Ear, to: str, port: int) -> None:
        """Ask something by a socket that listens."""
        ear.sock.sendto(b"question", (to, port))

    def hears(self, ear: Ear, of: Callable[[Heard], bool] = lambda _: True) -> bool:
        """Tell whether it arrives."""
        return ear.hears(self.patience, of)

    def inside(self, host: str, work: Callable[[], Result]) -> Result:
        """Do something in the network of a host."""
        return work() if host == WORKER else namespaces.run_inside(host, work)


def _ip(lines: str, *options: str) -> None:
    subprocess.run(["ip", *options, "-batch", "-"], input=lines, text=True, check=True)


def _sandbox(slot: int) -> tuple[str, str]:
    """Return what gives a job its addresses and fixed neighbours, on the worker and inside."""
    link, inside, outside = f"lark{slot}", mac_inside(slot), mac_outside(slot)
    here, there = [f"link set {link} address {outside}"], [f"link set eth0 address {inside}"]
    for family, bits, flag in (IPV4, 32, ""), (IPV6, 128, "nodad"):
        own, gateway = family.jobs[slot], family.gateway
        here.append(f"addr add {gateway}/{bits} dev {link} {flag}")
        for address in (own, family.routed[slot]):
            here.append(f"route add {address}/{bits} dev {link}")
            here.append(f"neigh replace {address} lladdr {inside} dev {link}")
            there.append(f"addr add {address}/{bits} dev eth0 {flag}")
        there.append(f"route add {gateway}/{bits} dev eth0 src {own}")
        there.append(f"route add default via {gateway} dev eth0 src {own}")
        there.append(f"neigh replace {gateway} lladdr {outside} dev eth0")
    return "\n".join(here), "\n".join(there)


def _datagrams(address: str) -> socket.socket:
    """Return a UDP socket that may have any address."""
    if ":" in address:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
    return sock


def _told(packet: bytes, token: bytes, of_tcp: int) -> Heard | None:
    """Return the source of an IP packet if it is the one that is waited for."""
    if packet[0] >> 4 == 4:
        at, protocol, source = (packet[0] & 15) * 4, packet[9], packet[12:16]
    elif packet[0] >> 4 == 6:
        at, protocol, source = 40, packet[6], packet[8:24]
    else:
        return None
    if at + 4 > len(packet):
        return None
    sport, dport = struct.unpack_from("!HH", packet, at)
    wanted = (protocol, dport) == (socket.IPPROTO_TCP, of_tcp) if of_tcp else token in packet
    if not wanted:
        return None
    family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
    return Heard(socket.inet_ntop(family, source), sport)
