"""The service that only a worker's agent has: its state for anybody, changes for admins.

No job is named in the state. A change is asked for by whom the kernel says; each refusal has a
status of its own, so that a program can tell a mistake from a worker that is full.
"""

from __future__ import annotations

import asyncio
import pwd
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from lark_agent.errors import LarkError, Refused
from lark_agent.rpc import convert
from lark_agent.rpc.frontdoor import OPTIONS, FrontDoor, UnknownCallerError
from lark_agent.rpc.lark.v1 import agent_pb2, agent_pb2_grpc, query_pb2, query_pb2_grpc
from lark_agent.rpc.queries import QueryServicer, end_call, require_everything, sight_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from contextlib import AsyncExitStack
    from pathlib import Path

    from lark_agent.accounting.questions import UsageSource
    from lark_agent.agent.changing import Changing
    from lark_agent.rpc.frontdoor import Caller

    Context = grpc.aio.ServicerContext[Any, Any]


class AgentServicer(agent_pb2_grpc.AgentServicer):
    """Answers those whom `caller_of` knows (see `FrontDoor.caller`)."""

    def __init__(
        self,
        status: Callable[[], Awaitable[agent_pb2.GetStatusResponse]],
        machine: Callable[[], Awaitable[agent_pb2.GetMachineResponse]],
        changing: Changing,
        caller_of: Callable[[Any], Caller],
        admin_group: str,
        observers: Collection[str],
    ) -> None:
        self._status = status
        self._machine = machine
        self._observers = observers
        self._changing = changing
        self._caller_of = caller_of
        self._admin_group = admin_group

    async def GetStatus(  # noqa: N802  rpc name
        self,
        request: agent_pb2.GetStatusRequest,  # noqa: ARG002  empty
        context: Context,  # noqa: ARG002  not needed
    ) -> agent_pb2.GetStatusResponse:
        """Return the current state."""
        return await self._status()

    async def GetMachine(  # noqa: N802  rpc name
        self,
        request: agent_pb2.GetMachineRequest,  # noqa: ARG002  empty
        context: Context,
    ) -> agent_pb2.GetMachineResponse:
        """Return what a batch system's daemon tells its pool."""
        try:
            await require_everything(
                context, self._caller_of(context), self._admin_group, self._observers, "agent.toml"
            )
            return await self._machine()
        except UnknownCallerError as error:
            await end_call(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
        except LarkError as error:
            await end_call(context, grpc.StatusCode.UNAVAILABLE, str(error))

    async def ChangeJob(  # noqa: N802  rpc name
        self, request: agent_pb2.ChangeJobRequest, context: Context
    ) -> agent_pb2.ChangeJobResponse:
        """Change what a running job may do."""
        try:
            caller = self._caller_of(context)
            sight = await asyncio.to_thread(sight_of, caller, self._admin_group)
            if not sight.everything:
                await end_call(
                    context,
                    grpc.StatusCode.PERMISSION_DENIED,
                    f"only root and members of {self._admin_group} change running jobs",
                )
            convert.check_text("id", request.id)
            by = await asyncio.to_thread(_name, caller.uid)
            record = await self._changing.change(request.id, dict(request.settings), by)
        except UnknownCallerError as error:
            await end_call(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
        except LookupError as error:
            await end_call(context, grpc.StatusCode.NOT_FOUND, str(error.args[0]))
        except (convert.InvalidRecord, ValueError) as error:
            await end_call(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Refused as error:
            await end_call(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except LarkError as error:
            await end_call(context, grpc.StatusCode.UNAVAILABLE, str(error))
        return agent_pb2.ChangeJobResponse(record=convert.record_to_wire(record))


async def serve(
    stack: AsyncExitStack,
    socket: Path,
    answers: UsageSource,
    status: Callable[[], Awaitable[agent_pb2.GetStatusResponse]],
    machine: Callable[[], Awaitable[agent_pb2.GetMachineResponse]],
    changing: Changing,
    admin_group: str,
    observers: Collection[str],
) -> None:
    """Answer on a unix socket from now on; `stack` ends it."""
    door = await stack.enter_async_context(FrontDoor(socket))
    server = grpc.aio.server(options=OPTIONS)
    queries = QueryServicer(answers, door.caller, admin_group, observers)
    stack.callback(queries.close)
    query_pb2_grpc.add_QueryServicer_to_server(queries, server)
    servicer = AgentServicer(status, machine, changing, door.caller, admin_group, observers)
    agent_pb2_grpc.add_AgentServicer_to_server(servicer, server)
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [
        query_pb2.DESCRIPTOR.services_by_name["Query"].full_name,
        agent_pb2.DESCRIPTOR.services_by_name["Agent"].full_name,
    ]
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((*names, health_name, reflection.SERVICE_NAME), server)
    server.add_insecure_port(door.address)
    await server.start()
    stack.push_async_callback(server.stop, 0.5)
    for name in ("", *names):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    await door.open()


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
