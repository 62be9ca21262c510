"""Every kind of sandbox that this worker can give, with its driver, its builder and its pool.

Kinds on the worker's own links are built in the kernel thread, one after the other. Each network
of the site has a thread and a build task of its own: building there takes as long as its DHCP
server or router takes, and must not keep the others waiting.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from lark_agent import trouble
from lark_agent.agent.tasks import OwnThread
from lark_agent.errors import KernelError, LarkError
from lark_agent.model import Connectivity
from lark_agent.sandbox import networks
from lark_agent.sandbox.connectivity import Kind, Movable
from lark_agent.sandbox.guard import Guard, OnNetwork
from lark_agent.sandbox.host import HostDriver
from lark_agent.sandbox.nat import NatDriver
from lark_agent.sandbox.none import NoneDriver
from lark_agent.sandbox.pool import Pool
from lark_agent.sandbox.routed import RoutedDriver

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from contextlib import AsyncExitStack

    from lark_agent.config import AgentSettings
    from lark_agent.datapath import Datapath
    from lark_agent.sandbox.addressing import Addressing
    from lark_agent.sandbox.connectivity import Driver, Sandbox
    from lark_agent.sandbox.veth import Veths

_IDLE_OTHERS = 2
"""Sandboxes kept ready of a connectivity that is not the default profile's."""
log = structlog.get_logger(__name__)


class Sandboxes:
    """The kinds of one worker."""

    def __init__(
        self, settings: AgentSettings, numbers: Addressing, veths: Veths, in_kernel: OwnThread
    ) -> None:
        self._settings = settings
        self._veths = veths
        self._in_kernel = in_kernel
        self._nat, routed = NatDriver(numbers, veths), RoutedDriver(numbers, veths)
        self._drivers: dict[Kind, Driver] = {
            Kind(Connectivity.NAT): self._nat, Kind(Connectivity.NONE): NoneDriver(),
            Kind(Connectivity.HOST): HostDriver(),
        }  # fmt: skip
        if numbers.routed.networks:
            self._drivers[Kind(Connectivity.ROUTED)] = routed

    def check(self) -> None:
        """Find out whether this machine can, before anything is set up; raises LarkError."""
        for driver in self._drivers.values():
            driver.check()

    def prepare(self) -> None:
        """Set up what the kinds on the worker's own links need."""
        self._nat.prepare()

    async def join_networks(self, datapath: Datapath, stack: AsyncExitStack) -> None:
        """Make a driver and a thread for each network of the site.

        One that cannot be used yet, because its bridge or switch comes later than the agent, does
        not keep the others' jobs from running; its own jobs are told.
        """
        settings, guard = self._settings, Guard(datapath)
        self._networks = networks.drivers(
            settings.networks, settings.worker_name, self._veths.uplink.interface, guard,
            Path(settings.paths.run), Path(settings.paths.state),
        )  # fmt: skip
        self._leftovers = networks.Remains(guard, Path(settings.paths.run))
        upkeep = {kind: driver.upkeep for kind, driver in self._networks.items()}
        self.on_network = OnNetwork(upkeep)
        self._in_network: dict[Kind, OwnThread] = {}
        for kind, driver in self._networks.items():
            self._in_network[kind] = OwnThread(kind.network)
            stack.callback(self._in_network[kind].close)
            try:
                await self._in_network[kind](driver.check)
            except LarkError as error:
                trouble.met("use a network")
                log.error("network cannot be used yet", network=kind.network, error=str(error))
        self._drivers |= self._networks

    def take_over(self, sandbox: Sandbox) -> None:
        """Take over a sandbox of an earlier agent's whose job runs on."""
        driver = self._drivers.get(sandbox.kind)
        if driver is None:
            log.warning(
                "a job's network is not configured any more; it keeps what it has",
                sandbox=sandbox.name, kind=str(sandbox.kind),
            )  # fmt: skip
            return
        try:
            driver.renew(sandbox)
        except (KernelError, OSError) as error:  # most likely its interface was taken away
            trouble.met("take over a sandbox")
            log.error("cannot take over a sandbox", sandbox=sandbox.name, error=str(error))

    async def hand_over(self, sandbox: Sandbox, namespace: int) -> None:
        """Move a sandbox into a namespace that its job made; raises LarkError."""
        driver = self._drivers[sandbox.kind]
        assert isinstance(driver, Movable), sandbox.kind
        await self._in_kernel(lambda: driver.hand_over(sandbox, namespace))

    def pool(
        self, held: Collection[int], leftovers: Collection[Sandbox], in_dismantling: OwnThread
    ) -> Pool:
        """Make the pool without the slots `held` by jobs; `leftovers` are dismantled first."""
        settings = self._settings
        usual = settings.all_profiles[settings.default_profile].connectivity
        ready = {
            kind: settings.networks[kind.network].ready
            if kind in self._networks
            else settings.pool.ready
            if kind.connectivity == usual
            else min(_IDLE_OTHERS, settings.pool.ready)
            for kind in self._drivers
        }
        ready[Kind(Connectivity.HOST)] = 0  # nothing is built, so nothing is kept ready
        busy = {*held, *(sandbox.slot for sandbox in leftovers)}
        free = [slot for slot in range(settings.pool.slots) if slot not in busy]
        made = Pool(
            self._drivers, self._leftovers, ready, settings.pool.slots, free,
            settings.nat.rest_seconds, in_dismantling, time.monotonic,
        )  # fmt: skip
        for sandbox in leftovers:
            made.condemn(sandbox)
        return made

    def builders(self) -> Iterator[tuple[str, Collection[Kind], OwnThread]]:
        """Yield name, kinds and thread of each task that builds."""
        yield (
            "build",
            [kind for kind in self._drivers if kind not in self._networks],
            self._in_kernel,
        )
        for kind, in_network in self._in_network.items():
            yield f"build {kind.network}", [kind], in_network
