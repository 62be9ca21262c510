"""The life of an attachment: begin, join, sample, drain, settle, final record.

`begin` makes the plan hold in the kernel and the attachment known to the journal before the job may
start. From then on the pidfds of the job's processes are watched: usually one, or, where the launch
has a key (`lark_agent.hooks.launch`), all that joined. A batch system may ask before the job's
first process is there: its own process holds the sandbox then, for a bounded time. Where more
processes may come after the last has ended (Slurm's steps), the sandbox is kept until the batch
system says that the job is over, or for a bounded time. When the end has come:

1. *drain*: what is still under way is let through, for `drain_seconds` at most
   (`lark_agent.agent.drain`);
2. *settle*: the plan is switched off in the kernel, and one grace period later no program that saw
   it switched on is still running, so the counters can never change again;
3. the counters are read a last time, the final record is made durable, and only then is the sandbox
   condemned. A journal that cannot be written (full disk) keeps the sandbox and is tried again.

Steps 2 and 3 are done for all attachments that ended meanwhile at once, because grace periods and
disk flushes cost the same for many as for one. Sampling and settling exclude each other, so the
records of one attachment are numbered in one sequence.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from lark_agent import crash, trouble
from lark_agent.accounting.prices import Prices
from lark_agent.accounting.sampler import read, sample
from lark_agent.agent.attachment import Attachment, boot_id
from lark_agent.agent.clock import Clock, Ids
from lark_agent.agent.drain import Moved, drain
from lark_agent.agent.transfers import Transfers
from lark_agent.errors import KernelError, LarkError, StoreError, Unavailable
from lark_agent.linux import process
from lark_agent.model import Connectivity, ExitReason, Record, Usage
from lark_agent.policy.comparing import settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from ipaddress import IPv4Address

    from lark_agent.accounting.journal import Journal
    from lark_agent.agent.attachment import Member
    from lark_agent.agent.drain import Place
    from lark_agent.agent.enforcing import Enforcing
    from lark_agent.agent.tasks import OwnThread, Tasks
    from lark_agent.config import Pool as PoolSettings
    from lark_agent.datapath import Datapath
    from lark_agent.model import Change, Job, NetworkPlan
    from lark_agent.sandbox.connectivity import Sandbox
    from lark_agent.sandbox.holding import Holding
    from lark_agent.sandbox.pool import Pool

_REAP_SECONDS = 0.5
_RETRY_SECONDS = 1.0
_LAST_RECORD_SECONDS = 60.0
log = structlog.get_logger(__name__)


class Attachments:
    """All living attachments of this worker."""

    def __init__(
        self,
        worker: str,
        datapath: Datapath,
        enforcing: Enforcing,
        pool: Pool,
        journal: Journal,
        journal_thread: OwnThread,
        kernel_thread: OwnThread,
        tasks: Tasks,
        pool_settings: PoolSettings,
        place_of: Callable[[Holding], Place],
        waiting: Callable[[Holding], int],
        clock_ns: Callable[[], int],
        move_in: Callable[[Holding], None],
    ) -> None:
        """`move_in` puts one more process into the place of a job without a sandbox."""
        self._worker = worker
        self._datapath = datapath
        self._enforcing = enforcing
        self._pool = pool
        self._journal = journal
        self._in_journal = journal_thread
        self._in_kernel = kernel_thread
        self._tasks = tasks
        self._settings = pool_settings
        self._place_of = place_of
        self._waiting = waiting
        self._clock_ns = clock_ns
        self._ids = Ids()
        self._move_in = move_in
        self.prices = Prices({})
        """What counts from the next sample on."""
        self._living: dict[str, Attachment] = {}
        self.transfers = Transfers(self._living)
        self.leaving: Callable[[Attachment], None] = _is_left
        """Called when the end of a job has come, before anything is drained."""
        self._ended: list[Attachment] = []
        self._settle_wanted = asyncio.Event()
        self._numbering = asyncio.Lock()
        self.ready: Callable[[Attachment], Awaitable[None]] = _is_ready
        """Awaited when all of a job's plan holds, before it may start."""
        self.changed = asyncio.Event()
        """Set whenever the journal has news for the collector."""

    def __len__(self) -> int:
        return len(self._living)

    def held_by(self, uid: int) -> int:
        """Count the jobs of a user that no batch system started."""
        jobs = (attachment.record.job for attachment in self._living.values())
        return sum(job.uid == uid and not job.verified for job in jobs)

    @property
    def reserved(self) -> int:
        """Count the sandboxes that wait for a job that was announced."""
        return sum(not attachment.members for attachment in self._living.values())

    def of(self, key: str) -> Attachment | None:
        """Return the attachment that a launch can join."""
        return next((a for a in self._living.values() if a.key == key and not a.ending), None)

    async def begin(
        self, job: Job, plan: NetworkPlan, sandbox: Sandbox, member: Member,
        key: str = "", launcher: frozenset[int] = frozenset(), *, announced: bool = False,
        steps: bool = False, beside: tuple[IPv4Address, int] | None = None,
    ) -> Attachment:  # fmt: skip
        """Attach a job to a sandbox; takes over the member's pidfd.

        With a key others may join, with `steps` also after the last has ended. If the job is only
        `announced`, the member holds its place. `launcher` and `beside` are as in `Holding`.
        Raises Refused if the plan cannot be put in force, Unavailable if the journal cannot
        record it.
        """
        now = self._clock_ns()
        record = Record(
            self._ids.new(now), self._worker, sandbox.slot, job, plan.profile,
            plan.connectivity, started_ns=now, sampled_ns=now,
            first_port=sandbox.first_port, last_port=sandbox.last_port,
            ipv4=str(sandbox.ipv4 or ""), ipv6=str(sandbox.ipv6 or ""), network=plan.network,
            peers=plan.peers, plan=settings(plan),
        )  # fmt: skip
        members = [] if announced else [member]
        attachment = Attachment(record, sandbox, plan, members, Clock.at(now), key)
        attachment.steps, attachment.launcher, attachment.beside = steps, launcher, beside
        attachment.moved_before = await self._moved_before(key)
        if announced:
            attachment.holder = member
            attachment.outcome_known.set()
        await self._put_in_force(attachment.holding)
        launch = attachment.launch
        try:
            await self._in_journal.at_once(lambda: self._journal.begin(record, launch, plan))
        except StoreError as error:
            self._datapath.deactivate(sandbox.slot)
            await self._in_kernel(lambda: self._enforcing.end(attachment.holding))
            raise Unavailable(f"the worker cannot record the job: {error}") from error
        crash.here("claim.recorded")
        self.adopt(attachment)
        await self.ready(attachment)
        return attachment

    async def _moved_before(self, key: str) -> Usage:
        """Return what the starter of a job has moved for an earlier attachment, which has it."""
        found = self.transfers.earlier(key)
        if found is None:
            return Usage()
        starter, earlier = found
        slot = starter.sandbox.slot
        async with self._numbering:
            moved = (await self._in_kernel(lambda: read(self._datapath, [slot])))[slot]
            if self.transfers.share(earlier, moved):
                self._settle(earlier)
        return moved

    async def decided(self, key: str) -> tuple[Job, NetworkPlan] | None:
        """Return what was decided for an earlier attachment of a launch. Raises Unavailable."""
        try:
            return await self._in_journal.at_once(lambda: self._journal.decided(key, boot_id()))
        except StoreError as error:
            raise Unavailable(f"the worker cannot look the job up: {error}") from error

    async def join(self, attachment: Attachment, member: Member) -> None:
        """Let one more process have the sandbox; takes over its pidfd if it can.

        Raises Unavailable if the journal cannot record it, or it cannot be held.
        """
        first = not attachment.members
        attachment.members.append(member)  # from here on the others' end is not the job's
        try:
            if attachment.sandbox.connectivity is Connectivity.HOST:
                seen = attachment.seen_as(member)
                await self._in_kernel.at_once(lambda: self._move_in(seen))
            key, launch = attachment.record.attachment_id, attachment.launch
            crash.here("join.admitted")
            await self._in_journal.at_once(lambda: self._journal.join(key, launch))
            crash.here("join.recorded")
        except LarkError as error:
            attachment.members.remove(member)
            self._consider(attachment)
            raise Unavailable(f"the worker cannot add a process to the job: {error}") from error
        if attachment.timer is not None:
            attachment.timer.cancel()
        if first:
            attachment.outcome_known.clear()
        asyncio.get_running_loop().add_reader(member.pidfd, self._fired, attachment, member)

    async def release(self, key: str) -> Record | None:
        """Keep a sandbox no longer for processes that may come; returns the final record.

        None if nothing has it, or something that is not the batch system's still runs in it and
        stays for more than a minute.
        """
        attachment = self.of(key)
        if attachment is None:
            return None
        attachment.steps = False
        identity, launch = attachment.record.attachment_id, attachment.launch
        try:
            await self._in_journal(lambda: self._journal.join(identity, launch))
        except StoreError:  # after a restart it would be kept for its time
            trouble.met("remember that a job's steps ended")
        self._consider(attachment)
        with suppress(TimeoutError):
            await asyncio.wait_for(attachment.finished.wait(), _LAST_RECORD_SECONDS)
            return attachment.record
        return None

    async def _put_in_force(self, holding: Holding) -> None:
        try:
            if self._enforcing.concerns(holding):
                await self._in_kernel.at_once(lambda: self._enforcing.begin(holding))
            else:
                self._enforcing.begin(holding)
        except KernelError as error:
            raise Unavailable(f"the worker cannot put the job's plan in force: {error}") from error

    @property
    def living(self) -> Mapping[str, Attachment]:
        """Attachment id → attachment, of jobs that run and of those that end just now."""
        return self._living

    async def change(
        self, attachment: Attachment, plan: NetworkPlan, changes: Sequence[Change]
    ) -> Record:
        """Put another plan in force for a running job, and record why.

        Raises LarkError, LookupError if the job has ended; then everything stays as it was.
        """
        async with self._numbering:
            record, before = attachment.record, attachment.holding
            if record.ended_ns:
                raise LookupError(f"the job {record.job.job_id} has just ended")
            after = replace(before, plan=plan)
            await self._in_kernel(lambda: self._enforcing.change(before, after))
            crash.here("change.in-force")
            newer = replace(
                record.sampled(record.usage, record.sampled_ns).changed(changes),
                peers=plan.peers, plan=settings(plan),
            )  # fmt: skip
            try:
                await self._in_journal(lambda: self._journal.change(newer, plan))
            except StoreError:
                await self._in_kernel(lambda: self._enforcing.change(after, before))
                raise
            crash.here("change.recorded")
            # it may have ended meanwhile: keep what _end wrote
            attachment.record = replace(
                attachment.record,
                sequence=newer.sequence, changes=newer.changes, peers=newer.peers, plan=newer.plan,
            )  # fmt: skip
            attachment.plan = plan
        for change in changes:
            log.info(
                "changed", attachment=record.attachment_id, job=record.job.job_id, by=change.by,
                setting=change.setting, value=change.value,
            )  # fmt: skip
        self.changed.set()
        return attachment.record

    def tell(self, attachment: Attachment) -> None:
        """Tell log and collector of a new attachment."""
        record, job = attachment.record, attachment.record.job
        log.info(
            "attached", attachment=record.attachment_id, slot=record.slot, job=job.job_id,
            owner=job.owner, uid=job.uid, verified=job.verified, profile=record.profile,
            pid=attachment.main.process.pid,
        )  # fmt: skip
        self.changed.set()

    def adopt(self, attachment: Attachment) -> None:
        """Watch over an attachment whose plan holds already; finish it if its job is gone."""
        self._living[attachment.record.attachment_id] = attachment
        self._ids.seen(attachment.record.attachment_id)
        loop = asyncio.get_running_loop()
        for member in attachment.watched:
            loop.add_reader(member.pidfd, self._fired, attachment, member)
        self._consider(attachment, ExitReason.AGENT_ABSENT)

    def _fired(self, attachment: Attachment, member: Member) -> None:
        asyncio.get_running_loop().remove_reader(member.pidfd)
        member.alive = False
        if member in attachment.members[:1]:
            attachment.status = process.wait_status(member.pidfd, member.process.pid)
        self._consider(attachment)

    def _consider(self, attachment: Attachment, reason: ExitReason | None = None) -> None:
        """Begin the end if nothing of a job runs and nothing more may come; else wait for it."""
        if attachment.runs or attachment.ending:
            return
        loop = asyncio.get_running_loop()
        if not attachment.members and attachment.holder is not None and attachment.holder.alive:
            seconds = self._settings.reserve_seconds
        elif attachment.steps:
            seconds = self._settings.hold_seconds
        else:
            self._begin_end(attachment, reason)
            return
        attachment.timer = loop.call_later(seconds, self._expired, attachment)

    def abandon(self, attachment: Attachment) -> None:
        """End an attachment whose process goes on without it."""
        if not attachment.ending:
            self._begin_end(attachment, ExitReason.NOT_STARTED)

    def _expired(self, attachment: Attachment) -> None:
        if not attachment.runs and not attachment.ending:
            log.info("nothing came", attachment=attachment.record.attachment_id)
            self._begin_end(attachment, None)

    def _begin_end(self, attachment: Attachment, reason: ExitReason | None) -> None:
        attachment.ending = True
        self.leaving(attachment)
        if attachment.timer is not None:
            attachment.timer.cancel()
        self._tasks.once("end", self._end(attachment, reason))

    async def _end(self, attachment: Attachment, reason: ExitReason | None) -> None:
        crash.here("end.begun")
        ended_ns = attachment.clock.now_ns()
        how = reason or ExitReason.ENDED, 0
        try:
            status = await self._last_words(attachment)
            if reason is None:
                how = attachment.exit(status)
        finally:  # whatever went wrong: the plan must end, and the sandbox must come back
            if not attachment.record.ended_ns:  # else an earlier agent saw the end
                attachment.record = replace(
                    attachment.record, ended_ns=ended_ns, exit_reason=how[0], exit_status=how[1]
                )
            self._settle(attachment)
            crash.here("end.drained")

    def _settle(self, ended: Attachment) -> None:
        self._ended.append(ended)
        self._settle_wanted.set()

    async def _last_words(self, attachment: Attachment) -> int | None:
        """Let through what is under way; returns the job's wait status, None if nobody knows."""
        status = attachment.status
        await self._drain(attachment, status)
        if status is None and attachment.members and attachment.main.pidfd >= 0:
            status = await self._wait_status(attachment.main)
        with suppress(TimeoutError):
            await asyncio.wait_for(attachment.outcome_known.wait(), _REAP_SECONDS)
        return status

    async def _drain(self, attachment: Attachment, status: int | None) -> None:
        if not attachment.counted:
            return
        slot, holding = attachment.sandbox.slot, attachment.holding

        def look() -> Moved:
            usage = read(self._datapath, [slot])[slot]
            return Moved(usage.sent, usage.received, self._waiting(holding))

        async def moved() -> Moved:
            return await self._in_kernel(look)

        left = self._place_of(holding)
        await drain(slot, left, moved, self._settings.drain_seconds, orderly=status == 0)

    async def _wait_status(self, member: Member) -> int | None:
        """Ask again until the parent has waited for the job: from then on newer kernels tell."""
        for _ in range(10):
            status = process.wait_status(member.pidfd, member.process.pid)
            if status is not None or process.start_time(member.process.pid) == 0:
                return status
            await asyncio.sleep(_REAP_SECONDS / 10)
        return None

    async def settle(self) -> None:
        """Write final records of what ended, for ever; a background task."""
        while True:
            await self._settle_wanted.wait()
            self._settle_wanted.clear()
            batch, self._ended = self._ended, []
            try:
                async with self._numbering:
                    await self._finish(batch)
            except LarkError as error:
                log.error("cannot finish attachments yet", count=len(batch), error=str(error))
                self._tasks.errors["settle"] += 1
                self._ended.extend(batch)
                await asyncio.sleep(_RETRY_SECONDS)
                self._settle_wanted.set()

    async def _finish(self, batch: list[Attachment]) -> None:
        batch = [*batch, *self.transfers.held_by(batch)]
        counted = [a for a in batch if a.counted]

        def last_words() -> dict[int, Usage]:
            slots = [attachment.sandbox.slot for attachment in counted]
            for slot in slots:
                self._datapath.deactivate(slot)
            crash.here("settle.silent")
            self._datapath.settle()
            return read(self._datapath, slots)

        usage = await self._in_kernel(last_words) if counted else {}
        going_on, waiting = self.transfers.outlived(batch), self.transfers.waiting(batch)
        newer = []
        for attachment in (*batch, *going_on):
            record = attachment.record
            last = self.prices.priced(record.usage, usage.get(record.slot, record.usage))
            final = attachment not in waiting and attachment not in going_on
            now = attachment.clock.now_ns()
            newer.append(replace(record.sampled(last, now), final=final))
        told = self.transfers.told(newer)
        crash.here("settle.read")
        await self._in_journal(lambda: self._journal.save(told))
        crash.here("final.recorded")
        for attachment, record in zip((*batch, *going_on), told, strict=True):
            attachment.record = replace(
                record, ended_ns=attachment.record.ended_ns,
                exit_reason=attachment.record.exit_reason,
                exit_status=attachment.record.exit_status,
            )  # fmt: skip
        self.transfers.hold(waiting)
        await self._dismiss([attachment for attachment in batch if attachment not in waiting])
        self.changed.set()

    async def _dismiss(self, final: list[Attachment]) -> None:
        for attachment in final:
            if attachment.counted:  # frees the numbers of classes that the site has removed
                self._datapath.reset(attachment.sandbox.slot)
        ended = [a.holding for a in final if self._enforcing.concerns(a.holding)]
        if ended:
            await self._in_kernel(lambda: self._enforcing.end(*ended))
        crash.here("final.taken-back")
        for attachment in final:
            self._let_go(attachment)

    def _let_go(self, attachment: Attachment) -> None:
        record = attachment.record
        del self._living[record.attachment_id]
        for member in attachment.watched:
            asyncio.get_running_loop().remove_reader(member.pidfd)
        for member in attachment.everyone:
            if member.pidfd >= 0:
                os.close(member.pidfd)
        self.transfers.forget(attachment)
        self._pool.condemn(attachment.sandbox)
        attachment.finished.set()
        crash.here("final.let-go")
        usage = record.usage
        log.info(
            "final", attachment=record.attachment_id, slot=record.slot, job=record.job.job_id,
            owner=record.job.owner, reason=record.exit_reason, status=record.exit_status,
            sent=usage.sent.bytes, received=usage.received.bytes, dropped=usage.dropped.packets,
        )  # fmt: skip

    async def sample(self) -> None:
        """Read all counters once and make the records durable. Raises LarkError."""
        async with self._numbering:
            running = [a for a in self._living.values() if a.counted]
            if not running:
                return
            records = [(a.record, a.clock.now_ns()) for a in running]
            newer = await self._in_kernel(lambda: sample(self._datapath, self.prices, records))
            crash.here("sample.read")
            newer = self.transfers.told(newer)
            # an attachment may have ended while the counters were read: keep what _end wrote
            for attachment, record in zip(running, newer, strict=True):
                attachment.record = replace(
                    attachment.record, usage=record.usage, cost=record.cost,
                    sampled_ns=record.sampled_ns, sequence=record.sequence,
                    transfer=record.transfer,
                )  # fmt: skip
            await self._in_journal(lambda: self._journal.save(newer))
            crash.here("sample.recorded")
        self.changed.set()


async def _is_ready(_attachment: Attachment) -> None:
    """Wait for nothing."""


def _is_left(_attachment: Attachment) -> None:
    """Do nothing."""
