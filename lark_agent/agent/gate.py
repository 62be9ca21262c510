"""The run socket: where a job asks for its network and gets it, or a reason why not.

Any user may connect; every word received is the user's, except for what the kernel says about the
process (`SO_PEERCRED`, a pidfd, its network namespace, its parent). One connection is one
conversation: one request, one answer, then at most one datagram that says that the job could not be
started after all. A caller that hangs up while it waits for a sandbox costs nothing more; one that
sends nothing is cut after a few seconds. Connections are limited over all and for each user.

What has the launch key of a living attachment joins it; no word that it sends is looked at, since
the job itself may have written it. What the batch system only announces gets its sandbox before the
job is there (`Purpose.PREPARE`), so that a refusal can be told in time.

Who asks, and whether they may, is `lark_agent.agent.callers`. A caller that can enter no sandbox
makes a namespace after that check (`lark_agent.agent.own`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import structlog

from lark_agent import crash, trouble
from lark_agent.agent import conversation
from lark_agent.agent.attachment import Member
from lark_agent.agent.callers import Callers
from lark_agent.agent.callout import Callouts
from lark_agent.errors import (
    PolicyRefusal,
    PrerequisiteError,
    Refused,
    Unavailable,
)
from lark_agent.hooks import launch, slurm
from lark_agent.hooks import request as wire
from lark_agent.hooks.identity import Caller, identify
from lark_agent.linux import namespaces, process
from lark_agent.linux.descriptors import close_aside
from lark_agent.model import Connectivity
from lark_agent.policy import ads
from lark_agent.policy.site import Asking
from lark_agent.sandbox.connectivity import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lark_agent.agent.attachment import Attachment
    from lark_agent.agent.attachments import Attachments
    from lark_agent.agent.forwards import Forwards
    from lark_agent.agent.launchers import Launchers
    from lark_agent.agent.own import OwnNamespaces
    from lark_agent.agent.starters import Starters
    from lark_agent.config import AgentSettings
    from lark_agent.model import Job, NetworkPlan
    from lark_agent.policy.site import SitePolicy
    from lark_agent.sandbox.connectivity import Sandbox
    from lark_agent.sandbox.pool import Pool

_START_SECONDS = 60.0
_MOST, _MOST_PER_USER = 8192, 1024
_BACKLOG = 1024
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_SECONDS = 0.5
_NOT_YOURS = "the job that the batch system started here is another user's"
log = structlog.get_logger(__name__)


class Gate:
    """Listens on the run socket while it is open."""

    def __init__(
        self,
        path: Path,
        policy: Callable[[], SitePolicy],
        pool: Pool,
        attachments: Attachments,
        launchers: Launchers,
        settings: AgentSettings,
        own: OwnNamespaces,
        starters: Starters,
        forwards: Forwards,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._path = path
        self._policy = policy
        self._pool = pool
        self._attachments = attachments
        self._launchers = launchers
        self._settings = settings
        self._callouts = Callouts()
        self._own = own
        self._starters = starters
        self._forwards = forwards
        self._callers = Callers(settings)
        self._open_by_user: Counter[int] = Counter()
        self._asking: Counter[int] = Counter()
        self._conversations: set[asyncio.Task[None]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By launch key: processes of one job that come at once are taken one after the other."""
        self._listener: socket.socket | None = None
        self.refusals: Counter[str] = Counter()

    def open(self) -> None:
        """Start to listen. Raises PrerequisiteError if the socket cannot be made."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._listener.bind(str(self._path))
            self._path.chmod(0o666)
            self._listener.listen(_BACKLOG)
        except OSError as error:
            raise PrerequisiteError(
                f"cannot listen on {self._path}: {error.strerror}; run as root, check [paths] run"
            ) from error
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def close(self) -> None:
        """Stop to listen; conversations that wait are refused."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._path.unlink(missing_ok=True)
        for task in self._conversations:
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # out of descriptors, or the caller is gone again
            trouble.met("accept a caller")
            log.warning("cannot accept on the run socket", error=str(error))
            if error.errno in _EXHAUSTED:  # the caller still waits, and would call us again at once
                self._pause()
            return
        connection.setblocking(False)
        peer = process.peer(connection)
        if self._open_by_user.total() >= _MOST or self._open_by_user[peer.uid] >= _MOST_PER_USER:
            yours = "of yours " if self._open_by_user[peer.uid] >= _MOST_PER_USER else ""
            text = f"too many jobs {yours}ask for a network at the same time; try again"
            self._refuse(connection, Unavailable(text))
            close_aside([connection.detach()])
            return
        self._open_by_user[peer.uid] += 1
        task = asyncio.ensure_future(self._converse(connection, peer))
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)

    def _pause(self) -> None:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        loop.call_later(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._listener is not None and self._listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def _converse(self, connection: socket.socket, peer: process.Peer) -> None:
        try:
            attachment = await self._admit(connection, peer)
            if attachment is not None and attachment.main.process.pid == peer.pid:
                try:
                    await self._outcome(connection, attachment)
                finally:
                    attachment.outcome_known.set()
        except Refused as error:
            log.warning("refused", uid=peer.uid, pid=peer.pid, error=str(error))
            self._refuse(connection, error)
        except asyncio.CancelledError:
            self._refuse(connection, Unavailable("the agent is stopping; try again"))
            raise
        except Exception as error:
            log.exception("a request failed", uid=peer.uid, pid=peer.pid)
            self._refuse(connection, error)
        finally:
            # what the caller left unread may hold descriptors whose close blocks for hours
            close_aside([connection.detach()], partial(self._closed, peer.uid))

    def _closed(self, uid: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and its counters with it
            self._loop.call_soon_threadsafe(self._forget, uid)

    def _forget(self, uid: int) -> None:
        self._open_by_user[uid] -= 1

    async def _admit(self, connection: socket.socket, peer: process.Peer) -> Attachment | None:
        """Attach the caller to a sandbox; None if it went away, or is no job. Raises Refused."""
        pidfd = await conversation.open_peer(connection, peer)
        try:
            starters = self._starters.around(peer.pid)
            inside = self._callers.check(peer, pidfd, starters)
            request = await conversation.request(connection)
            if request is None:
                return None
            if request.purpose is wire.Purpose.TRANSFER and not inside:
                attachment = await self._starters.admit(connection, request, peer, pidfd)
                if attachment is not None:
                    pidfd = -1
                    self._grant(connection, attachment, inside=inside)
                return attachment
            caller = await self._callers.name(peer, request)
            if inside and caller.launcher is None:
                raise PolicyRefusal("only the starter itself starts jobs from its sandbox")
            if not process.alive(pidfd):  # so all that was found by its number was its own
                return None
            if request.purpose is not wire.Purpose.RUN:
                await self._serve_launcher(connection, request, caller)
                return None
            with self._limited(caller):
                attachment = await self._run(connection, request, caller, pidfd)
            if attachment is None:
                return None
            pidfd = -1  # the attachment's now
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        self._grant(connection, attachment, inside=inside)
        self._attachments.tell(attachment)  # after the job was let go: it waits for none of this
        return attachment

    async def _run(
        self, connection: socket.socket, request: wire.RunRequest, caller: Caller, pidfd: int
    ) -> Attachment | None:
        """Let the caller join the attachment of its launch, or begin one."""
        member = Member.of(caller.pid, pidfd)
        key = launch.key(caller, request)
        if not key:
            return await self._attach(connection, request, caller, member, key)
        async with self._turn(key):
            attachment = self._attachments.of(key)
            if attachment is None:
                return await self._attach(connection, request, caller, member, key)
            if attachment.record.job.uid != caller.uid:
                raise PolicyRefusal(_NOT_YOURS)
            if request.own_namespace:
                self._own.check_joinable(attachment.sandbox)
            if not process.alive(member.pidfd):  # while it waited for its turn
                return None
            await self._attachments.join(attachment, member)
            await self._launchers.look(attachment)
            await self._forwards.follow(attachment)
            return attachment

    async def _serve_launcher(
        self, connection: socket.socket, request: wire.RunRequest, caller: Caller
    ) -> None:
        """Do what the batch system asks about a job that is not there yet, or no more."""
        key, line = launch.key(caller, request), ""
        if not key:
            raise PolicyRefusal("only what the batch system starts may ask for that")
        if request.purpose is wire.Purpose.END:
            if not caller.by_root:
                raise PolicyRefusal("only root may say that a job has ended")
            record = await self._attachments.release(key)
            line = slurm.summary(record) if record is not None else ""
        else:
            async with self._turn(key):
                if self._attachments.of(key) is None:
                    await self._announce(connection, request, caller, key)
                    crash.here("reservation.made")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send_done(connection, line)

    async def _announce(
        self, connection: socket.socket, request: wire.RunRequest, caller: Caller, key: str
    ) -> None:
        """Have the sandbox of a job ready, held by its launcher."""
        if caller.launcher is None:
            raise PolicyRefusal("root needs to announce no job; its first process begins it")
        pidfd = process.open_pid(caller.launcher.pid)
        holder = Member.of(caller.launcher.pid, pidfd)
        attachment = None
        try:
            if holder.process.start_time == caller.launcher.start_time:
                attachment = await self._attach(
                    connection, request, caller, holder, key, announced=True
                )
        finally:
            if attachment is None:
                os.close(pidfd)
            else:
                self._attachments.tell(attachment)

    def _turn(self, key: str) -> asyncio.Lock:
        return self._turns.setdefault(key, asyncio.Lock())

    async def _attach(
        self, connection: socket.socket, request: wire.RunRequest, caller: Caller, member: Member,
        key: str, *, announced: bool = False,
    ) -> Attachment | None:  # fmt: skip
        """Decide, get a sandbox, begin; None if the caller went away meanwhile."""
        planned = await self._decided(key, caller) or await self._plan(connection, request, caller)
        if planned is None:
            return None
        job, plan = planned
        if request.own_namespace:
            self._own.check(plan)
        if announced and (request.own_namespace or plan.connectivity is Connectivity.HOST):
            return None  # nothing can be ready: only the job itself can be moved, or make it
        launcher = self._launchers.ports(caller.launcher, plan)
        with contextlib.ExitStack() as stack:
            namespace = -1
            if request.own_namespace:
                namespace = await self._own.obtain(connection, caller, member.pidfd)
                if namespace < 0:
                    return None
                stack.callback(os.close, namespace)
            sandbox = await self._take(connection, Kind.of(plan, launcher), member, job.uid)
            if sandbox is None:
                return None
            try:
                if namespace >= 0:
                    await self._own.furnish(sandbox, namespace)
                attachment = await self._attachments.begin(
                    job, plan, sandbox, member, key, launcher,
                    announced=announced, steps=caller.by_root,
                )  # fmt: skip
            except BaseException:
                self._pool.condemn(sandbox)
                raise
        self._launchers.watch(attachment)
        self._starters.note(attachment, caller.launcher)
        await self._forwards.follow(attachment)
        return attachment

    async def _take(
        self, connection: socket.socket, kind: Kind, member: Member, user: int
    ) -> Sandbox | None:
        """Take a sandbox from the pool; None if the caller went away meanwhile."""
        sandbox = self._pool.take_ready(kind) or await conversation.unless_hung_up(
            connection, self._pool.take(kind, self._settings.pool.wait_seconds, user)
        )
        if sandbox is not None and not process.alive(member.pidfd):
            self._pool.put_back(sandbox)
            return None
        return sandbox

    async def _decided(self, key: str, caller: Caller) -> tuple[Job, NetworkPlan] | None:
        """Return what was decided before for the same process of the batch system."""
        if not key or caller.by_root:
            return None
        decided = await self._attachments.decided(key)
        if decided is not None and decided[0].uid != caller.uid:
            raise PolicyRefusal(_NOT_YOURS)
        return decided

    async def _plan(
        self, connection: socket.socket, request: wire.RunRequest, caller: Caller
    ) -> tuple[Job, NetworkPlan] | None:
        """Name the job and decide about it; None if it hangs up meanwhile."""
        job, ad = identify(request, caller)
        machine = ads.parse(request.machine_ad or b"", "machine ad")
        announced = request.purpose is wire.Purpose.PREPARE
        asking = Asking(job, ad, machine, request.options.get("profile", ""), announced)
        policy = self._policy()
        if not policy.callout.command:
            return job, policy.plan(asking)
        overrides = await conversation.unless_hung_up(
            connection, self._callouts.ask(policy, asking)
        )
        return None if overrides is None else (job, policy.plan(asking, overrides))

    @contextlib.contextmanager
    def _limited(self, caller: Caller) -> Iterator[None]:
        """Refuse a user who holds, or waits for, what one may have outside the batch system."""
        if caller.trusted:
            yield
            return
        uid, most = caller.uid, self._settings.pool.per_user
        if self._attachments.held_by(uid) + self._asking[uid] >= most:
            raise Unavailable(
                f"you have {most} jobs with a network already that no batch system started; wait "
                "for one to end (the admin can raise [pool] per_user)"
            )
        self._asking[uid] += 1
        try:
            yield
        finally:
            self._asking[uid] -= 1

    def _grant(self, connection: socket.socket, attachment: Attachment, *, inside: bool) -> None:
        """Answer with the network; to a caller `inside` a starter's the worker's is another."""
        sandbox = attachment.sandbox
        stays = sandbox.connectivity is Connectivity.HOST
        namespace = Path("/proc/self/ns/net") if stays else namespaces.path(sandbox.name)
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            resolv_conf = not stays and attachment.plan.connectivity is not Connectivity.NONE
            if attachment.record.is_transfer:
                resolv_conf = self._starters.needs_resolver()
            of_slot = sandbox.slot if sandbox.own_resolvers else None
            crash.here("grant.ready")
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its pidfd will say
                wire.send_grant(
                    connection,
                    descriptor,
                    resolv_conf=resolv_conf,
                    of_slot=of_slot,
                    stay=stays and not inside,
                    bare=stays and inside,
                )
            crash.here("grant.sent")
        finally:
            os.close(descriptor)

    async def _outcome(self, connection: socket.socket, attachment: Attachment) -> None:
        """Listen for the word that the job could not be started; silence means that it was."""
        if not await conversation.readable(connection, _START_SECONDS):
            return
        try:
            failure = wire.receive_failure(connection)
        except OSError:
            return
        if failure is not None:
            attachment.not_started, text = failure
            log.warning("job not started", attachment=attachment.record.attachment_id, error=text)
            if attachment.record.is_transfer:  # it goes on, without us
                self._attachments.abandon(attachment)

    def _refuse(self, connection: socket.socket, error: BaseException) -> None:
        self.refusals[type(error).__name__] += 1
        with contextlib.suppress(OSError):
            wire.send_refusal(connection, error)
