"""The datapath on sandboxes of a network of the site: where it hangs, and what passes when.

An idle sandbox there is not silent: its addresses are looked after (leases, advertisements,
neighbours that ask), so its slot has a plan of its own kind from the start, SETUP, by which nothing
but that passes. A job's claim replaces it (`OnNetwork`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lark_agent.datapath import Hooks, SlotPlan
from lark_agent.linux import namespaces
from lark_agent.linux.links import Links
from lark_agent.model import LAYER2
from lark_agent.sandbox.inside import Upkeep

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lark_agent.datapath import Datapath
    from lark_agent.sandbox.connectivity import Kind, Sandbox
    from lark_agent.sandbox.holding import Holding


class Guard:
    """Hangs the datapath on sandboxes that sit on a network. Any thread may use it."""

    def __init__(self, datapath: Datapath) -> None:
        self._datapath = datapath

    def hang(self, sandbox: Sandbox) -> None:
        """Attach the programs, before the link is up or again; raises KernelError."""
        if sandbox.inside:
            namespaces.run_inside(sandbox.name, lambda: self._hang(sandbox, Hooks.SANDBOX))
        else:
            self._hang(sandbox, Hooks.HOST)

    def _hang(self, sandbox: Sandbox, hooks: Hooks) -> None:
        with Links() as links:
            self._datapath.attach(links.netlink, sandbox.interface, sandbox.slot, hooks)

    def admit_upkeep(self, sandbox: Sandbox, upkeep: Upkeep) -> None:
        """Let pass what gets and keeps the addresses of a sandbox without a job."""
        bare = SlotPlan(sandbox.ipv4, sandbox.ipv6, b"")
        self._datapath.prepare(sandbox.slot, on_network(bare, sandbox, upkeep))

    def forget(self, sandbox: Sandbox) -> None:
        """Let nothing pass any more, whatever is left of it. Repeatable."""
        if sandbox.slot < self._datapath.slots:  # else of an agent with more slots than this one
            self._datapath.deactivate(sandbox.slot)
        if sandbox.interface:
            self._datapath.unbind(sandbox.interface)


class OnNetwork:
    """Adds to a plan what the datapath must know of the network that the job sits on."""

    def __init__(self, upkeep: Mapping[Kind, Upkeep]) -> None:
        self._upkeep = upkeep

    def concerns(self, holding: Holding) -> bool:
        """Tell whether the job is on a network of the site."""
        return holding.plan.connectivity in LAYER2

    def begin(self, holding: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """Say that the job has neighbours, and what keeps its addresses."""
        return self._completed(holding, slot_plan)

    def change(self, before: Holding, after: Holding, slot_plan: SlotPlan) -> SlotPlan:  # noqa: ARG002  of the protocol
        """Keep the network, which is the same."""
        return self._completed(after, slot_plan)

    def adopt(self, holding: Holding) -> None:
        """Leave the plan, which is in the kernel."""

    def end(self, holding: Holding) -> None:
        """Leave the plan, which has ended with the job."""

    def _completed(self, holding: Holding, slot_plan: SlotPlan) -> SlotPlan:
        sandbox = holding.sandbox
        # of a network that is not configured any more: what kept the address goes on keeping it
        both = Upkeep.ROUTER | Upkeep.DHCP
        return on_network(slot_plan, sandbox, self._upkeep.get(sandbox.kind, both))


def on_network(slot_plan: SlotPlan, sandbox: Sandbox, upkeep: Upkeep) -> SlotPlan:
    """Return a slot plan for a sandbox that has neighbours."""
    return replace(
        slot_plan,
        mac=bytes.fromhex(sandbox.mac.replace(":", "")),
        link=True,
        router=Upkeep.ROUTER in upkeep,
        dhcp=Upkeep.DHCP in upkeep,
    )
