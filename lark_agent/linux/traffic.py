"""Traffic control: HTB classes, their queues, ifb devices, and filters that redirect to them.

Plain netlink messages (`lark_agent.linux.netlink`) and not pyroute2: six of them stand between a
job and its start, 20 µs each instead of 300, and rates over 34 Gbit/s need the 64-bit attributes.

All rates here are bytes/s of frames, as the kernel counts them. Kernel refusals become KernelError.
Structures are those of <linux/pkt_sched.h>, <linux/pkt_cls.h> and <linux/tc_act/tc_mirred.h>.
Privilege: CAP_NET_ADMIN over the interfaces.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lark_agent.errors import KernelError
from lark_agent.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Netlink,
    attribute,
    attributes,
)

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

ROOT = 0xFFFFFFFF
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_CLSACT with TC_H_MIN_INGRESS, TC_H_MIN_EGRESS
MAJOR = 1 << 16
"""Handle of the one HTB qdisc of a device, 1:0."""
_NEWLINK, _DELLINK = 16, 17
_NEWQDISC, _DELQDISC = 36, 37
_NEWTCLASS, _DELTCLASS, _GETTCLASS = 40, 41, 42
_NEWTFILTER, _DELTFILTER = 44, 45
_KIND, _OPTIONS, _STATS2 = 1, 2, 7
_STATS_BASIC, _STATS_QUEUE = 1, 3
_IFNAME, _LINKINFO, _INFO_KIND = 3, 18, 1
_IFF_UP = 1
_TCMSG = struct.Struct("=BxxxiIII")  # family, interface, handle, parent, info
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_RATE = struct.Struct("=BBHhHI")  # cell log, link layer, overhead, cell align, mpu, bytes/s
_HTB_CLASS = struct.Struct("=12s12sIIIII")  # rate, ceil, bursts, quantum, level, priority
_TBF = struct.Struct("=12s12sIII")  # rate, peak rate, limit, buffer, mtu
_ETHERNET = 1  # link layer of a rate: there is no table of times for the kernel to guess it from
_NS_PER_TICK = 64  # /proc/net/psched, the same in every kernel since 2.6.32
_NO_RATE = 1 << 60  # bytes/s that take no time
_FILTER_PRIORITY, _ALL_PROTOCOLS = 2, 0x0003
_STOLEN, _REDIRECT = 4, 1  # TC_ACT_STOLEN, TCA_EGRESS_REDIR
_SIOCGIFMTU = 0x8921
_REMEDY = (
    "the kernel needs CONFIG_IFB, CONFIG_NET_SCH_HTB, CONFIG_NET_SCH_TBF, CONFIG_NET_CLS_U32 and "
    "CONFIG_NET_ACT_MIRRED"
)


@dataclass(frozen=True, slots=True)
class HtbClass:
    """One class of the HTB qdisc 1:0."""

    minor: int
    parent: int
    """Minor; 0: the qdisc itself."""
    rate: int
    """What it gets whatever others want, bytes/s."""
    ceil: int
    """Most that it gets by borrowing, bytes/s."""
    burst_ns: int
    """How long it may send at line rate after it was idle, in time at `rate` and at `ceil`."""
    priority: int
    """Who borrows first, 0 to 7."""
    quantum: int
    """Bytes it may send before the next one of its priority borrows."""


@dataclass(frozen=True, slots=True)
class ClassState:
    """What a class is, and what it did."""

    parent: int
    """Minor; 0: the qdisc itself."""
    rate: int
    ceil: int
    priority: int
    bytes: int
    packets: int
    backlog: int
    """Bytes that wait."""
    waiting: int
    """Packets that wait."""
    drops: int


class Traffic:
    """A door to traffic control in the network namespace of the thread that opens it."""

    def __init__(self) -> None:
        self._netlink = Netlink(socket.NETLINK_ROUTE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def add_ifb(self, name: str, index: int) -> None:
        """Make an ifb device that is up, with this index. Repeatable."""
        link = attribute(_LINKINFO, attribute(_INFO_KIND, b"ifb"), nested=True)
        body = _IFINFO.pack(0, 0, index, _IFF_UP, _IFF_UP) + attribute(_IFNAME, _text(name)) + link
        self._make(_NEWLINK, body, f"making the ifb device {name}", NLM_F_CREATE)

    def delete_link(self, name: str) -> None:
        """Delete an interface with all its queues. Repeatable."""
        body = _IFINFO.pack(0, 0, 0, 0, 0) + attribute(_IFNAME, _text(name))
        self._forgive(errno.ENODEV, _DELLINK, body, f"deleting {name}")

    def put_htb(self, index: int) -> None:
        """Give a device the HTB qdisc 1:0, whose packets of no class are not held back."""
        # version 3, rate to quantum 10 (all classes bring their own), default class none
        options = attribute(2, struct.pack("=IIIII", 3, 10, 0, 0, 0))
        body = _message(index, MAJOR, ROOT, 0, "htb", options)
        tried = f"giving interface {index} an HTB qdisc"
        try:
            self._make(_NEWQDISC, body, tried, NLM_F_CREATE | NLM_F_EXCL)
        except KernelError as error:
            if error.number != errno.EEXIST:
                raise

    def put_class(self, index: int, wanted: HtbClass) -> None:
        """Make or change a class; its parent cannot change, and packets that wait stay."""
        parms = _HTB_CLASS.pack(
            *(_ratespec(wanted.rate), _ratespec(wanted.ceil)),
            *(_ticks(wanted.burst_ns), _ticks(wanted.burst_ns)),
            *(wanted.quantum, 0, wanted.priority),
        )
        options = (
            attribute(1, parms)
            + attribute(6, struct.pack("=Q", wanted.rate))
            + attribute(7, struct.pack("=Q", wanted.ceil))
        )
        body = _message(index, MAJOR | wanted.minor, MAJOR | wanted.parent, 0, "htb", options)
        tried = f"making HTB class 1:{wanted.minor:x} of interface {index}"
        self._netlink.call(_NEWTCLASS, body, tried, NLM_F_CREATE | NLM_F_REPLACE)

    def delete_class(self, index: int, minor: int) -> None:
        """Delete a class with its queue and what waits there. Repeatable."""
        body = _TCMSG.pack(0, index, MAJOR | minor, 0, 0)
        self._forgive(errno.ENOENT, _DELTCLASS, body, f"deleting HTB class 1:{minor:x}")

    def put_queue(self, index: int, minor: int, limit: int, cut_to: int) -> None:
        """Give a class without children a queue of `limit` bytes; what waits in one it has stays.

        Super-packets longer than `cut_to` bytes are cut into their packets first; single ones that
        long are dropped. It is a token bucket filter that never waits, because of all
        queues only that one cuts; always that one, because a queue of another kind starts empty.
        """
        parms = _TBF.pack(_ratespec(_NO_RATE), bytes(12), limit, 0, 0)
        options = (
            attribute(1, parms)
            + attribute(4, struct.pack("=Q", _NO_RATE))
            + attribute(6, struct.pack("=I", cut_to))
        )
        body = _message(index, minor << 16, MAJOR | minor, 0, "tbf", options)
        tried = f"giving HTB class 1:{minor:x} of interface {index} a queue of {limit} bytes"
        self._make(_NEWQDISC, body, tried, NLM_F_CREATE | NLM_F_REPLACE)

    def redirect(self, index: int, parent: int, target: int) -> None:
        """Send all that the datapath passed at one hook (INGRESS, EGRESS) out of `target`."""
        mirred = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _REDIRECT, target)
        action = attribute(1, _text("mirred")) + attribute(2, attribute(2, mirred), nested=True)
        # struct tc_u32_sel: terminal, no keys: everything
        everything = struct.pack("=BBBxHHhHI", 1, 0, 0, 0, 0, 0, 0, 0)
        options = attribute(5, everything) + attribute(
            7, attribute(1, action, nested=True), nested=True
        )
        body = _message(index, 0, parent, _filter_info(), "u32", options)
        tried = f"redirecting from interface {index} to {target}"
        self._make(_NEWTFILTER, body, tried, NLM_F_CREATE | NLM_F_EXCL)

    def stop_redirecting(self, index: int, parent: int) -> None:
        """Take the redirection of a hook back. Repeatable, also when the interface is gone."""
        body = _TCMSG.pack(0, index, 0, parent, _filter_info())
        for gone in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            with contextlib.suppress(KernelError):
                self._forgive(gone, _DELTFILTER, body, f"no longer redirecting interface {index}")
                return

    def classes(self, index: int) -> dict[int, ClassState]:
        """Return the HTB classes of a device by their minors."""
        tried = f"listing the classes of interface {index}"
        found = {}
        for body in self._netlink.dump(_GETTCLASS, _TCMSG.pack(0, index, 0, 0, 0), tried):
            _, _, handle, parent, _ = _TCMSG.unpack_from(body)
            fields = dict(attributes(body[_TCMSG.size :]))
            if fields.get(_KIND, b"").rstrip(b"\0") == b"htb":
                found[handle & 0xFFFF] = _state(parent & 0xFFFF if parent != ROOT else 0, fields)
        return found

    def _make(self, kind: int, body: bytes, tried: str, flags: int) -> None:
        try:
            self._netlink.call(kind, body, tried, flags)
        except KernelError as error:
            if error.number not in {errno.EOPNOTSUPP, errno.ENOENT}:  # those name an unknown kind
                raise
            cause = os.strerror(error.number)
            raise KernelError(tried, cause, _REMEDY, error.number) from error

    def _forgive(self, forgiven: int, kind: int, body: bytes, tried: str) -> None:
        try:
            self._netlink.call(kind, body, tried)
        except KernelError as error:
            if error.number != forgiven:
                raise


def mtu(index: int) -> int:
    """Return the MTU of an interface in the calling thread's namespace, in bytes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        try:
            request = struct.pack("16si12x", socket.if_indextoname(index).encode(), 0)
            answer = fcntl.ioctl(any_socket, _SIOCGIFMTU, request)
        except OSError as error:
            cause = os.strerror(error.errno or 0)
            number = error.errno or 0
            raise KernelError(f"reading the MTU of interface {index}", cause, "", number) from error
    return int(struct.unpack("16si12x", answer)[1])


