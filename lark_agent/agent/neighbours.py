"""Jobs that have an address among others: on other workers, and on the site's own networks.

A job behind NAT, or with an address of this worker's prefixes, is found by arithmetic. All others
must be listed for the datapath, or `peers` could not tell them from ordinary hosts:

* the jobs of this worker on networks of layer 2: an `Enforcement` lists each at its start;
* the jobs of other workers: the collector tells (`FollowJobs`), while there is one and the site
  says in which networks they live ([addresses] pool).

In those networks, and in the ranges that the site gives its sandboxes, an address that is not
listed is nobody's and no job may reach it. Whatever the collector had told when the stream broke
must be told again within `FORGET_SECONDS`, or it is forgotten: a word that nobody takes back must
not outlive its job, and a freed address rests for longer.
"""

from __future__ import annotations

import asyncio
import random
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network, summarize_address_range
from typing import TYPE_CHECKING

import grpc
import structlog

from lark_agent import trouble
from lark_agent.config import AddressMode, pool_of
from lark_agent.datapath.peers import RemoteJob
from lark_agent.errors import PrerequisiteError
from lark_agent.model import LAYER2, Peers
from lark_agent.rpc.lark.v1 import report_pb2, report_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from ipaddress import IPv4Network, IPv6Network

    from lark_agent.agent.link import Link
    from lark_agent.agent.tasks import OwnThread
    from lark_agent.config import AgentSettings
    from lark_agent.datapath import SlotPlan
    from lark_agent.datapath.peers import RemoteJobs
    from lark_agent.sandbox.holding import Holding

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

PROTOCOL = 1
FORGET_SECONDS = 60.0
_PAUSE_SECONDS = 2.0
_OPTIONS = [
    # notice within half a minute that the other end is gone without a word
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_http_proxy", 0),
]
log = structlog.get_logger(__name__)


