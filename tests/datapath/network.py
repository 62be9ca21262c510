"""The smallest network that has a job in it: sandbox — host — far, three namespaces, two veths.

The job's veth has GSO, TSO and GRO on, as in production. The far side has them off on both ends,
so that a capture at the far side sees what is on the wire; frames that come from there are merged
by GRO on the host before they reach the job, as a network card would do.

Sockets keep the namespace they were made in, so tests make them in a thread that enters it
(`Side.socket`) and then use them like any other.
"""

from __future__ import annotations

import json
import socket
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from socket import socket as Socket  # noqa: N812  a method below has its name
from typing import TYPE_CHECKING, TypeVar

from pyroute2 import IPRoute

from lark_agent.datapath import Counters, Datapath, SlotPlan
from lark_agent.linux import libc, namespaces
from lark_agent.model import MAX_CLASSES, Count, Direction, DropReason

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

SLOT = 3
INSIDE = 0x40000003
"""Index of the sandbox's own device: unique on the worker, so that it can have hooks as well."""
BPFFS = Path("/sys/fs/bpf/lark")
JOB4, JOB6 = "100.98.0.5", "fd6c:6172:6b00::5"
GATEWAY4, GATEWAY6 = "100.98.0.1", "fd6c:6172:6b00::1"
PEERS = (IPv4Network("100.98.0.0/16"), IPv6Network("fd6c:6172:6b00::/64"))
GATEWAYS = (IPv4Address(GATEWAY4), IPv6Address(GATEWAY6))
JOB_MAC, HOST_MAC = bytes.fromhex("026c6b000003"), bytes.fromhex("026c6bff0003")
FAR4, FAR6 = "198.51.100.2", "2001:db8::2"
HOST4, HOST6 = "198.51.100.1", "2001:db8::1"
PLAN = SlotPlan(IPv4Address(JOB4), IPv6Address(JOB6), JOB_MAC)

_BUILD = f"""
ip netns add sandbox
ip netns add far
sysctl -qw net.ipv6.conf.default.accept_dad=0
ip netns exec far sysctl -qw net.ipv6.conf.default.accept_dad=0
ip link add lark3 index 1003 type veth peer name eth0 index {INSIDE} netns sandbox
ip link set lark3 address {HOST_MAC.hex(":")}
ip -n sandbox link set eth0 address {JOB_MAC.hex(":")}
ip link add far0 type veth peer name eth0 netns far
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
sysctl -qw net.ipv6.conf.lark3.addr_gen_mode=1
ip netns exec sandbox sysctl -qw net.ipv6.conf.eth0.addr_gen_mode=1
ip netns exec sandbox sysctl -qw net.ipv6.conf.eth0.router_solicitations=0
ip addr add {GATEWAY4}/32 dev lark3
ip addr add {GATEWAY6}/128 dev lark3 nodad
ip addr add {HOST4}/24 dev far0
ip addr add {HOST6}/64 dev far0 nodad
ip -n sandbox addr add {JOB4}/32 dev eth0
ip -n sandbox addr add {JOB6}/128 dev eth0 nodad
ip -n far addr add {FAR4}/24 dev eth0
ip -n far addr add {FAR6}/64 dev eth0 nodad
ip -n sandbox link set lo up
ip -n sandbox link set eth0 multicast off up
ip -n far link set lo up
ip -n far link set eth0 up
ip link set far0 up
ip -n sandbox neigh replace {GATEWAY4} lladdr {HOST_MAC.hex(":")} dev eth0 nud permanent
ip -n sandbox neigh replace {GATEWAY6} lladdr {HOST_MAC.hex(":")} dev eth0 nud permanent
ip -n sandbox route add {GATEWAY4}/32 dev eth0
ip -n sandbox route add default via {GATEWAY4} dev eth0 src {JOB4}
ip -n sandbox route add {GATEWAY6}/128 dev eth0
ip -n sandbox route add default via {GATEWAY6} dev eth0 src {JOB6}
ip -n far route add {PEERS[0]} via {HOST4}
ip -n far route add {PEERS[1]} via {HOST6}
ip netns exec far ethtool -K eth0 tso off gso off gro off tx-udp-segmentation off
ethtool -K far0 tso off gso off gro on tx-udp-segmentation off
ethtool -K lark3 gro on
ip netns exec sandbox ethtool -K eth0 gro on
"""
_LINK_UP = f"""
ip link set lark3 up
ip route add {JOB4}/32 dev lark3
ip -6 route add {JOB6}/128 dev lark3
ip neigh replace {JOB4} lladdr {JOB_MAC.hex(":")} dev lark3 nud permanent
ip neigh replace {JOB6} lladdr {JOB_MAC.hex(":")} dev lark3 nud permanent
"""


@dataclass(frozen=True)
class Side:
    """One end of the network."""

    name: str

    @property
    def netns(self) -> Path:
        return Path("/run/netns") / self.name

    def inside(self, work: Callable[[], Result]) -> Result:
        """Run something in a thread that has entered the namespace."""

        def entered() -> Result:
            with self.netns.open("rb") as namespace:
                libc.set_network(namespace.fileno())
            return work()

        return namespaces.in_thread(entered)

    def socket(self, family: int, kind: int, protocol: int = 0) -> Socket:
        made = self.inside(lambda: socket.socket(family, kind, protocol))
        made.settimeout(60)
        return made

    def wire(self) -> Socket:
        """Return a socket that sends and sees whole frames on eth0."""
        made = self.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        made.bind(("eth0", 0x0003))
        return made

    def links(self) -> str:
        return sh(f"ip -n {self.name} -j -s link")

    def run(self, *command: str) -> str:
        return sh(f"ip netns exec {self.name}", *command)


class Network:
    """The three namespaces with the datapath on the job's veth, in slot 3, plan active."""

    sandbox, far = Side("sandbox"), Side("far")

    def __init__(self, datapath: Datapath) -> None:
        for line in _BUILD.strip().splitlines():
            sh(line)
        self.ifindex = socket.if_nametoindex("lark3")
        self.use(datapath)
        for line in _LINK_UP.strip().splitlines():
            sh(line)

    def use(self, datapath: Datapath) -> None:
        """Attach a datapath and zero the counters."""
        self.datapath = datapath
        datapath.set_classes({}, PEERS, GATEWAYS)
        with IPRoute() as netlink:
            datapath.attach(netlink, self.ifindex, SLOT)
        datapath.deactivate(SLOT)
        datapath.reset(SLOT)
        datapath.activate(SLOT, PLAN)

    @property
    def counters(self) -> Counters:
        return self.datapath.read([SLOT])[SLOT]

    @property
    def sent(self) -> Count:
        return total(self.counters, Direction.SENT)

    @property
    def received(self) -> Count:
        return total(self.counters, Direction.RECEIVED)

    @property
    def lost(self) -> int:
        """Packets that found no room in a veth (received ones are dropped for other reasons)."""
        listed = [
            *json.loads(sh("ip -j -s link")),
            *(link for side in (self.sandbox, self.far) for link in json.loads(side.links())),
        ]
        return sum(link["stats64"]["tx"]["dropped"] for link in listed)

    @property
    def drops(self) -> dict[DropReason, Count]:
        counters = self.counters
        return {r: c for r in DropReason if (c := counters.dropped_for(r))}


def total(counters: Counters, direction: Direction) -> Count:
    """Sum all classes."""
    return sum((counters.used_by(n, direction) for n in range(MAX_CLASSES)), Count())


def sh(*words: str) -> str:
    """Run a command; its words must not contain blanks where they are not meant to separate."""
    command = " ".join(words).split()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}{done.stdout}")
    return done.stdout
