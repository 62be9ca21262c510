"""nftables through libnftables, in this process.

The library is the `nft` command's own; calling it instead of the command means no fork. One call
is one transaction: the kernel takes all of a text or none of it.

The library waits for its socket by select(2), which ends the process if the descriptor is over
1023. An agent with many jobs has more than that open, so then the library is called by a thread
with descriptors of its own.
"""

from __future__ import annotations

import ctypes
import os
import socket
from functools import cache

from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.linux import libc, namespaces


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise PrerequisiteError(
            f"cannot load libnftables: {error}; install the package libnftables1 (or nftables)"
        ) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


_ENOUGH_BELOW = 512
"""A descriptor under this is far enough from 1023, whatever other threads open meanwhile."""
_NETLINK_NETFILTER, _GROUP_NFTABLES = 12, 7


def watch() -> socket.socket:
    """Return a non-blocking socket that becomes readable whenever any ruleset changes."""
    events = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    )
    events.bind((0, 1 << (_GROUP_NFTABLES - 1)))
    events.setblocking(False)
    return events


def run(text: str) -> str:
    """Execute nft commands in the thread's network namespace; returns what they print.

    Raises KernelError with nft's own words (privilege: CAP_NET_ADMIN).
    """
    _library()
    if _next_descriptor() < _ENOUGH_BELOW:
        return _run(text)

    def apart() -> str:
        libc.unshare_descriptors()
        return _run(text)

    return namespaces.in_thread(apart)


def _next_descriptor() -> int:
    with open(os.devnull, "rb", buffering=0) as file:  # noqa: PTH123  of a few microseconds
        return file.fileno()


def _run(text: str) -> str:
    library = _library()
    context = library.nft_ctx_new(0)
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        status = library.nft_run_cmd_from_buffer(context, text.encode())
        output: bytes = library.nft_ctx_get_output_buffer(context) or b""
        errors: bytes = library.nft_ctx_get_error_buffer(context) or b""
    finally:
        library.nft_ctx_free(context)
    if status != 0:
        raise KernelError(
            "changing the nftables ruleset",
            " ".join(errors.decode(errors="replace").split()),
            "check that this kernel has nf_tables with NAT (nf_tables, nft_chain_nat, nft_masq)",
        )
    return output.decode(errors="replace")
