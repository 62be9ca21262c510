"""A name server's answers for the lab's hosts: A and AAAA records of server.NAME.test (RFC 1035).

Just enough DNS to resolve as jobs do: one question a datagram, names uncompressed in questions.
A name without an address of the asked family gets an empty answer, an unknown name NXDOMAIN, so
that resolvers do not wait for a timeout.
"""

from __future__ import annotations

import socket
import struct

from tests.lab.topology import CAMPUS, INTERNET, WORKER

HOSTS = {
    "server.campus.test": CAMPUS,
    "server.internet.test": INTERNET,
    "worker1.campus.test": WORKER,
}
TYPE_A, TYPE_AAAA, CLASS_IN = 1, 28, 1
NAME_ERROR = 3
# response, authoritative, recursion available
FLAGS = 0x8480
TTL_SECONDS = 60


def answer(query: bytes) -> bytes:
    """Return the answer to one query; empty if it is not one."""
    if len(query) < 17:
        return b""
    number, flags, questions = struct.unpack_from("!HHH", query)
    if flags & 0x8000 or questions != 1:
        return b""
    labels, at = [], 12
    while at < len(query) and query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
        at += 1 + query[at]
    if at + 5 > len(query):
        return b""
    kind, _ = struct.unpack_from("!HH", query, at + 1)
    question = query[12 : at + 5]
    host = HOSTS.get(".".join(labels).lower())
    data = b""
    if host and kind == TYPE_A:
        data = socket.inet_pton(socket.AF_INET, host.ipv4)
    elif host and kind == TYPE_AAAA:
        data = socket.inet_pton(socket.AF_INET6, host.ipv6)
    # the answer's name points to the question's, at offset 12 (RFC 1035, 4.1.4)
    record = struct.pack("!HHHIH", 0xC00C, kind, CLASS_IN, TTL_SECONDS, len(data)) + data
    status = 0 if host else NAME_ERROR
    # keep the opcode's and the asker's recursion-desired bit
    header = (number, FLAGS | flags & 0x7900 | status, 1, 1 if data else 0, 0, 0)
    return struct.pack("!6H", *header) + question + (record if data else b"")