class Neighbours:
    """Everybody whom the datapath must know by address. Belongs to the kernel thread."""

    def __init__(
        self,
        remote_jobs: RemoteJobs,
        say_where: Callable[[frozenset[Network]], None],
        settings: AgentSettings,
        living: Iterable[Holding] = (),
    ) -> None:
        """List the jobs that live already; raises KernelError.

        `say_where` is told in which networks an address that is not listed is nobody's.
        """
        self._remote_jobs = remote_jobs
        self._say_where = say_where
        self._always = frozenset(_ranges(settings))
        self._here: dict[str, dict[Address, RemoteJob]] = {}
        self._elsewhere: dict[Address, RemoteJob] = {}
        self._kept: frozenset[Address] = frozenset()
        """Whom an earlier agent had heard of; the collector will tell again."""
        for holding in living:
            if self.concerns(holding):
                self._note(holding)
        if settings.addresses.pool and settings.collector.address:
            here = {address for jobs in self._here.values() for address in jobs}
            self._kept = remote_jobs.addresses() - here
        self._tell()

    # Jobs of this worker

    def concerns(self, holding: Holding) -> bool:
        """Tell whether the job has an address among others."""
        return holding.plan.connectivity in LAYER2

    def begin(self, holding: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """List the job; raises KernelError."""
        self._list(holding)
        return slot_plan

    def change(self, before: Holding, after: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """List whom the job admits now."""
        del before
        self._list(after)
        return slot_plan

    def adopt(self, holding: Holding) -> None:
        """List a job of an earlier agent's."""
        self._list(holding)

    def end(self, holding: Holding) -> None:
        """Take the job off the list."""
        if self._here.pop(holding.attachment_id, None):
            self._tell()

    def _list(self, holding: Holding) -> None:
        self._note(holding)
        self._tell()

    def _note(self, holding: Holding) -> None:
        job = RemoteJob(holding.job.owner, holding.job.accounting_group, holding.plan.peers)
        addresses = (holding.sandbox.ipv4, holding.sandbox.ipv6)
        self._here[holding.attachment_id] = {a: job for a in addresses if a is not None}

    # Jobs of others

    def hear(self, jobs: dict[Address, RemoteJob], gone: set[Address]) -> None:
        """Take over what the collector tells."""
        for address in gone:
            self._elsewhere.pop(address, None)
        self._elsewhere |= jobs
        self._kept -= gone | jobs.keys()
        self._tell()

    @property
    def heard_of(self) -> frozenset[Address]:
        """Addresses that the collector told of, this agent or an earlier one."""
        return frozenset(self._elsewhere) | self._kept

    def _tell(self) -> None:
        here = {address: job for jobs in self._here.values() for address, job in jobs.items()}
        self._remote_jobs.set({**self._elsewhere, **here}, self._kept)
        self._say_where(self._always | {ip_network(address) for address in here})


class PoolFollower:
    """Follows the collector's directory; a background task of the agent."""

    def __init__(
        self,
        link: Link,
        worker: str,
        neighbours: Neighbours,
        in_kernel: OwnThread,
        forget_seconds: float = FORGET_SECONDS,
    ) -> None:
        self._link = link
        self._request = report_pb2.FollowJobsRequest(protocol=PROTOCOL, worker=worker)
        self._neighbours = neighbours
        self._in_kernel = in_kernel
        self._forget_seconds = forget_seconds
        self._unconfirmed: set[Address] = set()
        self._forget_at = 0.0
        self._said = ""

    async def run(self) -> None:
        """Follow for ever."""
        await self._doubt()
        while True:
            try:
                async with self._link.channel(_OPTIONS) as channel:
                    await self._follow(channel)
                why = "the collector ended the stream"
            except grpc.aio.AioRpcError as error:
                why = f"{error.code().name}: {error.details()}"
            except PrerequisiteError as error:
                why = str(error)
            trouble.met("follow the pool's jobs")
            if why != self._said:  # say it once, not at every attempt
                log.warning(
                    "cannot follow the pool's jobs", collector=self._link.address, error=why
                )
            self._said = why
            await self._doubt()
            await asyncio.sleep(_PAUSE_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311  spreads workers, not a secret

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        stub: report_pb2_grpc.CollectorAsyncStub = report_pb2_grpc.CollectorStub(channel)
        call = stub.FollowJobs(self._request)
        while True:
            try:
                news = await asyncio.wait_for(call.read(), self._patience())
            except TimeoutError:
                await self._forget()
                continue
            if not isinstance(news, report_pb2.JobsAtAddresses):  # EOF
                await call.code()
                return
            self._said = ""
            jobs = dict(_heard(news))
            gone = {address for text in news.gone if (address := _address(text)) is not None}
            self._unconfirmed -= jobs.keys() | gone
            await self._in_kernel(lambda jobs=jobs, gone=gone: self._neighbours.hear(jobs, gone))  # type: ignore[misc]  # bound as defaults

    def _patience(self) -> float | None:
        """Return how long to wait for news before what was known is forgotten; None: for ever."""
        if not self._unconfirmed:
            return None
        return max(0.0, self._forget_at - asyncio.get_running_loop().time())

    async def _doubt(self) -> None:
        """Let what is known lapse unless it is told again; forget what has lapsed."""
        now = asyncio.get_running_loop().time()
        if not self._unconfirmed:
            self._unconfirmed = set(await self._in_kernel(lambda: self._neighbours.heard_of))
            self._forget_at = now + self._forget_seconds
        elif now >= self._forget_at:
            await self._forget()

    async def _forget(self) -> None:
        doubtful, self._unconfirmed = self._unconfirmed, set()
        log.warning("forgot jobs of other workers", count=len(doubtful))
        await self._in_kernel(lambda: self._neighbours.hear({}, doubtful))


def _heard(news: report_pb2.JobsAtAddresses) -> Iterator[tuple[Address, RemoteJob]]:
    for job in news.jobs:
        address = _address(job.address)
        if address is not None and job.peers in set(Peers):
            yield address, RemoteJob(job.owner, job.accounting_group, Peers(job.peers))


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        trouble.met("read a neighbour's address")
        log.warning("the collector told of what is no address", text=text[:64])
        return None


def _ranges(settings: AgentSettings) -> Iterator[Network]:
    """Yield where jobs live for sure: the pool's prefixes, and static ranges of networks."""
    yield from map(ip_network, settings.addresses.pool)
    for network in settings.networks.values():
        if network.addresses is not AddressMode.STATIC:
            continue
        for text, kind in ((network.pool4, IPv4Address), (network.pool6, IPv6Address)):
            if text:
                first, last, _ = pool_of(text, kind)
                yield from summarize_address_range(first, last)
