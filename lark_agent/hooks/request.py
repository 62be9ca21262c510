"""The wire of the run socket: datagrams between lark-run and the agent (docs/run-socket.md).

Everything that arrives here was written by a user. Datagrams are bounded, fields are length
prefixed, and descriptors are accepted only if they are sealed memory: reading them cannot block,
change meanwhile, or reach into a file system that the user controls.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from dataclasses import dataclass, field
from enum import Enum

from lark_agent.errors import InvalidRequest, PolicyRefusal, Refused, Unavailable
from lark_agent.linux.descriptors import close_aside
from lark_agent.policy.ads import MAX_BYTES

MAGIC, VERSION = b"LARK", 1
MAX_REQUEST, MAX_REPLY = 16384, 1024
MAX_DESCRIPTORS = 4
BIND_RESOLV_CONF, STAY, BARE = 1, 2, 4
OWN_NAMESPACE = 1
"""Flag of a request: the caller can enter no namespace but one that it makes."""
_SCM_MAX_FD = 253  # net/core/scm.c

_HEADER = struct.Struct("<4sHH")
_FIELD = struct.Struct("<HH")
_UID = struct.Struct("<I")
_COMMAND, _ENVIRONMENT, _OPTION, _FILE, _PURPOSE, _USER = 1, 2, 3, 4, 5, 6
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_STATUS = {InvalidRequest: 1, PolicyRefusal: 2, Unavailable: 3}
AGENT_ERROR = 4
_MADE, _MAKE_OWN = 0, 5


class Purpose(Enum):
    """What a request is about; on the wire one byte."""

    RUN = b"r"
    """The caller becomes the job."""
    PREPARE = b"p"
    """A job will come; have its network ready."""
    TRANSFER = b"t"
    """The caller becomes a process of the batch system that moves a job's files."""
    END = b"e"
    """No more tasks of the job will come."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What lark-run asks for, decoded; every word of it is the user's."""

    command: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    job_ad: bytes | None = None
    machine_ad: bytes | None = None
    purpose: Purpose = Purpose.RUN
    user: int | None = None
    """The account of the job, where root asks for it."""
    own_namespace: bool = False
    """It can enter no namespace but one that it makes itself."""


def receive(connection: socket.socket) -> RunRequest | None:
    """Read one request; None if the caller closed without asking. Raises InvalidRequest.

    The socket must have a datagram waiting. No descriptor stays open.
    """
    data, descriptors, flags = _receive(connection, MAX_REQUEST)
    try:
        if not data and not descriptors:
            return None
        if flags & socket.MSG_TRUNC:
            raise InvalidRequest(f"the request is over {MAX_REQUEST} bytes")
        if len(descriptors) > MAX_DESCRIPTORS:
            raise InvalidRequest(f"the request carries over {MAX_DESCRIPTORS} descriptors")
        return decode(data, descriptors)
    finally:
        _dispose(descriptors)


def decode(data: bytes, descriptors: list[int]) -> RunRequest:
    """Decode a request; raises InvalidRequest."""
    flags, fields = _fields(data)
    words = {
        kind: [text for k, text in fields if k == kind]
        for kind in (_COMMAND, _ENVIRONMENT, _OPTION)
    }
    kinds = [payload for kind, payload in fields if kind == _FILE]
    if len(kinds) != len(descriptors):
        raise InvalidRequest(f"the request names {len(kinds)} files and carries {len(descriptors)}")
    files: dict[bytes, bytes] = {}
    for kind, descriptor in zip(kinds, descriptors, strict=True):
        if kind not in {b"j", b"m"} or kind in files:
            raise InvalidRequest(f"the request has an unknown or repeated file kind {kind[:8]!r}")
        files[kind] = _sealed(descriptor)
    return RunRequest(
        command=_text(words[_COMMAND][0]) if words[_COMMAND] else "",
        environment=_assignments(words[_ENVIRONMENT]),
        options=_assignments(words[_OPTION]),
        job_ad=files.get(b"j"),
        machine_ad=files.get(b"m"),
        purpose=_purpose([payload for kind, payload in fields if kind == _PURPOSE]),
        user=_user([payload for kind, payload in fields if kind == _USER]),
        own_namespace=bool(flags & OWN_NAMESPACE),
    )


def send_make_own(connection: socket.socket) -> None:
    """Answer that the caller may make a network namespace, and should say when it has."""
    connection.send(_HEADER.pack(MAGIC, VERSION, _MAKE_OWN))


def receive_made(connection: socket.socket) -> bool:
    """Read the word that the namespace is made; False if the caller hung up instead.

    Raises InvalidRequest for any other.
    """
    data, descriptors, _ = _receive(connection, MAX_REPLY)
    _dispose(descriptors)
    if not data:
        return False
    if data != _HEADER.pack(MAGIC, VERSION, _MADE):
        raise InvalidRequest("the caller was to make a network namespace, and said something else")
    return True


