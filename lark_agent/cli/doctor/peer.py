"""A peer for the trial job: an echo in a network namespace of this process, on this worker.

The namespace has no name: only a descriptor of this process holds it, and with it the veth pair
that leads there. So whatever ends this process, SIGKILL too, takes all of it along. Sockets belong
to the namespace in which they were made, so the echo itself runs in an ordinary thread.

The addresses are those of benchmarks (RFC 2544, RFC 5180), which no network routes; if this
worker does, there is no peer. Each end has a whole address and a route to the other, and no network
between them; the peer sends all else to the worker, which is how it answers sandboxes whose address
is not translated.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from lark_agent.errors import PrerequisiteError
from lark_agent.linux import libc, namespaces
from lark_agent.linux.links import Links
from lark_agent.linux.uplink import overlapping_route
from lark_agent.sandbox.addressing import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lark_agent.sandbox.addressing import Address

LINK = "ldoctor"
"""Not with the prefix of sandboxes, which the firewall takes for jobs."""
PORT = 7
"""Of the echo (RFC 862)."""
HERE: tuple[Address, ...] = (IPv4Address("198.19.255.253"), IPv6Address("2001:2:0:ffff::1"))
THERE: tuple[Address, ...] = (IPv4Address("198.19.255.254"), IPv6Address("2001:2:0:ffff::2"))
_NEAR_MAC, _FAR_MAC = "02:4c:41:52:4b:01", "02:4c:41:52:4b:02"
_MTU = 1500
_LONGEST = 65_536
_GROUP = 0x6C64
"""Link group in which the pair is deleted."""


class Heard(NamedTuple):
    """A datagram that came to the peer and was answered."""

    source: str
    port: int
    payload: int
    """Bytes."""


@dataclass(slots=True)
class Peer:
    """What the echo has heard, by IP version."""

    heard: dict[int, list[Heard]] = field(default_factory=lambda: {4: [], 6: []})


@contextmanager
def peer(*, ipv6: bool) -> Iterator[Peer]:
    """Make the peer, and remove it; raises LarkError or OSError. Privilege: CAP_SYS_ADMIN."""
    versions = slice(0, 2 if ipv6 else 1)
    with ExitStack() as stack, Links() as links:
        for address in THERE[versions]:
            network = ip_network(address)
            if route := overlapping_route(links, network, PREFIX):
                raise PrerequisiteError(
                    f"{address}, an address of benchmarks, is routed here already ({route})"
                )
        if links.index(LINK):
            raise PrerequisiteError(f"there is an interface {LINK}: another trial runs")
        namespace = namespaces.in_thread(_make)
        stack.callback(os.close, namespace)
        links.add_veth(LINK, _NEAR_MAC, LINK, _FAR_MAC, namespace, _MTU)
        stack.callback(_remove)
        _furnish(links.index(LINK), links, HERE[versions], THERE[versions])
        sockets = namespaces.run_in(namespace, lambda: _settle(THERE[versions], HERE[versions]))
        for opened in sockets:
            stack.callback(opened.close)
        found = Peer()
        stop, stopped = socket.socketpair()
        stack.callback(stopped.close)
        thread = threading.Thread(target=_echo, args=(found, sockets, stopped), name="echo")
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.close)
        yield found


def _make() -> int:
    libc.unshare_network()
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _remove() -> None:
    """Remove the pair at once; else the kernel does, some time after the namespace's end."""
    with Links() as links:
        if index := links.index(LINK):
            links.delete([index], _GROUP)


def _furnish(index: int, links: Links, own: Sequence[Address], other: Sequence[Address]) -> None:
    links.up(index)
    for mine, yours in zip(own, other, strict=True):
        links.add_address(index, mine)
        links.add_route(index, yours)


def _settle(addresses: Sequence[Address], routers: Sequence[Address]) -> list[socket.socket]:
    """Set up the far end, from inside; return its sockets."""
    with Links() as links:
        index = links.index(LINK)
        _furnish(index, links, addresses, routers)
        for router in routers:
            links.add_route(index, router, default=True)
    return [_socket(address) for address in addresses]


def _socket(address: Address) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    opened = socket.socket(family, socket.SOCK_DGRAM)
    opened.bind((str(address), PORT))
    return opened


def _echo(found: Peer, sockets: Sequence[socket.socket], stopped: socket.socket) -> None:
    with selectors.DefaultSelector() as ready:
        for each in (*sockets, stopped):
            ready.register(each, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is stopped:
                    return
                answering = next(each for each in sockets if each is key.fileobj)
                _answer(found, answering)


def _answer(found: Peer, answering: socket.socket) -> None:
    payload, source = answering.recvfrom(_LONGEST)
    version = 4 if answering.family is socket.AF_INET else 6
    found.heard[version].append(Heard(source[0], source[1], len(payload)))
    with suppress(OSError):  # no way back: who asked notices
        answering.sendto(payload, source)
