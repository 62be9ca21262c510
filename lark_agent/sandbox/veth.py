"""The veth pair that connects a sandbox to its worker, whatever its addresses are.

Inside: `eth0` with the sandbox's addresses (/32, /128), a route to the gateway and a default route
by it. Outside: `lark<slot>` with the gateway's address and a route to each address. Permanent
neighbour entries on both sides (no ARP or neighbour discovery ever runs), no multicast. The MTU is
the uplink's, and follows it. Which addresses, and what else the namespace needs, is the driver's
affair (`lark_agent.sandbox.nat`, `.routed`); a link does not know whether it is translated.

Order matters: the datapath is attached before either end is up, so no packet passes unseen; and
connections are forgotten before links go (netavark #1482).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from lark_agent import crash, trouble
from lark_agent.errors import KernelError, LarkError, PrerequisiteError
from lark_agent.linux import conntrack, namespaces, sysctl, uplink
from lark_agent.linux.links import Links
from lark_agent.sandbox import addressing, own
from lark_agent.sandbox.addressing import INSIDE, PREFIX, Address

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from ipaddress import IPv4Network, IPv6Network

    from lark_agent.datapath import Datapath
    from lark_agent.sandbox.connectivity import Sandbox
    from lark_agent.sandbox.services import Loopbacks

CONDEMNED_GROUP = 0x6C61726B
"""Link group ("lark" in ASCII) in which interfaces are deleted together."""
log = structlog.get_logger(__name__)


class Veths:
    """All sandboxes' links of this worker.

    Belongs to one thread, but for `dismantle`, which may run in another. Raises PrerequisiteError
    if there is no uplink to follow.
    """

    def __init__(self, wanted_uplink: str, loopbacks: Loopbacks) -> None:
        self._wanted_uplink = wanted_uplink
        self._loopbacks = loopbacks
        self._links = Links()
        self._localnet = False
        try:
            self.uplink = uplink.find(self._links, wanted_uplink)
        except LarkError:
            self._links.close()
            raise

    def use(self, datapath: Datapath) -> None:
        """Attach the links to this datapath from now on."""
        self._datapath = datapath

    def close(self) -> None:
        """Close the netlink socket."""
        self._links.close()

    def check_free(
        self, networks: Iterable[IPv4Network | IPv6Network], *, delegated: bool = False
    ) -> None:
        """Raise PrerequisiteError for a range that the worker knows as somebody else's.

        A delegated one may lie inside a larger network that the worker reaches by a router.
        """
        for network in networks:
            clash = uplink.overlapping_route(self._links, network, PREFIX, delegated=delegated)
            if clash:
                raise PrerequisiteError(
                    f"the sandboxes' range {network} overlaps this worker's route to {clash}; "
                    "choose another under [addresses]"
                )

    def build(
        self,
        sandbox: Sandbox,
        pairs: Sequence[tuple[Address, Address]],
        inside: Callable[[], None] = lambda: None,
    ) -> Sandbox:
        """Build namespace, link and datapath; nothing passes before a plan is active.

        `pairs` are an address of the sandbox and its gateway, for each family that it has. `inside`
        runs in the new namespace before it has a link.
        """
        pairs = self._with_local(sandbox, pairs)
        host = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        def wire() -> None:
            inside()
            self._wire_inside(sandbox, pairs, host)

        try:
            namespaces.create(sandbox.name, wire)
            index = self._wire_outside(sandbox, pairs)
        except BaseException:
            self.dismantle([sandbox], [address for address, _ in pairs])
            raise
        finally:
            os.close(host)
        return replace(sandbox, interface=index)

    def hand_over(
        self,
        sandbox: Sandbox,
        pairs: Sequence[tuple[Address, Address]],
        namespace: int,
        inside: Callable[[], None] = lambda: None,
    ) -> None:
        """Move the sandbox's end of the link to another namespace, which gets the sandbox's name.

        The host's end stays as it is, and with it everything that enforces a plan. `inside` as in
        `build`. Raises LarkError; what is left then is for `dismantle`.
        """

        def settle() -> None:
            _quiet_ipv6("default")
            inside()

        def leave() -> None:
            with Links() as links:
                links.move(links.index(INSIDE), namespace)

        own.prepare(namespace, settle)
        namespaces.run_inside(sandbox.name, leave)
        wanted = self._with_local(sandbox, pairs)
        namespaces.run_in(namespace, lambda: _address(sandbox, wanted))
        namespaces.give_name(sandbox.name, namespace)
        self._loopbacks.build(sandbox.name)

    def renew(self, sandbox: Sandbox) -> None:
        """Take over a sandbox that an earlier agent built: this agent's programs, today's MTU."""
        if sandbox.interface:
            self._datapath.attach(self._links.netlink, sandbox.interface, sandbox.slot)
            self._set_mtu(sandbox.name, sandbox.interface)
            self._loopbacks.renew(sandbox.name, self._datapath.ports.of_launcher(sandbox.slot))

    def dismantle(
        self, sandboxes: Sequence[Sandbox], addresses: Collection[Address]
    ) -> list[LarkError]:
        """Forget connections of `addresses`, delete the links in one go, then the names.

        Repeatable; returns what went wrong.
        """
        problems: list[LarkError] = []
        try:
            conntrack.forget(set(addresses))
        except LarkError as error:
            problems.append(error)
        crash.here("dismantle.forgotten")
        try:
            # a socket of its own: this may run beside the thread that builds
            with Links() as links:
                indices = [index for s in sandboxes if (index := links.index(s.name))]
                links.delete(indices, CONDEMNED_GROUP)
                crash.here("dismantle.unlinked")
            for index in indices:
                self._datapath.unbind(index)
            if len(indices) < len(sandboxes):  # a job may delete the link in a namespace of its own
                self._unbind_slots({sandbox.slot for sandbox in sandboxes})
        except LarkError as error:
            problems.append(error)
        crash.here("dismantle.unbound")
        for sandbox in sandboxes:
            self._loopbacks.forget(sandbox.name)
            namespaces.delete(sandbox.name)
            crash.here("dismantle.unnamed")
        return problems

    def follow_uplink(self) -> bool:
        """Give all sandboxes the uplink's current MTU; returns whether it had changed."""
        current, known = uplink.find(self._links, self._wanted_uplink), self.uplink
        self.uplink = current
        if current.mtu == known.mtu:
            return False
        for name, index in self._links.names(PREFIX).items():
            if addressing.slot_of(name) is None:
                continue  # an ifb device of shaping
            try:
                self._set_mtu(name, index)
            except (KernelError, OSError) as error:  # most likely dismantled just now
                trouble.met("set an MTU")
                log.warning("cannot set the MTU", sandbox=name, mtu=current.mtu, error=str(error))
        return True

    def let_localnet(self, *, on: bool) -> None:
        """Let what the firewall translates reach the worker's loopback, or nothing.

        Other loopback targets are martian to the datapath before they get here.
        """
        self._localnet = on
        for name in self._links.names(PREFIX):
            self._set_localnet(name)

    def _with_local(
        self, sandbox: Sandbox, pairs: Sequence[tuple[Address, Address]]
    ) -> Sequence[tuple[Address, Address]]:
        if sandbox.local4 is None:
            return pairs
        return [*pairs, (sandbox.local4, self._loopbacks.gateway)]

    def _unbind_slots(self, slots: Collection[int]) -> None:
        for index, slot in self._datapath.bindings().items():
            if slot in slots:
                self._datapath.unbind(index)

    def _set_localnet(self, interface: str) -> None:
        sysctl.write_if_present(f"net/ipv4/conf/{interface}/route_localnet", int(self._localnet))

    def _set_mtu(self, name: str, index: int) -> None:
        mtu = self.uplink.mtu
        self._links.set_mtu(index, mtu)
        namespaces.run_inside(name, lambda: _set_inside_mtu(mtu))

    def _wire_inside(
        self, sandbox: Sandbox, pairs: Sequence[tuple[Address, Address]], host: int
    ) -> None:
        slot = sandbox.slot
        _quiet_ipv6("default")
        with Links() as links:
            links.add_veth(
                INSIDE, addressing.mac_inside(slot), sandbox.name, addressing.mac_outside(slot),
                host, self.uplink.mtu,
            )  # fmt: skip
        _address(sandbox, pairs)

    def _wire_outside(self, sandbox: Sandbox, pairs: Sequence[tuple[Address, Address]]) -> int:
        slot = sandbox.slot
        index = self._links.index(sandbox.name)
        if not index:
            raise KernelError(f"finding interface {sandbox.name}", "it is gone; retry")
        crash.here("pool.linked")
        self._datapath.attach(self._links.netlink, index, slot)
        crash.here("pool.attached")
        _quiet_ipv6(sandbox.name)
        self._set_localnet(sandbox.name)
        self._links.up(index, silent=True)
        for address, gateway in pairs:
            self._links.add_address(index, gateway)
            self._links.add_neighbour(index, address, addressing.mac_inside(slot))
            self._links.add_route(index, address)
        self._loopbacks.build(sandbox.name)
        crash.here("pool.built")
        return index


def _address(sandbox: Sandbox, pairs: Sequence[tuple[Address, Address]]) -> None:
    """Bring up the calling thread's namespace; the far end may still be down."""
    with Links() as links:
        index = links.index(INSIDE)
        links.up(links.index("lo"))
        # up before its addresses: routes need a link that is up
        links.up(index, silent=True)
        for address, gateway in pairs:
            links.add_address(index, address)
            links.add_neighbour(index, gateway, addressing.mac_outside(sandbox.slot))
            links.add_route(index, gateway)
            if address != sandbox.local4:
                links.add_route(index, gateway, default=True)


def _quiet_ipv6(interface: str) -> None:
    """Keep an interface from speaking by itself.

    No link-local address, no solicitations, no duplicate address detection.
    """
    values = {"addr_gen_mode": 1, "accept_ra": 0, "autoconf": 0, "accept_dad": 0}
    for key, value in values.items():
        sysctl.write_if_present(f"net/ipv6/conf/{interface}/{key}", value)


def _set_inside_mtu(mtu: int) -> None:
    with Links() as links:
        links.set_mtu(links.index(INSIDE), mtu)
