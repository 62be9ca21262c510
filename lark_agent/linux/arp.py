"""Two words of ARP on a network with others (RFC 5227): "who has this?" and "I have it now".

The kernel looks for duplicates of IPv6 addresses, not of IPv4 ones. Three probes as the RFC has
them, but 0.1 s apart instead of 1 to 2 s: it speaks of radio links and of hosts that boot all at
once; the sandboxes' networks are wired, and a job may be waiting.

Everything here works in the network namespace of the calling thread. Privilege: CAP_NET_RAW.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING

from lark_agent.errors import KernelError

if TYPE_CHECKING:
    from ipaddress import IPv4Address

_ETHERNET_ARP, _ETHERNET_IPV4 = 0x0806, 0x0800
_REQUEST = 1
_BROADCAST = b"\xff" * 6
_FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_PROBES = 3
_BETWEEN_SECONDS, _LAST_SECONDS = 0.1, 0.3


def holder(interface: str, mac: str, address: IPv4Address) -> str:
    """Return the link-layer address of whoever has or wants `address`, "" if nobody answers.

    Takes half a second if nobody does. Raises KernelError.
    """
    own = bytes.fromhex(mac.replace(":", ""))
    with _open(interface) as wire:
        for number in range(_PROBES):
            _send(wire, own, bytes(4), address)
            wait = _LAST_SECONDS if number == _PROBES - 1 else _BETWEEN_SECONDS
            found = _listen(wire, own, address, wait)
            if found:
                return found
    return ""


def announce(interface: str, mac: str, address: IPv4Address) -> None:
    """Tell the neighbours, who may remember an earlier holder. Raises KernelError."""
    with _open(interface) as wire:
        _send(wire, bytes.fromhex(mac.replace(":", "")), address.packed, address)


def _open(interface: str) -> socket.socket:
    try:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERNET_ARP))
        wire.bind((interface, _ETHERNET_ARP))
    except OSError as error:
        raise KernelError(
            f"opening {interface} for ARP", str(error.strerror), "run as root (CAP_NET_RAW)"
        ) from error
    return wire


def _send(wire: socket.socket, own: bytes, sender: bytes, target: IPv4Address) -> None:
    frame = _FRAME.pack(
        _BROADCAST, own, _ETHERNET_ARP, 1, _ETHERNET_IPV4, 6, 4, _REQUEST,
        own, sender, bytes(6), target.packed,
    )  # fmt: skip
    try:
        wire.send(frame)
    except OSError as error:
        raise KernelError(f"asking for {target} by ARP", str(error.strerror)) from error


def _listen(wire: socket.socket, own: bytes, address: IPv4Address, seconds: float) -> str:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        wire.settimeout(left)
        try:
            frame = wire.recv(2048)
        except TimeoutError:
            break
        if len(frame) < _FRAME.size:
            continue
        fields = _FRAME.unpack_from(frame)
        sender_mac, sender, target = fields[8], fields[9], fields[11]
        probes_too = sender == bytes(4) and target == address.packed
        if sender_mac != own and (sender == address.packed or probes_too):
            return str(sender_mac.hex(":"))
    return ""
