"""The scripted service of `tests.cli.fake` on a real socket."""

from __future__ import annotations

from concurrent import futures
from typing import TYPE_CHECKING

import grpc
import pytest

from lark_agent.rpc.lark.v1 import agent_pb2_grpc, query_pb2_grpc
from tests.cli.fake import Script, Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """Serve on a unix socket, named by LARK_ENDPOINT as well."""
    script = Script()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    query_pb2_grpc.add_QueryServicer_to_server(script, server)
    agent_pb2_grpc.add_AgentServicer_to_server(script, server)
    path = str(tmp_path / "s.sock")
    server.add_insecure_port(f"unix:{path}")
    server.start()
    monkeypatch.setenv("LARK_ENDPOINT", path)
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("COLUMNS", raising=False)
    yield Service(path, script)
    server.stop(None).wait()
