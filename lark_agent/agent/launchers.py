"""The process that started a job, as a service of the worker to that job.

HTCondor's starter listens on the worker's loopback, on a port of its own for each job, and tells
the job which (chirp). In a sandbox 127.0.0.1 is another place, so the agent makes these ports
appear there (`lark_agent.sandbox.services`). Which they are is the kernel's word, asked when the
job starts: what the caller's parent listens on, if that is the batch system's own starter. Nothing
that a user says has a part in it, and nothing else of the loopback can become reachable by it: a
listener on all addresses is not one of the loopback.

The ports are the job's while its launcher lives. If that ends before the job does, they are taken
back, because any program could get the number next. They outlive the agent in the datapath, so the
next one finds them there; the launcher is still the parent of the job's process.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import structlog

from lark_agent import trouble
from lark_agent.errors import KernelError, LarkError
from lark_agent.hooks import launch
from lark_agent.linux import listeners, process
from lark_agent.model import Connectivity
from lark_agent.schedulers import starts_one_job

if TYPE_CHECKING:
    from lark_agent.agent.attachment import Attachment
    from lark_agent.agent.enforcing import Enforcing
    from lark_agent.agent.tasks import OwnThread, Tasks
    from lark_agent.hooks.identity import Launcher
    from lark_agent.model import NetworkPlan

_LINKED = {Connectivity.NAT, Connectivity.ROUTED, Connectivity.NONE}
"""Where the worker is on the other end of the sandbox's link, or can be."""
log = structlog.get_logger(__name__)


class Launchers:
    """The launchers of this worker's jobs, those that serve one job (`lark_agent.hooks.launch`)."""

    def __init__(self, enforcing: Enforcing, in_kernel: OwnThread, tasks: Tasks) -> None:
        self._enforcing = enforcing
        self._in_kernel = in_kernel
        self._tasks = tasks

    def ports(self, launcher: Launcher | None, plan: NetworkPlan) -> frozenset[int]:
        """Return where the launcher of a job listens for it; nothing if it serves others as well.

        A job whose sandbox has no link to the worker has none.
        """
        if launcher is None or not starts_one_job(launcher.command):
            return frozenset()
        return _ports(launcher) if plan.connectivity in _LINKED else frozenset()

    async def look(self, attachment: Attachment) -> None:
        """Look once more, when a process joins: a job may be announced before its time."""
        launcher, sandbox = launch.launcher(attachment.key), attachment.sandbox
        if launcher is None or sandbox.connectivity not in _LINKED - {Connectivity.NONE}:
            return
        found = _ports(launcher)
        if found != attachment.launcher:
            attachment.launcher = found
            await self._let(attachment)

    def watch(self, attachment: Attachment) -> None:
        """Take the ports back when the launcher ends."""
        launcher = launch.launcher(attachment.key)
        if launcher is None:
            return
        try:
            pidfd = process.open_pid(launcher.pid)
        except KernelError:
            self._withdraw(attachment)
            return
        asyncio.get_running_loop().add_reader(pidfd, self._ended, pidfd, attachment)
        if process.start_time(launcher.pid) != launcher.start_time:  # another, by that number
            self._ended(pidfd, attachment)

    def adopt(self, attachment: Attachment, ports: frozenset[int]) -> None:
        """Go on with what an earlier agent gave a job that runs on."""
        attachment.launcher = ports
        self.watch(attachment)

    def _ended(self, pidfd: int, attachment: Attachment) -> None:
        if asyncio.get_running_loop().remove_reader(pidfd):
            os.close(pidfd)
            self._withdraw(attachment)

    def _withdraw(self, attachment: Attachment) -> None:
        if attachment.launcher:
            attachment.launcher = frozenset()
            log.info("the launcher has ended", attachment=attachment.record.attachment_id)
            self._tasks.once("launcher", self._let(attachment))

    async def _let(self, attachment: Attachment) -> None:
        def let() -> None:
            if not attachment.record.final:  # else the slot is another job's by now
                self._enforcing.let_launcher(attachment.holding)

        try:
            await self._in_kernel.at_once(let)
        except (LarkError, OSError) as error:
            key = attachment.record.attachment_id
            trouble.met("follow a launcher")
            log.error("cannot follow a launcher", attachment=key, error=str(error))


def _ports(launcher: Launcher) -> frozenset[int]:
    try:
        found = listeners.on_loopback(launcher.pid)
    except KernelError as error:
        trouble.met("see a launcher's ports")
        log.warning("a job cannot reach its launcher", launcher=launcher.pid, error=str(error))
        return frozenset()
    # still the same: so it was all the time, and the number was no other's
    return found if process.start_time(launcher.pid) == launcher.start_time else frozenset()
