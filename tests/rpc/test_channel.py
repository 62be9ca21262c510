"""What a command sees of a service that is absent, silent or unwilling."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lark_agent.errors import RemoteError
from lark_agent.rpc.channel import connect, target
from lark_agent.rpc.lark.v1 import query_pb2, query_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUEST = query_pb2.GetJobRequest(id="1")


class Unwilling(query_pb2_grpc.QueryServicer):
    def GetJob(self, request: Any, context: Any) -> Any:  # noqa: N802  rpc name
        context.abort(grpc.StatusCode.NOT_FOUND, "no job '1' here")

    def ListJobs(self, request: Any, context: Any) -> Any:  # noqa: N802  rpc name
        return query_pb2.ListJobsResponse(next_page_token="x" * (5 << 20))

    def GetTotals(self, request: Any, context: Any) -> Any:  # noqa: N802  rpc name
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")

    def GetQuotas(self, request: Any, context: Any) -> Any:  # noqa: N802  rpc name
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    query_pb2_grpc.add_QueryServicer_to_server(Unwilling(), server)
    server.add_insecure_port(f"unix:{tmp_path}/q")
    server.start()
    yield f"{tmp_path}/q"
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/run/x", "unix:///run/x"),
        ("unix:///run/x", "unix:///run/x"),
        ("unix:/run/x", "unix:/run/x"),
        ("host:1", "host:1"),
        ("[::1]:1", "[::1]:1"),
    ],
)
def test_services_are_named_by_path_url_or_address(address: str, name: str) -> None:
    """Each form that people write leads to gRPC's name for it."""
    assert target(address) == name


@pytest.mark.parametrize("address", ["", "run/x", "host", "host:port", "http://host:1", "::1:80/"])
def test_what_names_no_service_is_refused(address: str) -> None:
    """Other forms are refused before anything is connected."""
    with pytest.raises(RemoteError, match="names no service"):
        target(address)


def test_an_absent_service_is_named_with_a_remedy(tmp_path: Path) -> None:
    """No socket at the path: the error has the path and asks whether the service runs."""
    with (
        pytest.raises(RemoteError, match=r"nobody.*is the service running"),
        connect(f"{tmp_path}/nobody") as channel,
    ):
        query_pb2_grpc.QueryStub(channel).GetJob(REQUEST)


def test_a_silent_service_is_given_up(tmp_path: Path) -> None:
    """A service that accepts and says nothing costs the deadline, not for ever."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/q")
        silent.listen()
        with (
            pytest.raises(RemoteError, match="overloaded or not reachable"),
            connect(f"{tmp_path}/q", deadline_seconds=0.2) as channel,
        ):
            query_pb2_grpc.QueryStub(channel).GetJob(REQUEST)


def test_what_is_not_there_is_said_in_the_services_words(service: str) -> None:
    """NOT_FOUND is the answer, without talk about the connection; the code is its cause's."""
    with pytest.raises(RemoteError) as caught, connect(service) as channel:
        query_pb2_grpc.QueryStub(channel).GetJob(REQUEST)
    assert str(caught.value) == "no job '1' here"
    assert isinstance(caught.value.__cause__, grpc.Call)
    assert caught.value.__cause__.code() is grpc.StatusCode.NOT_FOUND


def test_a_refusal_names_the_service(service: str) -> None:
    """Any other status is the service's text after its address."""
    with pytest.raises(RemoteError) as caught, connect(service) as channel:
        query_pb2_grpc.QueryStub(channel).GetTotals(query_pb2.GetTotalsRequest())
    assert str(caught.value) == f"{service}: not you"


def test_answers_above_four_mebibytes_are_taken(service: str) -> None:
    """Clients of ours take large answers, which gRPC by itself would refuse."""
    with connect(service) as channel:
        answer = query_pb2_grpc.QueryStub(channel).ListJobs(query_pb2.ListJobsRequest())
    assert len(answer.next_page_token) == 5 << 20
