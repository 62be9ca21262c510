"""One job in one sandbox, as long as it lasts: the record, the plan, and whose processes it is for.

Usually there is one process, which the batch system started through the wrapper. Where the launch
has a key (`lark_agent.hooks.launch`) others join. A job that was only announced has none yet: the
batch system's own process holds its place.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Self

from lark_agent.accounting.journal import Launch, Process
from lark_agent.agent.enforcing import is_counted
from lark_agent.linux import process
from lark_agent.model import ExitReason, Usage
from lark_agent.sandbox.holding import Holding

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from lark_agent.agent.clock import Clock
    from lark_agent.model import NetworkPlan, Record
    from lark_agent.sandbox.connectivity import Sandbox


@dataclass(slots=True, eq=False)
class Member:
    """A process of a job, or one that stands for it."""

    process: Process
    pidfd: int
    """-1 if it was gone when the agent came back."""
    alive: bool = True

    @classmethod
    def of(cls, pid: int, pidfd: int) -> Self:
        """Return a running process."""
        return cls(Process(pid, process.start_time(pid), boot_id()), pidfd)


@dataclass(slots=True, eq=False)
class Attachment:
    """One job in its sandbox; `record` is replaced by every sample."""

    record: Record
    sandbox: Sandbox
    plan: NetworkPlan
    members: list[Member]
    """Its processes, the first one first; none while it waits for a job that was announced."""
    clock: Clock
    key: str = ""
    """What its processes share; empty: there is only one."""
    holder: Member | None = None
    """The batch system's process that announced the job."""
    steps: bool = False
    """Others may come after the last process has ended."""
    launcher: frozenset[int] = frozenset()
    """As in `Holding`."""
    beside: tuple[IPv4Address, int] | None = None
    """As in `Holding`."""
    moved_before: Usage = field(default_factory=Usage)
    """As in `Launch`."""
    has_its_share: bool = False
    """What its starter moves from now on is a later attachment's (`lark_agent.agent.transfers`)."""
    status: int | None = None
    """Wait status of the first process, once it is known."""
    ending: bool = False
    """No process can join any more."""
    timer: asyncio.TimerHandle | None = None
    not_started: int | None = None
    """Exit status of a wrapper that could not start the job."""
    outcome_known: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the wrapper's conversation with the gate is over."""
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when `record` is the final one."""

    @property
    def main(self) -> Member:
        """The job's first process; what holds its place until that is there."""
        return self.everyone[0]

    @property
    def runs(self) -> bool:
        """Tell whether any of its processes does."""
        return any(member.alive for member in self.members)

    @property
    def watched(self) -> list[Member]:
        """Return whose end is awaited."""
        return [m for m in self.everyone if m.alive and m.pidfd >= 0]

    @property
    def everyone(self) -> list[Member]:
        """Return its processes and what holds its place."""
        return [*self.members, *([self.holder] if self.holder else [])]

    @property
    def counted(self) -> bool:
        """Tell whether there is anything to count."""
        return is_counted(self.sandbox.connectivity)

    @property
    def launch(self) -> Launch:
        """What has to be remembered of its processes."""
        members = [m.process for n, m in enumerate(self.members) if n == 0 or m.alive]
        holder = self.holder.process if self.holder else None
        return Launch(self.key, holder, tuple(members), self.steps, self.moved_before)

    @property
    def holding(self) -> Holding:
        """What enforces its plan sees of it."""
        return self.seen_as(self.main)

    def seen_as(self, member: Member) -> Holding:
        """Return the same for one of its processes."""
        record, pid = self.record, member.process.pid
        return Holding(
            record.attachment_id, self.sandbox, record.job, self.plan, pid, member.pidfd,
            self.launcher, self.beside,
        )  # fmt: skip

    def exit(self, status: int | None) -> tuple[ExitReason, int]:
        """Say how the job ended, by the wait status of its first process."""
        if self.not_started is not None:
            return ExitReason.NOT_STARTED, self.not_started
        if not self.members:
            return ExitReason.NOT_STARTED, 0
        if status is None:
            return ExitReason.ENDED, 0
        if os.WIFSIGNALED(status):
            return ExitReason.SIGNALED, os.WTERMSIG(status)
        return ExitReason.EXITED, os.WEXITSTATUS(status)


@cache
def boot_id() -> str:
    """Return the kernel's random name of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123  one line
        return file.read().strip()