def send_grant(
    connection: socket.socket,
    namespace: int,
    *,
    resolv_conf: bool,
    of_slot: int | None = None,
    stay: bool = False,
    bare: bool = False,
) -> None:
    """Answer with the network namespace to enter, or to stay in, and whose resolv.conf holds.

    `of_slot` is the slot of a sandbox that has a file of its own; a `bare` network is entered
    without anything that shows it, being the worker's own.
    """
    flags = (BIND_RESOLV_CONF if resolv_conf else 0) | (STAY if stay else 0)
    flags |= BARE if bare else 0
    if resolv_conf and of_slot is not None:
        flags |= (of_slot + 1) << 16
    message = _HEADER.pack(MAGIC, VERSION, 0) + struct.pack("<I", flags)
    socket.send_fds(connection, [message], [namespace])


def send_done(connection: socket.socket, line: str = "") -> None:
    """Answer that what was asked for is done, where that gives no namespace to enter.

    `line` is for the batch system to keep with the job.
    """
    answer = _HEADER.pack(MAGIC, VERSION, 0) + struct.pack("<I", 0) + line.encode()
    connection.send(answer[:MAX_REPLY])


def send_refusal(connection: socket.socket, error: BaseException) -> None:
    """Answer that the job must not run, and why."""
    status = next((s for kind, s in _STATUS.items() if isinstance(error, kind)), AGENT_ERROR)
    text = str(error) if isinstance(error, Refused) else f"the agent failed: {error}"
    line = " ".join(text.split()).encode()
    connection.send((_HEADER.pack(MAGIC, VERSION, status) + line)[:MAX_REPLY])


def receive_failure(connection: socket.socket) -> tuple[int, str] | None:
    """Read lark-enter's word that it could not start the job: (exit status, why)."""
    data, descriptors, _ = _receive(connection, MAX_REPLY)
    _dispose(descriptors)
    if len(data) < _HEADER.size:
        return None
    magic, version, status = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        return None
    return status, data[_HEADER.size :].decode(errors="replace")


def _receive(connection: socket.socket, size: int) -> tuple[bytes, list[int], int]:
    """Read a datagram with all its descriptors: those without room the kernel would close here."""
    room = socket.CMSG_SPACE(_SCM_MAX_FD * array.array("i").itemsize)
    data, ancillary, flags, _ = connection.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    return data, _descriptors(ancillary), flags


def _dispose(descriptors: list[int]) -> None:
    """Close what a user sent: memory at once, anything else where closing it may block."""
    for descriptor in descriptors:
        if _is_memory(descriptor):
            os.close(descriptor)
        else:
            close_aside([descriptor])


def _is_memory(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def _fields(data: bytes) -> tuple[int, list[tuple[int, bytes]]]:
    """Return the header's flags and the fields."""
    if len(data) < _HEADER.size:
        raise InvalidRequest("the request is shorter than its header")
    magic, version, flags = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise InvalidRequest("the request does not start with LARK; is the caller lark-run?")
    if version != VERSION or flags & ~OWN_NAMESPACE:
        raise InvalidRequest(
            f"the request has version {version}, flags {flags}; this agent speaks {VERSION}; "
            "install lark-run and lark-agent of the same release"
        )
    fields = []
    offset = _HEADER.size
    while offset < len(data):
        if offset + _FIELD.size > len(data):
            raise InvalidRequest("the request ends inside a field")
        kind, length = _FIELD.unpack_from(data, offset)
        offset += _FIELD.size
        if offset + length > len(data):
            raise InvalidRequest("a field of the request is longer than the request")
        if not _COMMAND <= kind <= _USER:
            raise InvalidRequest(f"the request has a field of unknown type {kind}")
        fields.append((kind, data[offset : offset + length]))
        offset += length
    return flags, fields


def _assignments(payloads: list[bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    for payload in payloads:
        name, equals, value = _text(payload).partition("=")
        if not equals or not name:
            raise InvalidRequest("a field of the request is not NAME=value")
        found[name] = value
    return found


def _purpose(payloads: list[bytes]) -> Purpose:
    try:
        return Purpose(payloads[-1]) if payloads else Purpose.RUN
    except ValueError:
        raise InvalidRequest(f"the request has an unknown purpose {payloads[-1][:8]!r}") from None


def _user(payloads: list[bytes]) -> int | None:
    if payloads and len(payloads[-1]) != _UID.size:
        raise InvalidRequest("the request's account is not a number of four bytes")
    return _UID.unpack(payloads[-1])[0] if payloads else None


def _text(payload: bytes) -> str:
    return printable(payload.decode(errors="replace"))


def printable(text: str) -> str:
    """Replace what could forge a log line or drive a terminal."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def _sealed(descriptor: int) -> bytes:
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise InvalidRequest(
            "an ad is not sealed memory; lark-run passes copies, not files"
        ) from error
    if seals & _SEALS != _SEALS:
        raise InvalidRequest("an ad is memory that can still change")
    size = os.fstat(descriptor).st_size
    if size > MAX_BYTES:
        raise InvalidRequest(f"an ad is over {MAX_BYTES} bytes")
    return os.pread(descriptor, size, 0)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
