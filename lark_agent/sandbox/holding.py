"""One job in one sandbox, as the parts that enforce a plan see it.

What a plan says is put in force by several parts, each with its own kernel objects: the datapath's
slot plan, queues, quotas, openings in the firewall. Each is an `Enforcement`; the agent asks all
that a plan concerns, in order, and undoes what was done if one refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from lark_agent.datapath import SlotPlan
    from lark_agent.model import Job, NetworkPlan
    from lark_agent.sandbox.connectivity import Sandbox


@dataclass(frozen=True, slots=True)
class Holding:
    """An attachment while it lives; a changed plan makes a new one with the same id."""

    attachment_id: str
    sandbox: Sandbox
    job: Job
    plan: NetworkPlan
    pid: int
    """The job's main process."""
    pidfd: int = -1
    """The same, which cannot become another's; -1 if it was gone when the agent came back."""
    launcher: frozenset[int] = frozenset()
    """TCP ports of the worker's loopback where what started the job listens for it alone."""
    beside: tuple[IPv4Address, int] | None = None
    """Instead: an address and TCP port of the worker that it may reach besides services."""


class Enforcement(Protocol):
    """One part of what puts plans in force. Belongs to the agent's kernel thread."""

    def concerns(self, holding: Holding) -> bool:
        """Tell whether a job's plan asks anything of this part; others cost nothing."""
        ...

    def begin(self, holding: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """Put a plan in force before the job may start, and add to what the datapath is told.

        Raises LarkError, Refused if the job cannot have it, and leaves nothing then.
        """
        ...

    def change(self, before: Holding, after: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """Put a changed plan in force while the job runs, as `begin`; keeps all on any error."""
        ...

    def adopt(self, holding: Holding) -> None:
        """Take over what an earlier agent put in force, and repair it. Raises LarkError."""
        ...

    def end(self, holding: Holding) -> None:
        """Take everything back, after the last reading. Repeatable; raises LarkError."""
        ...
