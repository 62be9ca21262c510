"""Sandboxes for HTCondor's starters, so that what they move for their jobs is counted.

`lark-starter` asks as root, before it becomes the starter. Accounting must never stop a job: what
cannot be given is refused at once or within seconds, and the starter then runs in the worker's own
network, as it would without us. Such jobs are counted, and their records have no `transfer`.

A starter has to reach its startd, and with it every other daemon of HTCondor here. With shared port
that is one TCP port of the worker, of which CONDOR_INHERIT tells; the datapath lets the sandbox
have it at this one address. Without shared port, or where it is on the loopback, there is nothing
that a sandbox could be given.

Its job asks from that sandbox: the starter's own children may, though they are not in the worker's
network. No sandbox is given that a job might miss: every starter without a job leaves one free.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from lark_agent.agent import conversation, transfers
from lark_agent.agent.attachment import Member
from lark_agent.errors import InvalidRequest, PolicyRefusal, Unavailable
from lark_agent.hooks.identity import Launcher
from lark_agent.linux import namespaces, process, programs
from lark_agent.model import Connectivity, Job, NetworkPlan, Scheduler
from lark_agent.sandbox.connectivity import Kind
from lark_agent.schedulers import starts_one_job

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from lark_agent.agent.attachment import Attachment
    from lark_agent.agent.attachments import Attachments
    from lark_agent.config import AgentSettings
    from lark_agent.hooks.request import RunRequest
    from lark_agent.sandbox.pool import Pool

STARTD, ADDRESS = "condor_startd", "STARTD"
PLAN = NetworkPlan("transfer", Connectivity.NAT)
"""Every class, no quota: the batch system's own traffic."""
NOBODYS = Job(Scheduler.HTCONDOR, "", "root", 0, verified=True)
_WAIT_SECONDS = 5.0
_STARTD = re.compile(r"<([\d.]+):(\d+)[?>]")
log = structlog.get_logger(__name__)


class Starters:
    """Gives starters their sandboxes, and knows who is in one."""

    def __init__(
        self,
        settings: AgentSettings,
        pool: Pool,
        attachments: Attachments,
        needs_resolver: Callable[[], bool],
    ) -> None:
        """`needs_resolver` tells whether the worker's own resolv.conf is no use in a sandbox."""
        self._wanted = settings.htcondor.account_transfer
        self._pool = pool
        self._attachments = attachments
        self.needs_resolver = needs_resolver
        self.unaccounted = 0
        """Jobs whose starter was in the worker's own network, though it should not be."""

    async def admit(
        self, connection: socket.socket, request: RunRequest, peer: process.Peer, pidfd: int
    ) -> Attachment | None:
        """Begin a starter's attachment; None if it went away. Raises Refused."""
        if not self._wanted:
            raise PolicyRefusal("transfers are not accounted here ([htcondor] account_transfer)")
        if peer.uid != 0 or not _is_startd(process.parent(peer.pid)) or not process.alive(pidfd):
            raise PolicyRefusal(f"only what {STARTD} starts as root moves files of jobs")
        startd = address_of(request.environment.get(ADDRESS, ""))
        if self._pool.spare <= self._attachments.transfers.without_job() + 1:
            raise Unavailable(
                "all sandboxes but those that jobs need are taken; the admin can raise [pool] slots"
            )
        kind, member = Kind.of(PLAN), Member.of(peer.pid, pidfd)
        sandbox = self._pool.take_ready(kind) or await conversation.unless_hung_up(
            connection, self._pool.take(kind, _WAIT_SECONDS)
        )
        if sandbox is None:
            return None
        try:
            starter = Launcher(peer.pid, member.process.start_time, "")
            return await self._attachments.begin(
                NOBODYS, PLAN, sandbox, member, transfers.key_of(starter), beside=startd
            )
        except BaseException:
            self._pool.condemn(sandbox)
            raise

    def around(self, pid: int) -> tuple[int, int] | None:
        """Return the network of the starter whose child a process is; None if it has none.

        The caller must make sure afterwards that the process is still there.
        """
        if not self._attachments.transfers.some:
            return None
        parent = process.parent(pid)
        known = transfers.key_of(Launcher(parent, process.start_time(parent), ""))
        attachment = self._attachments.of(known)
        if attachment is None:
            return None
        return namespaces.identity(namespaces.path(attachment.sandbox.name))

    def note(self, attachment: Attachment, launcher: Launcher | None) -> None:
        """Count a job whose starter should have a sandbox and has none."""
        if not self._wanted or launcher is None or not starts_one_job(launcher.command):
            return
        if self._attachments.transfers.of(attachment.key) is None:
            self.unaccounted += 1
            record = attachment.record
            log.warning("transfer is not accounted", job=record.job.job_id, starter=launcher.pid)


def _is_startd(pid: int) -> bool:
    _, uid = process.command_and_user(pid) or ("", -1)
    program = programs.of(pid) if uid == 0 else None
    return program is not None and Path(program.path).name == STARTD and not program.doubt


def address_of(startd: str) -> tuple[IPv4Address, int]:
    """Return where a startd can be reached from a sandbox, by its address as HTCondor writes it.

    Raises Unavailable if it cannot be, InvalidRequest if it is none.
    """
    found = _STARTD.match(startd)
    try:
        address, port = IPv4Address(found[1] if found else ""), int(found[2] if found else 0)
    except ValueError:
        raise InvalidRequest(f"'{startd}' has no IPv4 address of a startd") from None
    if address.is_loopback:
        raise Unavailable(
            "HTCondor is on the worker's loopback, which a sandbox does not have; set "
            "NETWORK_INTERFACE to an address of the worker"
        )
    if "sock=" not in startd:
        raise Unavailable(
            "HTCondor's daemons have ports of their own, which a sandbox cannot reach; set "
            "USE_SHARED_PORT = True"
        )
    return address, port
