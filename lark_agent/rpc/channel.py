"""How commands reach a service: one synchronous channel, and every failure as one RemoteError.

A service is named by the path of its unix socket ("/run/lark/agent.sock" or "unix:///run/…") or
by "host:port". Each call gets a deadline where its caller gives none, since gRPC would wait for
ever on a stopped process. What goes wrong arrives as RemoteError with what was asked, the
service's own words, and what to do; its `__cause__` is the gRPC error for who needs the code.

Proxies of the environment are left out: `http_proxy` is for the web, not for the pool's services.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from lark_agent.errors import RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_SECONDS = 30.0
"""For one call, connecting included."""

OPTIONS = (
    # a page of jobs is cut at 3 MiB; totals with many rows may pass gRPC's 4 MiB
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.enable_http_proxy", 0),
)

REMEDIES = {
    grpc.StatusCode.UNAVAILABLE: "is the service running, and may you use its socket?",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the service is stopped, overloaded or not reachable",
    grpc.StatusCode.UNIMPLEMENTED: "this is another service, or another version of it",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "ask for less: a shorter time, one owner, fewer groupings",
}


@contextmanager
def connect(address: str, deadline_seconds: float = DEADLINE_SECONDS) -> Iterator[grpc.Channel]:
    """Give a channel to the service at `address`; errors of calls within leave as RemoteError."""
    deadline = _Deadline(deadline_seconds)
    with grpc.insecure_channel(target(address), OPTIONS) as plain:
        try:
            yield grpc.intercept_channel(plain, deadline)
        except grpc.RpcError as error:
            raise explained(error, address) from error


def target(address: str) -> str:
    """Return gRPC's name for a unix socket's path, a unix: URL or host:port; raises RemoteError."""
    if address.startswith("/"):
        return f"unix://{address}"
    if address.startswith("unix:/") or re.fullmatch(
        r"(\[[0-9A-Fa-f:.]+\]|[^:/\s]+):\d{1,5}", address
    ):
        return address
    raise RemoteError(
        f"'{address}' names no service; give the path of its unix socket, or host:port"
    )


def explained(error: grpc.RpcError, address: str) -> RemoteError:
    """Return a failed call as one line: the service, its words, the remedy."""
    if not isinstance(error, grpc.Call):
        return RemoteError(f"{address}: {error}")
    code, text = error.code(), error.details() or "no reason given"
    if code is grpc.StatusCode.NOT_FOUND:
        return RemoteError(text)
    remedy = REMEDIES.get(code)
    return RemoteError(f"{address}: {text}" + (f" ({remedy})" if remedy else ""))


class _Deadline(grpc.UnaryUnaryClientInterceptor):
    """Gives a call without a deadline one."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Any], Any],
        client_call_details: grpc.ClientCallDetails,
        request: Any,
    ) -> Any:
        if client_call_details.timeout is None:
            client_call_details = client_call_details._replace(  # type: ignore[attr-defined]  # a named tuple in every release; the stubs say plain class
                timeout=self._seconds
            )
        return continuation(client_call_details, request)
