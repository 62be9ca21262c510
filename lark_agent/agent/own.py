"""The way into a sandbox for callers that can enter no namespace but their own.

It is an ordinary request, checked and planned as any other while the caller is in the worker's
network. Then the caller is told to make a namespace, and says when it has; before that nothing is
taken from the pool, so one that keeps silent holds nothing. That order is what tells it from a job
in a sandbox, which also could make a namespace with nothing in it.

The namespace is not received: the kernel says in which one the caller is. What is in there is the
caller's doing, so it is looked at in a thread of its own and for a bounded time, and before a
sandbox is taken, which a refusal after that would spoil. For a job that is only
announced nothing is kept, since there is no namespace yet; but a refusal can be told. Later
processes of a job join what the first one made, whose user they are.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from lark_agent.agent import conversation
from lark_agent.agent.tasks import OwnThread
from lark_agent.errors import InvalidRequest, KernelError, PolicyRefusal, Unavailable
from lark_agent.hooks import request as wire
from lark_agent.linux import process
from lark_agent.sandbox import own

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from lark_agent.hooks.identity import Caller
    from lark_agent.model import NetworkPlan
    from lark_agent.sandbox.connectivity import Sandbox

_SECONDS = 10.0
"""How long the caller may take; it waits for nobody but the kernel."""
_WHY = (
    "file capabilities have no effect for this job (no_new_privs, or a container without "
    "CAP_SYS_ADMIN), so it can only have a network in a namespace of its own"
)


class OwnNamespaces:
    """Namespaces that callers make: `check`, `obtain`, then `furnish`."""

    def __init__(
        self, hand_over: Callable[[Sandbox, int], Awaitable[None]], *, allowed: bool
    ) -> None:
        """`hand_over` moves a sandbox into the namespace behind a descriptor."""
        self._hand_over = hand_over
        self._allowed = allowed
        self._looking = OwnThread("look")

    def check(self, plan: NetworkPlan) -> None:
        """Raise PolicyRefusal if a job with this plan can have no namespace of its own."""
        if not self._allowed:
            raise PolicyRefusal(
                f"{_WHY}, which this site has forbidden ([pool] own_namespaces); start the batch "
                "system without no_new_privs"
            )
        if plan.connectivity not in own.KINDS:
            raise PolicyRefusal(
                f"{_WHY}, and with connectivity {plan.connectivity} of profile {plan.profile} "
                "something would rest on what is in there; start the batch system without "
                "no_new_privs, or choose nat, routed or none"
            )

    def check_joinable(self, sandbox: Sandbox) -> None:
        """Raise PolicyRefusal if nobody but the agent may let a process into this sandbox."""
        if sandbox.connectivity not in own.KINDS or not own.is_jobs(sandbox.name):
            raise PolicyRefusal(
                f"{_WHY}, and the job's other processes are in one of the worker's; start all of "
                "them with no_new_privs or none"
            )

    async def obtain(self, connection: socket.socket, caller: Caller, pidfd: int) -> int:
        """Return a descriptor of the namespace that the caller makes now, -1 if it hangs up.

        Raises Refused.
        """
        try:
            wire.send_make_own(connection)
            if not await conversation.readable(connection, _SECONDS):
                raise InvalidRequest(f"the caller made no network namespace in {_SECONDS:g} s")
            if not wire.receive_made(connection):
                return -1
            namespace = process.open_network(caller.pid, pidfd)
        except (KernelError, BrokenPipeError, ConnectionResetError):
            return -1
        try:
            await self._look(namespace, caller.uid)
        except BaseException:
            os.close(namespace)
            raise
        return namespace

    async def _look(self, namespace: int, uid: int) -> None:
        """Raise Refused unless the namespace is the user's, and as a new one is."""
        own.check_owner(namespace, uid)
        kept = os.dup(namespace)  # it may be looked at for longer than is waited

        def look() -> None:
            try:
                own.check_empty(kept)
            finally:
                os.close(kept)

        try:
            await asyncio.wait_for(self._looking(look), _SECONDS)
        except TimeoutError as error:
            raise Unavailable(
                f"the caller's network namespace could not be looked at in {_SECONDS:g} s; is "
                "somebody making interfaces without end?"
            ) from error
        except KernelError as error:
            raise Unavailable(
                f"the worker cannot look into the job's namespace: {error}"
            ) from error

    async def furnish(self, sandbox: Sandbox, namespace: int) -> None:
        """Let the namespace be the sandbox's. Raises Refused; then the sandbox is spoilt."""
        try:
            await self._hand_over(sandbox, namespace)
        except KernelError as error:
            raise Unavailable(f"the worker cannot furnish the job's namespace: {error}") from error
