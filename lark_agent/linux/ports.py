"""Transport ports of the worker, kept from everybody else.

A socket that is bound and does nothing more is the kernel's own way to say that a port is taken:
binding fails if any program has it, on whatever address, and nobody gets it while the socket is
open. There is no window between looking and taking, and nothing is left after a crash.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from lark_agent.errors import Unavailable

if TYPE_CHECKING:
    from lark_agent.model import Port

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_LEAST_BUFFER = 1
"""Asked for, so that the kernel gives its least: nobody reads what comes."""


def hold(port: Port) -> socket.socket:
    """Take a port of every address of this network namespace until the socket is closed.

    Raises Unavailable if a program has it.
    """
    try:
        try:
            return _bind(socket.AF_INET6, port)
        except _NoFamilyError:
            return _bind(socket.AF_INET, port)
    except OSError as error:
        raise Unavailable(
            f"the port {port} of this worker cannot be opened to the job "
            f"({os.strerror(error.errno or 0)}: a program or another job has it); run the job on "
            "another worker, or choose another port"
        ) from error


class _NoFamilyError(OSError):
    """This kernel has no sockets of the family."""


def _bind(family: socket.AddressFamily, port: Port) -> socket.socket:
    with contextlib.ExitStack() as on_failure:
        try:
            held = socket.socket(family, _KINDS[port.protocol] | socket.SOCK_CLOEXEC)
        except OSError as error:
            raise _NoFamilyError(error.errno, error.strerror) from error
        on_failure.callback(held.close)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LEAST_BUFFER)
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        held.bind(("", port.number))
        on_failure.pop_all()
    return held
