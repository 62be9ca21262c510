"""Sandboxes on a network of the site: neighbours of the worker instead of hosts behind it.

What all four kinds (`bridge`, `macvlan`, `vlan`, `ovs`) have in common is here; how the sandbox's
`eth0` gets onto the network is a `Port`, where its addresses come from is a `Source`. Building::

    namespace, with its kernel set to behave on a shared network (`inside.prepare`)
    Port.plug              interfaces, all down
    datapath attached, slot plan SETUP: neighbours and upkeep of addresses may pass, nothing else
    interfaces up
    Source.obtain          an address of each family, or the building fails
    slot plan SETUP with these addresses, so that leases are renewed and duplicates noticed

Only the claim lets the job's packets pass, as everywhere (`guard.OnNetwork`). An idle sandbox that
has lost its address meanwhile is not given to a job (`fit`).

The MTU is the network's when the sandbox is built; unlike the worker's own links, these do not
follow a change of it. No connection tracking and no firewall of the worker sees their packets, so
all that holds for such a job is in the datapath.

Tear-down: first nothing passes, then ports and interfaces go, then addresses are free, then names.
The namespace may outlive its name with a stray process, so an interface that would live on in it is
deleted before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import structlog

from lark_agent import trouble
from lark_agent.errors import KernelError, LarkError
from lark_agent.linux import namespaces
from lark_agent.linux.links import Links
from lark_agent.sandbox import addressing, inside, leases, nearby, resolver
from lark_agent.sandbox.addressing import INSIDE, INSIDE_BASE, Address
from lark_agent.sandbox.connectivity import Kind, Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lark_agent.sandbox.guard import Guard
    from lark_agent.sandbox.inside import Upkeep

_GROUP = 0x6C700000
"""Link groups from here on, one for each slot: builders and dismantlers may delete at once."""

log = structlog.get_logger(__name__)


class Port(Protocol):
    """How a sandbox's eth0 gets onto a network."""

    inside: bool
    """The datapath hangs on eth0 itself: there is no host end, or it is bypassed."""

    def check(self) -> None:
        """Find out whether the network is there; raises LarkError with what to do about it."""
        ...

    def plug(self, sandbox: Sandbox) -> int:
        """Make eth0 in the sandbox's namespace, all down; returns what the datapath hangs on."""
        ...

    def switch_on(self, sandbox: Sandbox) -> None:
        """Bring up what `plug` made on the worker's side."""
        ...

    def unplug(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Remove everything again; repeatable, returns what went wrong."""
        ...


class Source(Protocol):
    """Where a sandbox's address of one family comes from."""

    flags: Upkeep
    ipv6: bool

    def check(self) -> None:
        """Find out whether this machine can; raises LarkError."""
        ...

    def obtain(self, sandbox: Sandbox) -> Address:
        """Put an address and its routes on eth0; raises LarkError."""
        ...

    def keep(self, sandbox: Sandbox) -> None:
        """Go on with what a sandbox of an earlier agent has. Raises LarkError."""
        ...

    def release(self, sandbox: Sandbox) -> None:
        """Take back what `obtain` took; repeatable."""
        ...


class Layer2Driver:
    """Builds the sandboxes of one network."""

    def __init__(
        self,
        kind: Kind,
        worker: str,
        port: Port,
        sources: Sequence[Source],
        resolvers: Sequence[Address],
        guard: Guard,
        run_directory: Path,
    ) -> None:
        """Build on what `resolvers` name; without any, on those that a source was told of."""
        self._kind = kind
        self._resolvers = resolvers
        self._run_directory = run_directory
        self._worker = worker
        self._port = port
        self._sources = sources
        self._guard = guard
        self.upkeep = inside.Upkeep.NONE
        """What must pass for the addresses, before a job and while it runs."""
        for source in sources:
            self.upkeep |= source.flags

    def check(self) -> None:
        """Check the network and its sources of addresses; raises LarkError."""
        self._port.check()
        for source in self._sources:
            source.check()

    def set_up(self, slot: int) -> Sandbox:
        """Build the sandbox of a slot; raises LarkError and leaves nothing if that fails."""
        sandbox = Sandbox(
            slot, self._kind.connectivity, network=self._kind.network,
            mac=addressing.mac_on_network(self._worker, slot), inside=self._port.inside,
        )  # fmt: skip
        try:
            nearby.make_room(slot)
            namespaces.create(sandbox.name, self._prepare)
            sandbox = replace(sandbox, interface=self._port.plug(sandbox))
            self._guard.hang(sandbox)
            self._guard.admit_upkeep(sandbox, self.upkeep)
            namespaces.run_inside(sandbox.name, _bring_up)
            self._port.switch_on(sandbox)
            for source in self._sources:
                address = source.obtain(sandbox)
                family = {"ipv6": address} if source.ipv6 else {"ipv4": address}
                sandbox = replace(sandbox, **family)  # type: ignore[arg-type]  # the source says which family
                self._guard.admit_upkeep(sandbox, self.upkeep)
            servers = self._resolvers or leases.resolvers(self._run_directory, slot)
            own = resolver.write_own(self._run_directory, slot, servers)
            sandbox = replace(sandbox, own_resolvers=own)
        except BaseException:
            self.tear_down([sandbox])
            raise
        return sandbox

    def renew(self, sandbox: Sandbox) -> None:
        """Take over a sandbox of an earlier agent: this agent's programs, its leases renewed."""
        self._guard.hang(sandbox)
        for source in self._sources:
            source.keep(sandbox)

    def fit(self, sandbox: Sandbox) -> bool:
        """Tell whether the sandbox still has its addresses."""
        try:
            usable = namespaces.run_inside(sandbox.name, inside.present)
        except (LarkError, OSError) as error:
            trouble.met("look into a sandbox")
            log.warning("cannot look into a sandbox", sandbox=sandbox.name, error=str(error))
            return False
        lost = {sandbox.ipv4, sandbox.ipv6} - {None} - usable
        if lost:
            log.warning("a sandbox has lost its address", sandbox=sandbox.name, lost=str(lost))
        return not lost

    def tear_down(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Dismantle; returns what went wrong."""
        problems: list[LarkError] = []
        for sandbox in sandboxes:
            self._guard.forget(sandbox)
        problems += self._port.unplug(sandboxes)
        for sandbox in sandboxes:
            for source in self._sources:
                source.release(sandbox)
            resolver.own_file(self._run_directory, sandbox.slot).unlink(missing_ok=True)
            namespaces.delete(sandbox.name)
        return problems

    def _prepare(self) -> None:
        ipv6 = any(source.ipv6 for source in self._sources)
        autoconf = bool(self.upkeep & inside.Upkeep.ROUTER)
        inside.prepare(ipv6=ipv6, autoconf=autoconf)
        nearby.limit()
        with Links() as links:
            links.up(links.index("lo"))


def _bring_up() -> None:
    with Links() as links:
        links.up(links.index(INSIDE))


def inside_index(sandbox: Sandbox) -> int:
    """Return the index of eth0 where the datapath hangs on it: no other of the worker has it."""
    return INSIDE_BASE + sandbox.slot


def delete_host_ends(sandboxes: Sequence[Sandbox]) -> list[LarkError]:
    """Delete the worker's ends of veths, all in one go."""
    try:
        with Links() as links:
            names = [addressing.port_name(sandbox.slot) for sandbox in sandboxes]
            indices = [index for name in names if (index := links.index(name))]
            if indices:
                links.delete(indices, _GROUP + sandboxes[0].slot)
    except KernelError as error:
        return [error]
    return []


def delete_inside(sandboxes: Sequence[Sandbox]) -> list[LarkError]:
    """Delete eth0 in the sandboxes that still have a name."""
    problems: list[LarkError] = []
    for sandbox in sandboxes:
        try:
            if namespaces.exists(sandbox.name):
                namespaces.run_inside(sandbox.name, _delete_eth0)
        except (LarkError, OSError) as error:
            problems.append(KernelError(f"deleting eth0 of {sandbox.name}", str(error)))
    return problems


def _delete_eth0() -> None:
    with Links() as links:
        index = links.index(INSIDE)
        if index:
            links.delete([index], _GROUP)
