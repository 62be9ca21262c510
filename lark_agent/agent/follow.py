"""What others change on the worker while the agent runs, and what follows from it.

Uplink and resolver are looked at once in every sampling pass: sandboxes and the queues of shaped
jobs take over a new MTU, running jobs see a new resolv.conf. The firewall is watched by events,
because a site that reloads its own ruleset (`nft flush ruleset`) removes ours with it, and from
then on jobs' packets would leave with private addresses: the kernel tells of every change, and a
missing table is written again at once. So are the worker's own addresses: one that comes is the
worker itself to jobs, and no longer a place beyond it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from lark_agent.linux import local, nftables

if TYPE_CHECKING:
    import socket

    from lark_agent.agent.places import Places
    from lark_agent.agent.tasks import OwnThread, Tasks
    from lark_agent.sandbox.worker import WorkerSide
    from lark_agent.shaping.shaping import Shaping

_DEBOUNCE_SECONDS = 0.05
log = structlog.get_logger(__name__)


class Follower:
    """Follows one worker."""

    def __init__(
        self,
        worker: WorkerSide,
        places: Places,
        shaping: Shaping,
        kernel_thread: OwnThread,
        tasks: Tasks,
    ) -> None:
        self._worker = worker
        self._places = places
        self._shaping = shaping
        self._in_kernel = kernel_thread
        self._tasks = tasks

    async def look(self) -> None:
        """Follow uplink and resolver; raises LarkError if the uplink is gone."""
        if await self._in_kernel(self._follow):
            uplink = self._worker.uplink
            log.info("uplink changed", interface=uplink.interface, mtu=uplink.mtu)

    def _follow(self) -> bool:
        changed = self._worker.follow()
        if changed:
            self._shaping.follow()
        return changed

    async def guard_firewall(self) -> None:
        """Restore the firewall whenever somebody removes it; a background task."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        with nftables.watch() as events:
            loop.add_reader(events, changed.set)
            try:
                while True:
                    if await self._in_kernel(self._worker.restore_firewall):
                        self._tasks.errors["firewall"] += 1
                        log.error("the nftables table lark was removed; it is written again")
                    await changed.wait()
                    await asyncio.sleep(_DEBOUNCE_SECONDS)
                    changed.clear()
                    with contextlib.suppress(OSError):  # empty, or events were lost: look anyway
                        while True:
                            events.recv(1 << 16)
            finally:
                loop.remove_reader(events)

    async def guard_addresses(self) -> None:
        """Tell the datapath of every address that comes or goes; a background task."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        with local.watch() as events:
            loop.add_reader(events, changed.set)
            try:
                while True:
                    came, went = await self._in_kernel(self._places.follow)
                    for network in came:
                        log.info("an address is the worker's now", address=str(network))
                    for network in went:
                        log.info("an address is the worker's no more", address=str(network))
                    await self._until_addresses(events, changed)
            finally:
                loop.remove_reader(events)

    async def _until_addresses(self, events: socket.socket, changed: asyncio.Event) -> None:
        """Wait for more than what comes and goes with every sandbox: routes, and the gateways."""
        while True:
            changed.clear()
            if local.has_changed(events, self._places.gateways):
                return
            await changed.wait()
