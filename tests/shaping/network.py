"""Three jobs of one worker that share its uplink, and a far host; bulk traffic between them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

from lark_agent.datapath import SlotPlan
from lark_agent.model import Connectivity, Direction, Inbound, Job, NetworkPlan, Scheduler
from lark_agent.sandbox.connectivity import Sandbox
from lark_agent.sandbox.holding import Holding
from tests.datapath.network import FAR4, Network, Side, sh, total

if TYPE_CHECKING:
    from collections.abc import Iterator
    from socket import socket as Socket  # noqa: N812  as in tests.datapath.network

    from lark_agent.datapath import Datapath
    from lark_agent.shaping.shaping import Shaping

JOB = Job(Scheduler.PLAIN, "1", "alice", 1000)
PLAN = NetworkPlan("test", Connectivity.NAT)


class Seat:
    """One sandbox with a job in it, in the slot of its address."""

    def __init__(self, network: Network, slot: int) -> None:
        self.network, self.slot, self.side = network, slot, Side(f"lark{slot}")
        self.address = f"100.98.0.{slot + 2}"
        mac, host = f"02:6c:6b:00:00:{slot:02x}", f"02:6c:6b:ff:00:{slot:02x}"
        name, gateway = self.side.name, "100.98.0.1"
        for line in (
            f"ip netns add {name}",
            f"ip link add {name} address {host} type veth peer name eth0 netns {name}",
            f"ip -n {name} link set eth0 address {mac} multicast off up",
            f"ip -n {name} link set lo up",
            f"ip -n {name} addr add {self.address}/32 dev eth0",
            f"ip -n {name} neigh replace {gateway} lladdr {host} dev eth0 nud permanent",
            f"ip -n {name} route add {gateway}/32 dev eth0",
            f"ip -n {name} route add default via {gateway} dev eth0 src {self.address}",
            f"ip link set {name} up",
            f"ip route add {self.address}/32 dev {name}",
            f"ip neigh replace {self.address} lladdr {mac} dev {name} nud permanent",
        ):
            sh(line)
        self.interface = socket.if_nametoindex(name)
        self._slot_plan = SlotPlan(
            IPv4Address(self.address), None, bytes.fromhex(mac.replace(":", "")),
            inbound=Inbound.ALL,
        )  # fmt: skip
        with IPRoute() as netlink:
            network.datapath.attach(netlink, self.interface, slot)

    def holding(self, plan: NetworkPlan) -> Holding:
        sandbox = Sandbox(
            self.slot, Connectivity.NAT, IPv4Address(self.address), interface=self.interface
        )
        return Holding(f"job-{self.slot}", sandbox, JOB, plan, 1)

    def begin(self, shaping: Shaping, **settings: object) -> Holding:
        holding = self.holding(replace(PLAN, **settings))  # type: ignore[arg-type]  # fields by name
        plan = (
            shaping.begin(holding, self._slot_plan)
            if shaping.concerns(holding)
            else self._slot_plan
        )
        self.datapath.activate(self.slot, plan)
        return holding

    def change(self, shaping: Shaping, before: Holding, **settings: object) -> Holding:
        after = self.holding(replace(before.plan, **settings))  # type: ignore[arg-type]  # as above
        self.datapath.activate(self.slot, shaping.change(before, after, self._slot_plan))
        return after

    @property
    def datapath(self) -> Datapath:
        return self.network.datapath

    def moved(self, direction: Direction) -> int:
        """IP bytes that the datapath has counted."""
        return total(self.datapath.read([self.slot])[self.slot], direction).bytes

    @contextlib.contextmanager
    def bulk(self, direction: Direction) -> Iterator[Socket]:
        """Send or receive over TCP as fast as it goes, in the background; gives the sender."""
        far, own = (self.network.far, FAR4), (self.side, self.address)
        sender, receiver = (own, far) if direction is Direction.SENT else (far, own)
        with receiver[0].socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((receiver[1], 0))
            listener.listen()
            sending = sender[0].socket(socket.AF_INET, socket.SOCK_STREAM)
            sending.connect(listener.getsockname())
            receiving, _ = listener.accept()
        threads = [
            threading.Thread(target=_send, args=(sending,)),
            threading.Thread(target=_receive, args=(receiving,)),
        ]
        for thread in threads:
            thread.start()
        try:
            yield sending
        finally:
            for end in (sending, receiving):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            sending.close()
            receiving.close()


def rates_of(seats: list[Seat], direction: Direction, seconds: float) -> list[float]:
    """Return what each job moves, in bit/s of IP packets, once the first second is over."""
    time.sleep(1)
    began, before = time.monotonic(), [seat.moved(direction) for seat in seats]
    time.sleep(seconds)
    elapsed = time.monotonic() - began
    return [8 * (s.moved(direction) - b) / elapsed for s, b in zip(seats, before, strict=True)]


def _send(sending: Socket) -> None:
    block = bytes(1 << 16)
    with contextlib.suppress(OSError):
        while True:
            sending.send(block)


def _receive(receiving: Socket) -> None:
    with contextlib.suppress(OSError):
        while receiving.recv(1 << 18):
            pass
