"""Connectivity `nat`: a veth to the worker, private addresses, masquerading behind the uplink.

Inside a sandbox: `eth0` with one IPv4 and, where the worker has IPv6, one IPv6 address (/32, /128),
a route to the gateway and a default route by it, permanent neighbour entries on both sides (no ARP
or neighbour discovery ever runs), no multicast. The sandbox's ephemeral ports *are* its NAT block:
sockets that find no free port fail with EADDRNOTAVAIL before anything is sent, so nothing is
counted that the translation would refuse, and connections keep their port numbers on the outside.

Order matters: the datapath is attached before either end is up, so no packet passes unseen.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import structlog

from lark_agent.errors import KernelError, LarkError, PrerequisiteError
from lark_agent.linux import conntrack, namespaces, nftables, sysctl, uplink
from lark_agent.linux.links import Links
from lark_agent.model import Connectivity
from lark_agent.sandbox import addressing, firewall, resolver
from lark_agent.sandbox.addressing import INSIDE, PREFIX, Addressing
from lark_agent.sandbox.connectivity import Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from lark_agent.datapath import Datapath

    Address = IPv4Address | IPv6Address

CONDEMNED_GROUP = 0x6C61726B
"""Link group ("lark" in ASCII) in which interfaces are deleted together."""
log = structlog.get_logger(__name__)


class NatDriver:
    """Builds sandboxes behind the worker's address.

    Belongs to one thread, but for `tear_down`, which may run in another.
    """

    def __init__(self, numbers: Addressing, wanted_uplink: str, run_directory: Path) -> None:
        self._numbers = numbers
        self._wanted_uplink = wanted_uplink
        self._resolv_conf = run_directory / "resolv.conf"
        self._forwarding = run_directory / "forwarding"
        self._links = Links()
        self.uplink = uplink.find(self._links, wanted_uplink)
        self.resolver = resolver.read(numbers.gateway4)

    def use(self, datapath: Datapath) -> None:
        """Attach the sandboxes' links to this datapath from now on."""
        self._datapath = datapath

    def close(self) -> None:
        """Close the netlink socket."""
        self._links.close()

    def check(self) -> None:
        """Check that address ranges and ports are free; raises PrerequisiteError."""
        for network in (self._numbers.network4, self._numbers.network6):
            clash = uplink.overlapping_route(self._links, network, PREFIX)
            if clash:
                raise PrerequisiteError(
                    f"the sandboxes' range {network} overlaps this worker's route to {clash}; "
                    "choose another under [addresses]"
                )
        first, last = self._ports()
        low, high = map(int, sysctl.read("net/ipv4/ip_local_port_range").split())
        if first <= high and low <= last:
            raise PrerequisiteError(
                f"the NAT blocks {first}-{last} overlap the worker's ephemeral ports {low}-{high}; "
                "move [nat] first_port/last_port or the sysctl net.ipv4.ip_local_port_range"
            )

    def prepare(self) -> None:
        """Write firewall, sysctls and resolv.conf."""
        self._reserve_ports()
        self._let_forward()
        self._write_firewall()
        self.write_resolv_conf()

    def _let_forward(self) -> None:
        opened = self._opened() | uplink.let_forward(self.uplink)
        self._forwarding.write_text(" ".join(sorted(opened)), encoding="ascii")

    def _opened(self) -> set[str]:
        """Return the families that this worker forwards only for us; also after a restart."""
        if not self._forwarding.exists():
            return set()
        return set(self._forwarding.read_text(encoding="ascii").split())

    def _write_firewall(self) -> None:
        text = firewall.ruleset(
            self._numbers, self.resolver.stub, self.uplink.interface, self._opened()
        )
        nftables.run(text)

    def restore_firewall(self) -> bool:
        """Write the firewall again if somebody removed it; returns whether that was so."""
        if firewall.stands():
            return False
        self._write_firewall()
        return True

    def withdraw(self) -> None:
        """Take back what `prepare` changed for all sandboxes; for an agent without jobs."""
        nftables.run(firewall.removal())
        uplink.stop_forwarding(self._opened())
        self._forwarding.unlink(missing_ok=True)

    def write_resolv_conf(self) -> None:
        """Write the sandboxes' resolv.conf, in place: running jobs see it by a bind mount."""
        self.resolver = resolver.read(self._numbers.gateway4)
        text = "# written by lark-agent for the job sandboxes\n" + self.resolver.text
        if not self._resolv_conf.exists() or self._resolv_conf.read_text(encoding="utf-8") != text:
            self._resolv_conf.write_text(text, encoding="utf-8")
            self._resolv_conf.chmod(0o644)

    def follow_resolver(self) -> None:
        """Tell the sandboxes which resolver the worker asks now."""
        stub = self.resolver.stub
        self.write_resolv_conf()
        if self.resolver.stub != stub:
            self._write_firewall()
            for name in self._links.names(PREFIX):
                self._allow_stub(name)

    def follow_uplink(self) -> bool:
        """Give all sandboxes the uplink's current MTU; returns whether it had changed."""
        current, known = uplink.find(self._links, self._wanted_uplink), self.uplink
        self.uplink = current
        if current.has_ipv6 and not known.has_ipv6:
            self._let_forward()
            self._write_firewall()
        if current.mtu == known.mtu:
            return False
        for name, index in self._links.names(PREFIX).items():
            try:
                self._set_mtu(name, index)
            except (KernelError, OSError) as error:  # most likely dismantled just now
                log.warning("cannot set the MTU", sandbox=name, mtu=current.mtu, error=str(error))
        return True

    def _set_mtu(self, name: str, index: int) -> None:
        mtu = self.uplink.mtu
        self._links.set_mtu(index, mtu)
        namespaces.run_inside(name, lambda: _set_inside_mtu(mtu))

    def _allow_stub(self, interface: str) -> None:
        """Let the translated question reach a stub resolver on the worker's loopback.

        Other loopback targets are martian to the datapath before they get here.
        """
        wanted = int(self.resolver.stub is not None)
        sysctl.write_if_present(f"net/ipv4/conf/{interface}/route_localnet", wanted)

    def set_up(self, slot: int) -> Sandbox:
        """Build namespace, veth and datapath of a slot; nothing passes before a plan is active."""
        name = addressing.name(slot)
        first, last = self._numbers.block(slot)
        ipv6 = self._numbers.ipv6(slot) if self.uplink.has_ipv6 else None
        sandbox = Sandbox(
            slot, Connectivity.NAT, self._numbers.ipv4(slot), ipv6, first_port=first, last_port=last
        )
        host = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            namespaces.create(name, lambda: self._wire_inside(sandbox, host))
            index = self._wire_outside(sandbox)
        except BaseException:
            self.tear_down([sandbox])
            raise
        finally:
            os.close(host)
        return Sandbox(
            slot,
            Connectivity.NAT,
            sandbox.ipv4,
            ipv6,
            interface=index,
            first_port=first,
            last_port=last,
        )

    def renew(self, sandbox: Sandbox) -> None:
        """Take over a sandbox that an earlier agent built: this agent's programs, today's MTU."""
        if sandbox.interface:
            self._datapath.attach(self._links.netlink, sandbox.interface, sandbox.slot)
            self._set_mtu(sandbox.name, sandbox.interface)

    def _wire_inside(self, sandbox: Sandbox, host: int) -> None:
        slot = sandbox.slot
        sysctl.write("net/ipv4/ip_local_port_range", f"{sandbox.first_port} {sandbox.last_port}")
        # A block is small: let connections to one server reuse ports that only wait out TIME_WAIT,
        # at once where the kernel can (6.14), else after a second. Timestamps make that safe.
        sysctl.write("net/ipv4/tcp_tw_reuse", 1)
        sysctl.write_if_present("net/ipv4/tcp_tw_reuse_delay", 1)
        _quiet_ipv6("default")
        with Links() as links:
            links.add_veth(
                INSIDE, addressing.mac_inside(slot), sandbox.name, addressing.mac_outside(slot),
                host, self.uplink.mtu,
            )  # fmt: skip
            index = links.index(INSIDE)
            links.up(links.index("lo"))
            # up before its addresses: routes need a link that is up; the far end is still down
            links.up(index, silent=True)
            for address, gateway in self._addresses(sandbox):
                links.add_address(index, address)
                links.add_neighbour(index, gateway, addressing.mac_outside(slot))
                links.add_route(index, gateway)
                links.add_route(index, gateway, default=True)

    def _wire_outside(self, sandbox: Sandbox) -> int:
        slot = sandbox.slot
        index = self._links.index(sandbox.name)
        if not index:
            raise KernelError(f"finding interface {sandbox.name}", "it is gone; retry")
        self._datapath.attach(self._links.netlink, index, slot)
        _quiet_ipv6(sandbox.name)
        self._allow_stub(sandbox.name)
        self._links.up(index, silent=True)
        for address, gateway in self._addresses(sandbox):
            self._links.add_address(index, gateway)
            self._links.add_neighbour(index, address, addressing.mac_inside(slot))
            self._links.add_route(index, address)
        return index

    def _addresses(self, sandbox: Sandbox) -> list[tuple[Address, Address]]:
        """Return (sandbox's address, gateway) of each family that the sandbox has."""
        pairs: list[tuple[Address | None, Address]] = [
            (sandbox.ipv4, self._numbers.gateway4),
            (sandbox.ipv6, self._numbers.gateway6),
        ]
        return [(address, gateway) for address, gateway in pairs if address is not None]

    def tear_down(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Forget connections, delete the links in one go, then the names.

        In this order: see netavark #1482.
        """
        problems: list[LarkError] = []
        addresses = {a for s in sandboxes for a in (s.ipv4, s.ipv6) if a is not None}
        try:
            conntrack.forget(addresses)
        except LarkError as error:
            problems.append(error)
        try:
            # a socket of its own: this may run beside the thread that builds
            with Links() as links:
                indices = [index for s in sandboxes if (index := links.index(s.name))]
                links.delete(indices, CONDEMNED_GROUP)
            for index in indices:
                self._datapath.unbind(index)
        except LarkError as error:
            problems.append(error)
        for sandbox in sandboxes:
            namespaces.delete(sandbox.name)
        return problems

    def _ports(self) -> tuple[int, int]:
        return self._numbers.block(0)[0], self._numbers.block(self._numbers.slots - 1)[1]

    def _reserve_ports(self) -> None:
        """Keep a program of the worker which asks for any port from getting one of a job's."""
        reserved = sysctl.read("net/ipv4/ip_local_reserved_ports")
        ours = "{}-{}".format(*self._ports())
        if ours not in reserved.split(","):
            sysctl.write(
                "net/ipv4/ip_local_reserved_ports", ",".join(filter(None, [reserved, ours]))
            )


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
