"""What plans let in from outside: elements of the firewall's sets, there for as long as the job is.

Without an opening the forward chain lets in answers only. What a plan with `inbound = "ports"` or
`"all"` adds to that depends on who owns the address that the far side uses:

* `routed`: the job does. Its address (`all`), or address, protocol and port, joins a set that the
  forward chain accepts.
* `nat`: the worker does. Protocol and port join a map by which prerouting sends what comes for any
  of the worker's addresses on to the job, at the same number. `all` is every port of the job's own
  block, which no other job has and no program of the worker is given. A listed port is the job's
  alone while it runs: it is bound on the worker (`lark_agent.linux.ports`), so a job whose port a
  program or another job has is refused, and no program can be robbed of its own. Ports of other
  jobs' blocks cannot be listed.

One transaction at the job's start and one at its end, for jobs that open something; others cost
nothing. All elements are known here, so the table is always written with them (`elements`): after a
restart, and after others have flushed it. Sandboxes on layer-2 networks are none of the firewall's
business; there the datapath does all of this.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lark_agent.errors import KernelError, Unavailable
from lark_agent.linux import conntrack, nftables, ports
from lark_agent.model import Connectivity, Family, Inbound

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping

    from lark_agent.datapath import SlotPlan
    from lark_agent.model import Port
    from lark_agent.sandbox.addressing import Addressing
    from lark_agent.sandbox.holding import Holding

TABLE = "lark"
SETS = {
    "open4": "set open4 { type ipv4_addr;",
    "open6": "set open6 { type ipv6_addr;",
    "ports4": "set ports4 { type ipv4_addr . inet_proto . inet_service;",
    "ports6": "set ports6 { type ipv6_addr . inet_proto . inet_service;",
    "inward4": "map inward4 { type inet_proto . inet_service : ipv4_addr; flags interval;",
    "inward6": "map inward6 { type inet_proto . inet_service : ipv6_addr; flags interval;",
}
"""The sets and maps of the table, as nft declares them up to their elements."""
Elements = dict[str, list[str]]
"""Set → its elements, as nft writes them."""
_OPENING = {Inbound.PORTS, Inbound.ALL}
_HERE = {Connectivity.NAT, Connectivity.ROUTED}


@dataclass(frozen=True, slots=True)
class _Opened:
    """What is open for one job."""

    elements: Elements = field(default_factory=dict)
    held: Mapping[Port, socket.socket] = field(default_factory=dict)
    """The worker's ports that are the job's."""


class Openings:
    """The openings of this worker's jobs. Belongs to the kernel thread."""

    def __init__(self, numbers: Addressing, rewrite: Callable[[], None]) -> None:
        """`rewrite` writes the whole table, with the `elements` of here."""
        self._numbers = numbers
        self._rewrite = rewrite
        self._opened: dict[str, _Opened] = {}

    @property
    def elements(self) -> Elements:
        """Everything that is open, by set."""
        found: Elements = {}
        for opened in self._opened.values():
            for name, elements in opened.elements.items():
                found.setdefault(name, []).extend(elements)
        return found

    def expect(self, holdings: Iterable[Holding]) -> None:
        """Know what an earlier agent opened, before this one writes the table."""
        for holding in holdings:
            if self.concerns(holding):
                self._opened[holding.attachment_id] = _Opened(_elements(holding, self._numbers))

    def concerns(self, holding: Holding) -> bool:
        """Tell whether a plan opens anything."""
        plan = holding.plan
        return plan.inbound in _OPENING and plan.connectivity in _HERE and not plan.cut

    def begin(self, holding: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """Open; raises Unavailable if a port is somebody else's."""
        self._put(holding)
        return slot_plan

    def change(self, before: Holding, after: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """Open and close to what begins from now on.

        What is there goes on: the job's next packet would begin it anew, as its own.
        """
        del before
        self._put(after)
        return slot_plan

    def adopt(self, holding: Holding) -> None:
        """Take the ports again; the table has been written with the elements."""
        self._put(holding)

    def end(self, holding: Holding) -> None:
        """Close, and forget the connections that came in, so that no later job inherits them."""
        opened = self._opened.pop(holding.attachment_id, None)
        if opened is None:
            return
        self._write(_changes(opened.elements, {}))
        _close(opened.held.values())
        sandbox = holding.sandbox
        conntrack.forget_incoming({a for a in (sandbox.ipv4, sandbox.ipv6) if a is not None})

    def _put(self, holding: Holding) -> None:
        """Open what the plan says and nothing else; raises LarkError, changing nothing."""
        key = holding.attachment_id
        before = self._opened.get(key, _Opened())
        with ExitStack() as on_failure:
            wanted = self._listed(holding)
            missing = sorted(wanted - before.held.keys())
            fresh = {port: self._hold(port, on_failure) for port in missing}
            held = {port: taken for port, taken in before.held.items() if port in wanted} | fresh
            after = _Opened(_elements(holding, self._numbers), held)
            self._opened[key] = after
            on_failure.callback(self._restore, key, before)
            if changes := _changes(before.elements, after.elements):
                self._write(changes)
            on_failure.pop_all()
        _close(taken for port, taken in before.held.items() if port not in wanted)
        if not after.elements:
            del self._opened[key]

    def _listed(self, holding: Holding) -> set[Port]:
        """Return the worker's own ports that a plan wants; raises Unavailable for others' ports."""
        plan, sandbox = holding.plan, holding.sandbox
        if not self.concerns(holding) or plan.connectivity is not Connectivity.NAT:
            return set()
        wanted = set(plan.ports) if plan.inbound is Inbound.PORTS else set()
        first, last = self._numbers.block(0)[0], self._numbers.block(self._numbers.slots - 1)[1]
        for port in wanted:
            own = sandbox.first_port <= port.number <= sandbox.last_port
            if first <= port.number <= last and not own:
                raise Unavailable(
                    f"the port {port} cannot be opened to a job with nat: ports {first} to {last} "
                    "of this worker are divided among its jobs; list one outside, or ask for "
                    "inbound = all and listen in the job's own block"
                )
        return wanted

    def _hold(self, port: Port, on_failure: ExitStack) -> socket.socket:
        taken = ports.hold(port)
        on_failure.callback(taken.close)
        return taken

    def _restore(self, key: str, before: _Opened) -> None:
        self._opened.pop(key)
        if before.elements:
            self._opened[key] = before

    def _write(self, changes: str) -> None:
        """Change the table, or write it anew if that fails: others may just have flushed it."""
        try:
            nftables.run(changes)
        except KernelError:
            self._rewrite()


def _elements(holding: Holding, numbers: Addressing) -> Elements:
    """Return what a plan adds to the sets; nothing if it opens nothing."""
    plan, sandbox = holding.plan, holding.sandbox
    if plan.inbound not in _OPENING or plan.cut:
        return {}
    addresses = [
        (family, address)
        for family, address, other in (
            (4, sandbox.ipv4, Family.IPV6), (6, sandbox.ipv6, Family.IPV4),
        )
        if address is not None and plan.ip is not other
    ]  # fmt: skip
    everything = plan.inbound is Inbound.ALL
    found: Elements = {}
    for family, address in addresses:
        if plan.connectivity is Connectivity.NAT:
            listed = [_port(port) for port in plan.ports]
            first, last = numbers.block(sandbox.slot)
            block = [f"{protocol} . {first}-{last}" for protocol in ("tcp", "udp")]
            keys = block if everything else listed
            found[f"inward{family}"] = [f"{key} : {address}" for key in keys]
        elif plan.connectivity is Connectivity.ROUTED and everything:
            found[f"open{family}"] = [str(address)]
        elif plan.connectivity is Connectivity.ROUTED:
            found[f"ports{family}"] = [f"{address} . {_port(port)}" for port in plan.ports]
    return {name: elements for name, elements in found.items() if elements}


def _port(port: Port) -> str:
    return f"{port.protocol} . {port.number}"


def _changes(before: Elements, after: Elements) -> str:
    """Return the transaction from the one to the other."""
    if before == after:
        return ""
    return "".join(
        f"{verb} element inet {TABLE} {name} {{ {', '.join(elements)} }}\n"
        for verb, which in (("delete", before), ("add", after))
        for name, elements in which.items()
    )


def _close(held: Iterable[socket.socket]) -> None:
    for each in held:
        each.close()
