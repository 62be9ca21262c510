"""The seam between the pool and the kinds of connectivity.

A driver wires one sandbox: `check` finds out before the first whether this machine can; `set_up`
builds one for a slot and undoes its own work if it fails; `renew` takes one over that an earlier
agent built; `fit` looks once more before a job gets it; `tear_down` dismantles a batch, may be
repeated, works when half is already gone, and returns what went wrong instead of stopping at it.
What all sandboxes of a kind share is the driver's own affair.

A kind is a connectivity, and where there are several networks of one, which of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from lark_agent.model import Connectivity
from lark_agent.sandbox import addressing

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from lark_agent.errors import LarkError
    from lark_agent.model import NetworkPlan


class Kind(NamedTuple):
    """What sandboxes have in common that can stand in for each other."""

    connectivity: Connectivity
    network: str = ""
    """Name of the site's network ([networks.NAME]); empty where there is but one."""

    @classmethod
    def of(cls, plan: NetworkPlan, launcher: Collection[int] = ()) -> Kind:
        """Return what a plan needs; `launcher` are ports of the worker that the job has besides.

        One that has nothing but services of the worker needs a link to it: that of `nat`, on which
        the datapath lets nothing else pass.
        """
        if plan.connectivity is Connectivity.NONE and (plan.services or launcher):
            return cls(Connectivity.NAT)
        return cls(plan.connectivity, plan.network)

    def __str__(self) -> str:
        return f"{self.connectivity} {self.network}".rstrip()


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A network namespace that waits for a job or holds one."""

    slot: int
    connectivity: Connectivity
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    interface: int = 0
    """Index of the interface that the datapath hangs on, 0 if there is none."""
    first_port: int = 0
    last_port: int = 0
    network: str = ""
    """As in `Kind`."""
    mac: str = ""
    """Link-layer address where it is not the slot's own: on a network of the site."""
    inside: bool = False
    """`interface` is the sandbox's own, in its namespace; else it is the host's end."""
    local4: IPv4Address | None = None
    """Instead of `ipv4`: an address for the worker's own services and nothing else."""
    own_resolvers: bool = False
    """It has a resolv.conf of its own (`lark_agent.sandbox.resolver.own_file`)."""

    @property
    def name(self) -> str:
        """Name of the namespace."""
        return addressing.name(self.slot)

    @property
    def kind(self) -> Kind:
        """What kind of sandbox it is."""
        return Kind(self.connectivity, self.network)


@runtime_checkable
class Movable(Protocol):
    """A kind whose sandboxes can be in a namespace that the job made (`lark_agent.sandbox.own`)."""

    def hand_over(self, sandbox: Sandbox, namespace: int) -> None:
        """Let `namespace` be the sandbox's: its link moves there. Raises LarkError.

        After an error the sandbox is good for nothing but to be torn down.
        """
        ...


class Dismantler(Protocol):
    """What takes sandboxes apart."""

    def tear_down(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Dismantle; returns what went wrong."""
        ...


class Driver(Dismantler, Protocol):
    """One kind of connectivity."""

    def check(self) -> None:
        """Find out whether this machine can; raises LarkError with what to do about it."""
        ...

    def set_up(self, slot: int) -> Sandbox:
        """Build the sandbox of a slot; raises LarkError and leaves nothing if that fails."""
        ...

    def renew(self, sandbox: Sandbox) -> None:
        """Take over a sandbox of an earlier agent whose job runs on. Raises LarkError."""
        ...

    def fit(self, sandbox: Sandbox) -> bool:
        """Tell whether an idle sandbox is still what a job may be given."""
        ...
