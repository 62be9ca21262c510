"""The agent: what it is made of, in which order it starts, and how it stops.

Start: lock (one agent a worker), journal, machine checks, recovery of an earlier run, datapath
(before any thread of grpc exists: the bcc loader runs a child), what sandboxes share, pool,
services, READY=1. Whatever fails on the way is one LarkError; what was set up for nobody is taken
down again.

Stop (SIGTERM, SIGINT): no new jobs, one last sample, idle sandboxes dismantled. Jobs that run keep
running: their sandboxes, programs and counters stay in the kernel, and the next agent takes them
over. When none runs, nothing of the agent stays but the journal.

Reload (SIGHUP): destination classes, services, profiles and rules are read anew and hold for the
jobs that start from then on; any error keeps everything as it was, and so does another `[uplink]
rate` or other `[queues]`, which plans would name and nothing would hold. All other settings need a
restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import resource
import signal
import sys
import time
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Self

import structlog

from lark_agent import crash, datapath, trouble
from lark_agent.accounting.allotments import FILE_NAME as QUOTAS
from lark_agent.accounting.answers import Answers
from lark_agent.accounting.prices import Prices
from lark_agent.accounting.quotas import periods_of
from lark_agent.accounting.salvage import open_allotments, open_journal
from lark_agent.agent.attachment import boot_id
from lark_agent.agent.attachments import Attachments
from lark_agent.agent.attributing import finder
from lark_agent.agent.changing import Changing
from lark_agent.agent.drain import InSandbox
from lark_agent.agent.enforcing import Enforcing
from lark_agent.agent.follow import Follower
from lark_agent.agent.forwards import Forwards
from lark_agent.agent.gate import Gate
from lark_agent.agent.hook import Hook
from lark_agent.agent.launchers import Launchers
from lark_agent.agent.link import Link
from lark_agent.agent.machine import Machine
from lark_agent.agent.metering import Metering
from lark_agent.agent.neighbours import Neighbours, PoolFollower
from lark_agent.agent.own import OwnNamespaces
from lark_agent.agent.places import Places
from lark_agent.agent.quotas import Quotas
from lark_agent.agent.recovery import Found, recover
from lark_agent.agent.reporter import Reporter
from lark_agent.agent.rounds import Rounds
from lark_agent.agent.sandboxes import Sandboxes
from lark_agent.agent.service import serve
from lark_agent.agent.starters import Starters
from lark_agent.agent.tasks import OwnThread, Tasks
from lark_agent.config import AGENT_FILE, AgentSettings, QuotaAction, load
from lark_agent.errors import ConfigurationError, LarkError, PrerequisiteError
from lark_agent.linux import memory, systemd
from lark_agent.linux.log import attribute
from lark_agent.model import Connectivity
from lark_agent.policy.site import SitePolicy
from lark_agent.quantities import size
from lark_agent.rpc.lark.v1 import agent_pb2
from lark_agent.sandbox.addressing import Addressing
from lark_agent.sandbox.host import HostJobs
from lark_agent.sandbox.services import Loopbacks, Services
from lark_agent.sandbox.veth import Veths
from lark_agent.sandbox.worker import WorkerSide
from lark_agent.schedulers import starts_one_job
from lark_agent.shaping.shaping import Shaping

if TYPE_CHECKING:
    from collections.abc import Callable

    from lark_agent.accounting.allotments import Allotments
    from lark_agent.agent.drain import Place
    from lark_agent.sandbox.holding import Holding

VERSION = version("lark-agent")
JOURNAL_NAME = "journal.sqlite"
_PRUNE_SECONDS = 600.0
_DAY_NS = 86_400 * 10**9
log = structlog.get_logger(__name__)


class Daemon:
    """A running agent: works from the start to the end of an `async with` block."""

    def __init__(self, settings: AgentSettings, file: Path | None) -> None:
        self._settings = settings
        self._file = file
        self._policy = SitePolicy.compile(settings, file)
        self._numbers = Addressing.of(settings)
        self._run_directory = Path(settings.paths.run)
        self._started_ns = time.time_ns()
        self._tasks = Tasks()
        self._stack = contextlib.AsyncExitStack()
        self._reporter: Reporter | None = None

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        settings = self._settings
        stack.callback(_lock(self._run_directory))
        self._in_kernel, self._in_journal = OwnThread("kernel"), OwnThread("journal")
        self._in_dismantling = OwnThread("dismantling")
        for thread in (self._in_journal, self._in_kernel, self._in_dismantling):
            stack.callback(thread.close)
        journal_file = Path(settings.paths.state) / JOURNAL_NAME
        room = size(settings.accounting.journal_size)
        reports = bool(settings.collector.address)
        self._journal, aside = await self._in_journal(
            lambda: open_journal(journal_file, room, reports=reports)
        )
        self._tasks.errors += Counter({"journal damaged": 1} if aside else {})
        stack.callback(self._journal.close)
        answers = Answers(journal_file)
        stack.callback(answers.close)
        # what shows that this machine cannot do it must fail before anything is set up
        services = Services.of(settings)
        loopbacks = Loopbacks(
            self._numbers.gateway4, services.loopback,
            launchers=any(starts_one_job(Path(each).name) for each in settings.trusted_launchers),
        )  # fmt: skip
        self._veths = await self._in_kernel(lambda: Veths(settings.uplink.interface, loopbacks))
        stack.callback(self._veths.close)
        self._worker_side = WorkerSide(
            self._numbers, self._veths, loopbacks, services, self._run_directory,
            settings.addresses.pool,
        )  # fmt: skip
        self._sandboxes = Sandboxes(settings, self._numbers, self._veths, self._in_kernel)
        await self._in_kernel(self._sandboxes.check)
        found = await self._in_kernel(self._recover)
        self._jobs_left = len(found.adopted)
        stack.push_async_callback(self._remove_shared)
        self._datapath = await self._in_kernel(self._load_datapath)
        stack.callback(self._datapath.close)
        self._places = await self._in_kernel(
            lambda: Places(self._datapath, self._numbers, settings)
        )
        self._veths.use(self._datapath)
        await self._sandboxes.join_networks(self._datapath, stack)
        self._host_jobs = HostJobs(
            Path(settings.paths.bpffs), settings.pool.slots, self._run_directory, self._throttles
        )
        stack.callback(self._host_jobs.close)
        self._allotments = await self._in_kernel(self._open_allotments)
        stack.callback(self._allotments.close)
        self._quotas = Quotas(
            self._datapath, self._allotments, settings.quotas, boot_id(), time.time_ns,
            book=bool(settings.collector.address),
        )  # fmt: skip
        openings = self._worker_side.openings
        self._shaping = await self._in_kernel(lambda: Shaping.of(settings))
        stack.callback(self._shaping.close)
        living = [attachment.holding for attachment in found.adopted]
        openings.expect(living)
        self._neighbours = await self._in_kernel(
            lambda: Neighbours(self._datapath.remote_jobs, self._places.say_where, settings, living)
        )
        parts = (
            self._sandboxes.on_network, self._host_jobs, self._neighbours, self._quotas, openings,
            self._shaping,
        )  # fmt: skip
        self._enforcing = Enforcing(self._datapath, loopbacks, parts)
        await self._in_kernel(self._sandboxes.prepare)
        await self._in_kernel(self._worker_side.prepare)
        await self._in_kernel(lambda: self._renew(found))
        if problem := self._worker_side.resolver.problem:
            log.warning("names will not resolve in sandboxes", problem=problem)
        self._begin_work(found)
        stack.push_async_callback(self._take_down)
        stack.push_async_callback(self._tasks.stop)
        await self._open_services(stack, answers)

    def _renew(self, found: Found) -> None:
        crash.here("recovery.loaded")
        for attachment in found.adopted:
            self._sandboxes.take_over(attachment.sandbox)
            self._enforcing.adopt(attachment.holding)
        for slot in found.silenced & self._datapath.active_slots():
            self._datapath.deactivate(slot)
        self._host_jobs.close_leftovers()

    def _recover(self) -> Found:
        return recover(
            self._journal, self._numbers, self._run_directory / "numbering",
            Path(self._settings.paths.bpffs),
        )  # fmt: skip

    def _open_allotments(self) -> Allotments:
        opened, aside = open_allotments(Path(self._settings.paths.state) / QUOTAS)
        self._tasks.errors += Counter({"quotas damaged": 1} if aside else {})
        return opened

    def _load_datapath(self) -> datapath.Datapath:
        settings = self._settings
        return datapath.load(
            Path(settings.paths.bpffs),
            settings.pool.slots,
            settings.datapath.loader,
            settings.datapath.python,
        )

    def _begin_work(self, found: Found) -> None:
        settings = self._settings
        self._pool = self._sandboxes.pool(
            {attachment.sandbox.slot for attachment in found.adopted}, found.leftovers,
            self._in_dismantling,
        )  # fmt: skip
        self._attachments = Attachments(
            settings.worker_name, self._datapath, self._enforcing, self._pool, self._journal,
            self._in_journal, self._in_kernel, self._tasks, settings.pool, self._place_of,
            self._shaping.waiting, time.time_ns, self._host_jobs.join,
        )  # fmt: skip
        attribute(finder(lambda: self._attachments.living))
        self._attachments.prices = Prices.of(settings.prices)
        self._launchers = Launchers(self._enforcing, self._in_kernel, self._tasks)
        self._forwards = Forwards(self._attachments, self._in_kernel)
        self._attachments.leaving = self._forwards.close
        self._starters = Starters(
            settings, self._pool, self._attachments, self._worker_side.replaces_resolver
        )
        for attachment in found.adopted:
            self._attachments.adopt(attachment)
        for attachment in found.adopted:
            if attachment.record.is_transfer:
                continue
            self._tasks.once("forward", self._forwards.follow(attachment))
            ports = self._datapath.ports.of_launcher(attachment.sandbox.slot)
            self._launchers.adopt(attachment, ports)
        for name, kinds, in_thread in self._sandboxes.builders():
            self._tasks.keep(name, partial(self._pool.build, kinds, in_thread))
        self._tasks.keep("dismantle", self._pool.dismantle)
        self._tasks.keep("settle", self._attachments.settle)
        self._follower = Follower(
            self._worker_side, self._places, self._shaping, self._in_kernel, self._tasks
        )
        self._tasks.keep("firewall", self._follower.guard_firewall)
        self._tasks.keep("addresses", self._follower.guard_addresses)
        self._tasks.keep("sample", self._sample)
        self._tasks.keep("prune", self._prune)
        rounds = Rounds(
            self._journal, self._attachments, self._pool, self._datapath, self._numbers,
            Path(settings.paths.bpffs), self._in_journal, self._in_dismantling, self._tasks,
        )  # fmt: skip
        self._tasks.keep("rounds", rounds.run)
        self._metering = Metering(
            self._quotas, self._allotments, self._datapath, self._attachments, self._in_kernel,
            self._tasks, Hook(settings.quota_hook), settings.accounting.interval_seconds,
            settings.worker_name,
        )  # fmt: skip
        self._attachments.ready = self._metering.ready
        self._tasks.keep("quotas", self._metering.run)
        if settings.collector.address:
            link = Link(settings.collector, settings.worker_name)
            self._tasks.keep("certificate", link.keep_fresh)
            self._reporter = Reporter(
                link, settings.worker_name, VERSION, self._journal,
                self._in_journal, self._attachments.changed, self._metering,
            )  # fmt: skip
            self._metering.reachable = self._reporter.can_lease
            self._tasks.keep("report", self._reporter.run)
            if settings.addresses.pool:
                # a channel of its own, and so a link: each is told once of a new certificate
                own = Link(settings.collector, settings.worker_name)
                pool = PoolFollower(own, settings.worker_name, self._neighbours, self._in_kernel)
                self._tasks.keep("follow the pool", pool.run)

    def _throttles(self, quota: str) -> bool:
        found = self._quotas.site.get(quota)
        return found is not None and found.action is QuotaAction.THROTTLE

    def _place_of(self, holding: Holding) -> Place:
        if holding.sandbox.connectivity is Connectivity.HOST:
            return self._host_jobs.left(holding.attachment_id)
        return InSandbox(holding.sandbox.name)

    async def _open_services(self, stack: contextlib.AsyncExitStack, answers: Answers) -> None:
        settings = self._settings
        self._gate = Gate(
            self._run_directory / "run.sock", lambda: self._policy, self._pool, self._attachments,
            self._launchers, settings,
            OwnNamespaces(self._sandboxes.hand_over, allowed=settings.pool.own_namespaces),
            self._starters, self._forwards,
        )  # fmt: skip
        machine = Machine(
            settings, self._attachments, self._shaping.booking, self._in_kernel,
            lambda: self._veths.uplink,
        )  # fmt: skip
        changing = Changing(self._attachments, lambda: self._policy.words)
        await serve(
            stack, self._run_directory / "agent.sock", answers, self._status, machine.answer,
            changing, settings.admin_group, settings.observers,
        )  # fmt: skip
        self._gate.open()
        stack.push_async_callback(self._gate.close)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(self._settings.accounting.interval_seconds)
            try:
                await self._attachments.sample()
            except LarkError as error:  # a full disk passes; keep the rhythm
                self._tasks.errors["sample"] += 1
                log.error("sampling failed", error=str(error))
            try:
                await self._follower.look()
            except LarkError as error:  # so does a lost uplink
                self._tasks.errors["follow"] += 1
                log.error("following the worker failed", error=str(error))

    async def _prune(self) -> None:
        local = not self._settings.collector.address
        while True:
            before = time.time_ns() - int(self._settings.accounting.history_days * _DAY_NS)
            await self._in_journal(partial(self._journal.prune, before, unacknowledged_too=local))
            present = periods_of(time.time_ns())
            await self._in_kernel(partial(self._allotments.prune, present))
            await asyncio.sleep(_PRUNE_SECONDS)

    async def _status(self) -> agent_pb2.GetStatusResponse:
        unacknowledged = await self._in_journal(self._journal.count_unacknowledged)
        ready = self._pool.ready
        return agent_pb2.GetStatusResponse(
            worker=self._settings.worker_name,
            version=VERSION,
            started_ns=self._started_ns,
            loader=self._settings.datapath.loader,
            uplink=self._veths.uplink.interface,
            mtu=self._veths.uplink.mtu,
            slots=self._settings.pool.slots,
            ready=sum(ready.values()),
            ready_by_kind={str(kind): number for kind, number in ready.items()},
            attached=len(self._attachments),
            reserved=self._attachments.reserved,
            condemned=self._pool.condemned,
            collector=self._settings.collector.address,
            collector_state=self._reporter.state if self._reporter else "",
            unacknowledged=unacknowledged,
            refusals=self._gate.refusals,
            busy_slots=sorted(self._pool.busy),
            errors=self._tasks.errors
            + trouble.counts()
            + Counter(
                {
                    "build sandbox": self._pool.build_errors,
                    "transfer not accounted": self._starters.unaccounted,
                    "report refused": self._reporter.refusals if self._reporter else 0,
                }
            ),
        )

    def reload(self) -> None:
        """Take over classes, services, profiles and rules from the file in the background."""
        self._tasks.once("reload", self._reload())

    async def _reload(self) -> None:
        """Take them over, or keep all on any error."""
        try:
            fresh = load(AgentSettings, self._file, AGENT_FILE)
            policy = SitePolicy.compile(fresh, self._file)
            await self._in_kernel(lambda: self._take(fresh))
        except LarkError as error:
            trouble.met("reload refused")
            log.error("reload refused, the old rules stay", error=str(error))
            return
        crash.here("reload.services")
        self._policy = policy
        self._attachments.prices = Prices.of(fresh.prices)
        self._quotas.site = fresh.quotas
        self._metering.hook.settings = fresh.quota_hook
        log.info("reloaded", classes=len(fresh.classes), rules=len(fresh.rules))

    def _take(self, fresh: AgentSettings) -> None:
        now = self._settings
        if (fresh.uplink.rate, fresh.queues) != (now.uplink.rate, now.queues):
            raise ConfigurationError(
                "[uplink] rate and [queues] are shared by jobs that run, and do not change under "
                "them; restart the agent (jobs run on, and are held to the new ones from then on)"
            )
        before = self._places.settings
        self._places.take(fresh)
        crash.here("reload.places")
        try:
            self._worker_side.offer(Services.of(fresh))
        except LarkError:
            self._places.take(before)
            raise

    def _remove_pins(self) -> None:
        datapath.unload(Path(self._settings.paths.bpffs))

    async def _take_down(self) -> None:
        """Take the last sample and dismantle every sandbox that holds no job."""
        self._forwards.close_all()
        try:
            await self._attachments.sample()
        except LarkError as error:  # the kernel keeps counting; the next agent reads it
            log.error("the last sample failed", error=str(error))
        await self._pool.empty()
        self._jobs_left = len(self._attachments)

    async def _remove_shared(self) -> None:
        """Remove what all sandboxes share, unless jobs still run in some."""
        if self._jobs_left:
            log.info("jobs keep their networks", attached=self._jobs_left)
            return
        for step in (self._worker_side.withdraw, self._remove_pins):
            try:
                await self._in_kernel(step)
            except LarkError as error:
                log.error("taking down", error=str(error))


def _lock(run_directory: Path) -> Callable[[], None]:
    """Make sure that no other agent works here; returns what unlocks."""
    try:
        run_directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(
            run_directory / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise PrerequisiteError(
            f"cannot write to {run_directory}: {error.strerror}; run lark-agent as root"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        other = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown pid"
        os.close(descriptor)
        raise PrerequisiteError(
            f"another lark-agent (pid {other}) works on this worker ({run_directory}/agent.lock); "
            "stop it first"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return lambda: os.close(descriptor)


async def run(settings: AgentSettings, file: Path | None) -> None:
    """Work until SIGTERM or SIGINT. Raises LarkError if the agent cannot start."""
    # the threads that build sandboxes must not keep the loop from answering a job for 5 ms a turn
    sys.setswitchinterval(0.0005)
    # each waiting caller and each running job costs a descriptor; soft limits are for select(2)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Daemon(settings, file) as daemon:
        loop.add_signal_handler(signal.SIGHUP, daemon.reload)
        memory.release_code()
        gc.freeze()  # what is there now stays: do not look through it during a job's start
        log.info("agent serves", worker=settings.worker_name, version=VERSION)
        systemd.notify("READY=1", "STATUS=giving jobs their networks")
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), systemd.watchdog_interval())
            systemd.notify("WATCHDOG=1")
        systemd.notify("STOPPING=1")
        log.info("agent stops")