def _message(index: int, handle: int, parent: int, info: int, kind: str, options: bytes) -> bytes:
    header = _TCMSG.pack(0, index, handle, parent, info)
    return header + attribute(_KIND, _text(kind)) + attribute(_OPTIONS, options)


def _state(parent: int, fields: dict[int, bytes]) -> ClassState:
    options = dict(attributes(fields[_OPTIONS]))
    rate, ceil, _, _, _, _, priority = _HTB_CLASS.unpack(options[1])
    rates = [
        struct.unpack("=Q", options[kind])[0] if kind in options else _RATE.unpack(spec)[-1]
        for kind, spec in ((6, rate), (7, ceil))
    ]
    stats = dict(attributes(fields[_STATS2]))
    counted, packets = struct.unpack_from("=QI", stats[_STATS_BASIC])
    waiting, backlog, drops = struct.unpack_from("=III", stats[_STATS_QUEUE])
    rate_ceil = (rates[0], rates[1])
    return ClassState(parent, *rate_ceil, priority, counted, packets, backlog, waiting, drops)


def _ratespec(rate: int) -> bytes:
    return _RATE.pack(0, _ETHERNET, 0, 0, 0, min(rate, 0xFFFFFFFF))


def _ticks(nanoseconds: int) -> int:
    return min(nanoseconds // _NS_PER_TICK, 0xFFFFFFFF)


def _filter_info() -> int:
    return _FILTER_PRIORITY << 16 | socket.htons(_ALL_PROTOCOLS)


def _text(words: str) -> bytes:
    return words.encode() + b"\0"
