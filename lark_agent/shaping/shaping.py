"""Rates, guarantees and queues of plans, in force: one HTB hierarchy for each direction.

What a job sends and receives passes the datapath at its link, which counts it and writes the
job's class into the packet's priority. A second filter redirects it to an ifb device, `larkup` or
`larkdown`, whose HTB holds it until its turn; the device then puts it back where it was taken. So
jobs share one hierarchy though each has a link of its own, and wherever their packets go.

**Why not** a qdisc on each link: it knows nothing of the other jobs, and cannot lend. Why not on
the uplink: after translation and bridging nobody knows whose a packet is, there may be several
uplinks, and a site's own qdisc may sit there. Why not policing: it drops what was counted, and
spikes.

**Back-pressure.** A packet keeps its socket across the link and the ifb device until the worker's
IP layer takes it: TCP's small queues and UDP's send buffer stop the job before a queue overflows.

**Life.** The devices are made when the first job needs them, and go when the agent stops and no
job is left; classes and filters come and go with jobs. All of it stays while the agent is away.
`adopt` repairs; classes of jobs that ended meanwhile go before the next one begins.

Macvlan sandboxes have no host's end where this could be done, nor has `host`: plans that want a
rate there are refused. They are outside the uplink's rate.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import structlog

from lark_agent.datapath.layout import SHAPER
from lark_agent.errors import KernelError, LarkError, PolicyRefusal
from lark_agent.linux import sysctl, traffic
from lark_agent.linux.traffic import EGRESS, INGRESS, MAJOR, Traffic
from lark_agent.model import UNSHAPED, Connectivity, Direction, Rates, alike_but_for_reach
from lark_agent.quantities import rates
from lark_agent.shaping.booking import Booking
from lark_agent.shaping.tree import Share, Tree, leaf_minor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lark_agent.config import AgentSettings
    from lark_agent.datapath import SlotPlan
    from lark_agent.linux.traffic import ClassState
    from lark_agent.model import NetworkPlan
    from lark_agent.sandbox.holding import Holding

DEVICES = {Direction.SENT: ("larkup", SHAPER - 1), Direction.RECEIVED: ("larkdown", SHAPER)}
"""Name and index; the datapath knows packets that come back by the latter."""
_HOOKS = {Direction.SENT: INGRESS, Direction.RECEIVED: EGRESS}
log = structlog.get_logger(__name__)


class Shaping:
    """An `Enforcement`. Belongs to one thread, in the worker's network namespace."""

    def __init__(self, uplink: Rates, queues: Mapping[str, Share]) -> None:
        self._uplink = uplink
        self._queues = queues
        self._trees = {direction: Tree(direction, uplink, queues) for direction in Direction}
        self.booking = Booking(uplink, {name: share.guarantee for name, share in queues.items()})
        self._traffic = Traffic()
        self._held: dict[int, Holding] = {}
        """Minor of the leaf → living job."""
        self._parents: dict[Direction, dict[int, int]] = {}
        """Parent of every class that is in the kernel; empty: nothing is set up."""
        self._swept = False

    @classmethod
    def of(cls, settings: AgentSettings) -> Self:
        """Make what a configuration says."""
        shares = {
            name: Share(rates(queue.rate or 0), rates(queue.guarantee or 0), queue.priority)
            for name, queue in settings.queues.items()
        }
        return cls(rates(settings.uplink.rate or 0), shares)

    def concerns(self, holding: Holding) -> bool:
        """Tell whether a job's packets are to be held back, if its sandbox has a link at all.

        That of a plan without connectivity has one if the job uses services of the worker.
        """
        plan, connectivity = holding.plan, holding.sandbox.connectivity
        if connectivity is Connectivity.NONE:
            return False
        wanted = bool(plan.rate or plan.guarantee or plan.queue)
        return wanted or (bool(self._uplink) and connectivity not in UNSHAPED)

    def begin(self, holding: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """Book the guarantee and make the job's classes."""
        plan = holding.plan
        self._check(plan)
        self.booking.book(holding.attachment_id, plan.queue, plan.guarantee)
        try:
            self._set_up()
            self._sweep()
            self._shape(holding)
            for direction in self._directions(plan):
                self._redirect(holding, direction)
        except LarkError:
            with contextlib.suppress(LarkError):
                self.end(holding)
            self._parents.clear()  # whatever is missing is made before the next job
            raise
        return self._told(holding, slot_plan)

    def change(self, before: Holding, after: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """Change the job's classes; what waits in a leaf waits on, unless it changes its queue."""
        if not alike_but_for_reach(before.plan, after.plan):
            self._check(after.plan)
            self.booking.book(after.attachment_id, after.plan.queue, after.plan.guarantee)
        try:
            self._reshape(before, after)
        except LarkError:
            self.booking.hold(before.attachment_id, before.plan.queue, before.plan.guarantee)
            with contextlib.suppress(LarkError):
                self._reshape(after, before)
            raise
        return self._told(after, slot_plan)

    def adopt(self, holding: Holding) -> None:
        """Book what was promised and make the kernel hold it, whatever is missing."""
        plan = holding.plan
        self.booking.hold(holding.attachment_id, plan.queue, plan.guarantee)
        self._set_up()
        self._shape(holding)
        for direction in self._directions(plan):
            self._stop_redirecting(holding, direction)
            self._redirect(holding, direction)

    def end(self, holding: Holding) -> None:
        """Take classes, filters and booking back."""
        self.booking.release(holding.attachment_id)
        minor = leaf_minor(holding.sandbox.slot)
        self._held.pop(minor, None)
        for direction in Direction:
            if minor in self._parents.get(direction, {}):
                self._stop_redirecting(holding, direction)
                self._delete(direction, minor)

    def waiting(self, holding: Holding) -> int:
        """Return how many bytes of what a job sent wait for their turn."""
        minor = leaf_minor(holding.sandbox.slot)
        if minor not in self._parents.get(Direction.SENT, {}):
            return 0
        state = self.states(Direction.SENT).get(minor)
        return state.backlog if state else 0

    def follow(self) -> None:
        """Let the queues of living jobs know the MTU that their links have now.

        A packet longer than a queue expects would be dropped after it was counted.
        """
        for holding in self._held.values():
            try:
                self._shape(holding)
            except KernelError as error:  # most likely its link is being taken away
                log.warning("cannot shape anew", sandbox=holding.sandbox.name, error=str(error))

    def states(self, direction: Direction) -> dict[int, ClassState]:
        """Return what the classes of a direction did, by minor; empty if nothing is set up."""
        try:
            return self._traffic.classes(DEVICES[direction][1])
        except KernelError as error:
            if error.number != errno.ENODEV:
                raise
            return {}

    def close(self) -> None:
        """Close the socket; without a job, nothing stays in the kernel."""
        try:
            if not self._held:
                for name, _ in DEVICES.values():
                    self._traffic.delete_link(name)
        finally:
            self._traffic.close()

    def _check(self, plan: NetworkPlan) -> None:
        if plan.connectivity in UNSHAPED:
            raise PolicyRefusal(
                f"the job's plan wants a rate, a guarantee or a queue, and connectivity "
                f"{plan.connectivity} has no end of its link on the worker where packets could "
                "wait; use nat, routed, bridge, vlan or ovs"
            )
        if plan.queue and plan.queue not in self._queues:
            raise PolicyRefusal(
                f"the job's plan names the queue '{plan.queue}', which this agent does not have; "
                f"define [queues.{plan.queue}] and restart the agent"
            )

    def _directions(self, plan: NetworkPlan) -> list[Direction]:
        return [direction for direction, tree in self._trees.items() if tree.shapes(plan)]

    def _told(self, holding: Holding, slot_plan: SlotPlan) -> SlotPlan:
        shaped = self._directions(holding.plan)
        handle = MAJOR | leaf_minor(holding.sandbox.slot)
        sent, received = (handle if direction in shaped else 0 for direction in Direction)
        return replace(slot_plan, queues=(sent, received))

    def _set_up(self) -> None:
        """Make devices and inner classes, or bring those of an earlier agent up to date."""
        if self._parents:
            return
        parents = {}
        for direction, (name, index) in DEVICES.items():
            self._traffic.add_ifb(name, index)
            sysctl.write_if_present(f"net/ipv6/conf/{name}/disable_ipv6", 1)
            self._traffic.put_htb(index)
            for shape in self._trees[direction].inner():
                self._traffic.put_class(index, shape)
            states = self._traffic.classes(index)
            parents[direction] = {minor: state.parent for minor, state in states.items()}
        self._parents = parents
        self._swept = False

    def _sweep(self) -> None:
        """Delete what is left of jobs and queues of earlier agents, children first."""
        if self._swept:
            return
        for direction, tree in self._trees.items():
            wanted = {shape.minor for shape in tree.inner()} | self._held.keys()
            parents = self._parents[direction]
            for minor in sorted(set(parents) - wanted, key=lambda m: m in parents.values()):
                self._delete(direction, minor)
        self._swept = True

    def _shape(self, holding: Holding) -> None:
        """Make or change the classes of a job, with their queues."""
        slot, plan = holding.sandbox.slot, holding.plan
        self._held[leaf_minor(slot)] = holding
        directions = self._directions(plan)
        mtu = traffic.mtu(holding.sandbox.interface) if directions else 0
        for direction in directions:
            leaf = self._trees[direction].leaf(slot, plan, mtu)
            minor, parents = leaf.shape.minor, self._parents[direction]
            if parents.get(minor, leaf.shape.parent) != leaf.shape.parent:
                self._delete(direction, minor)
            _, index = DEVICES[direction]
            self._traffic.put_class(index, leaf.shape)
            parents[minor] = leaf.shape.parent
            self._traffic.put_queue(index, minor, leaf.limit, leaf.cut_to)

    def _reshape(self, before: Holding, after: Holding) -> None:
        self._set_up()
        self._shape(after)
        earlier, later = set(self._directions(before.plan)), set(self._directions(after.plan))
        for direction in earlier ^ later:
            # a leaf that is no longer used empties, and goes with the job
            self._stop_redirecting(before, direction)
            if direction in later:
                self._redirect(after, direction)

    def _redirect(self, holding: Holding, direction: Direction) -> None:
        _, device = DEVICES[direction]
        self._traffic.redirect(holding.sandbox.interface, _HOOKS[direction], device)

    def _stop_redirecting(self, holding: Holding, direction: Direction) -> None:
        self._traffic.stop_redirecting(holding.sandbox.interface, _HOOKS[direction])

    def _delete(self, direction: Direction, minor: int) -> None:
        self._traffic.delete_class(DEVICES[direction][1], minor)
        self._parents[direction].pop(minor, None)
