"""From a plan to everything that enforces it: the datapath's slot plan and the other parts.

The slot plan is what every packet is held against; each `Enforcement` that the plan concerns adds
its own to it. They are asked in the order in which the daemon lists them and undone in reverse, so
that a job is either held by all of its plan or not started.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from lark_agent import crash, trouble
from lark_agent.datapath import SlotPlan
from lark_agent.datapath.plan import ALL_SERVICES
from lark_agent.datapath.services import DNS
from lark_agent.errors import LarkError, Unavailable
from lark_agent.model import Connectivity, Family, Inbound, Peers
from lark_agent.sandbox import addressing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Address

    from lark_agent.datapath import Datapath
    from lark_agent.sandbox.connectivity import Sandbox
    from lark_agent.sandbox.holding import Enforcement, Holding
    from lark_agent.sandbox.services import Loopbacks

log = structlog.get_logger(__name__)


class Enforcing:
    """Puts plans in force. Belongs to the kernel thread where it concerns any part."""

    def __init__(
        self, datapath: Datapath, loopbacks: Loopbacks, parts: Sequence[Enforcement]
    ) -> None:
        self._datapath = datapath
        self._loopbacks = loopbacks
        self._parts = parts

    def concerns(self, holding: Holding) -> bool:
        """Tell whether more than the datapath has to know of a plan: that takes its time."""
        return any(part.concerns(holding) for part in self._parts)

    def begin(self, holding: Holding) -> None:
        """Put a plan in force; raises LarkError and leaves nothing if it cannot be."""
        plan = self._slot_plan(holding)
        if holding.launcher:
            self._loopbacks.add(holding.sandbox.name, holding.launcher)
        with ExitStack() as on_failure:
            for part in self._parts:
                if part.concerns(holding):
                    plan = part.begin(holding, plan)
                    on_failure.callback(part.end, holding)
            crash.here("claim.enforced")
            if is_counted(holding.sandbox.connectivity):
                self._datapath.reset(holding.sandbox.slot)
                self._datapath.activate(holding.sandbox.slot, plan)
            on_failure.pop_all()

    def let_launcher(self, holding: Holding) -> None:
        """Let a job have what its launcher listens on now, and no more. Raises LarkError."""
        ports, slot = frozenset() if holding.plan.cut else holding.launcher, holding.sandbox.slot
        if ports:
            self._loopbacks.add(holding.sandbox.name, ports)
        self._datapath.ports.let_launcher(slot, ports, self._loopbacks.gateway)

    def change(self, before: Holding, after: Holding) -> None:
        """Put a changed plan in force for the next packet; raises LarkError, keeping what was."""
        if after.sandbox.connectivity is Connectivity.NONE and after.plan.services:
            raise Unavailable(
                "the job was started without any link, also to services of the worker; set them in "
                "its profile, or by a rule, before it starts"
            )
        plan = self._slot_plan(after)
        with ExitStack() as on_failure:
            for part in self._parts:
                if part.concerns(after) or part.concerns(before):
                    plan = part.change(before, after, plan)
                    on_failure.callback(part.change, after, before, plan)
            if is_counted(after.sandbox.connectivity):
                self._datapath.change(after.sandbox.slot, plan)
            on_failure.pop_all()

    def adopt(self, holding: Holding) -> None:
        """Take over what an earlier agent put in force; what fails is logged, the job runs on."""
        for part in self._parts:
            if part.concerns(holding):
                self._try("adopt", part.adopt, holding)

    def end(self, *ended: Holding) -> None:
        """Take everything back after the last reading; what fails is logged."""
        for holding in ended:
            for part in reversed(self._parts):
                if part.concerns(holding):
                    self._try("end", part.end, holding)

    def _try(self, doing: str, step: Callable[[Holding], None], holding: Holding) -> None:
        try:
            step(holding)
        except (LarkError, OSError) as error:
            trouble.met("adopt or end a plan")
            log.error("enforcing", doing=doing, attachment=holding.attachment_id, error=str(error))

    def _slot_plan(self, holding: Holding) -> SlotPlan:
        sandbox, plan, job = holding.sandbox, holding.plan, holding.job
        ipv4 = None if plan.ip is Family.IPV6 else sandbox.ipv4
        ipv6 = None if plan.ip is Family.IPV4 else sandbox.ipv6
        lacking = (plan.ip in {Family.IPV4, Family.BOTH} and ipv4 is None) or (
            plan.ip in {Family.IPV6, Family.BOTH} and ipv6 is None
        )
        if lacking and is_counted(plan.connectivity) and plan.connectivity is not Connectivity.HOST:
            raise Unavailable(
                f"the job insists on {plan.ip} and this worker's network {plan.connectivity} has "
                f"{'no IPv4' if ipv4 is None else 'no IPv6'}; run it on another worker"
            )
        services, launcher = (
            None if plan.services is None else {DNS, *plan.services},
            holding.launcher,
        )
        gateway = self._loopbacks.gateway
        if holding.beside is not None:
            gateway, launcher = holding.beside[0], frozenset({holding.beside[1]})
        if plan.cut:
            plan = replace(plan, reach=frozenset(), peers=Peers.NONE, inbound=Inbound.NONE)
            services, launcher = set(), frozenset()
        if plan.connectivity is Connectivity.NONE:  # but for services
            plan = replace(plan, reach=frozenset(), peers=Peers.NONE, inbound=Inbound.ESTABLISHED)
            services = set(plan.services or ()) if services else set()
        mac = bytes.fromhex(addressing.mac_inside(sandbox.slot).replace(":", ""))
        classes = self._datapath.classes.mask(plan.reach)
        return SlotPlan(
            ipv4, ipv6, mac, classes, plan.peers, job.owner, job.accounting_group,
            inbound=plan.inbound,
            ports=frozenset(port.on_wire for port in plan.ports),
            dscp=plan.dscp, flow_label=plan.flow_label,
            services=ALL_SERVICES if services is None else self._datapath.services.mask(services),
            local4=_local4(sandbox) if ipv4 is None else None,
            launcher=launcher, gateway=gateway,
        )  # fmt: skip


def is_counted(connectivity: Connectivity) -> bool:
    """Tell whether a sandbox has packets at all."""
    return connectivity is not Connectivity.NONE


def _local4(sandbox: Sandbox) -> IPv4Address | None:
    """Return the address by which a job without IPv4 has services of the worker's loopback."""
    linked = sandbox.connectivity in {Connectivity.NAT, Connectivity.ROUTED}
    return sandbox.local4 or sandbox.ipv4 if linked else None
