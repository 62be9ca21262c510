"""The agent's word about itself, for `lark doctor` and monitoring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.rpc.lark.v1 import agent_pb2, agent_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import grpc


class StatusServicer(agent_pb2_grpc.AgentServicer):
    """Answers anybody: no job is named in the answer."""

    def __init__(self, status: Callable[[], Awaitable[agent_pb2.GetStatusResponse]]) -> None:
        self._status = status

    async def GetStatus(  # noqa: N802  rpc name
        self,
        request: agent_pb2.GetStatusRequest,  # noqa: ARG002  empty
        context: grpc.aio.ServicerContext[agent_pb2.GetStatusRequest, agent_pb2.GetStatusResponse],  # noqa: ARG002  not needed
    ) -> agent_pb2.GetStatusResponse:
        """Return the current state."""
        return await self._status()
