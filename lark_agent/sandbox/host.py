"""Connectivity `host`: no sandbox. The job stays in the worker's network and is told by its group.

For each job a control group is made below the one that its batch system gave it, so that limits,
accounting and killing of the batch system go on to include it; the job's main process is moved
there before it may start, and all its descendants are born there. Two programs on the group count,
and hold the job to the classes and quotas of its plan (lark_agent/datapath/host.bpf.c). The group
is root's, so the job cannot leave it, unless somebody else than root may move processes in a group
around it (delegation). There a plan that forbids nothing is counted all the same; one that forbids
something is refused, for the job could step out of it.

Not enforced, because the job has no link and no address of its own: rates, marks, peers, what may
come in, services of the worker. A plan that asks for one of these is refused.

Life of a group::

    begin     remembered in <run>/cgroups, made, programs attached, the job moved into it
    Left      the end of the job: what its processes and sockets have left is seen and aborted
    end       its name is taken out of the programs' map: nothing passes; removed when empty

Processes that outlive the job are the batch system's to kill. Until then the group stays, closed,
and is looked at again with every job that begins or ends, and by the next agent.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from lark_agent import trouble
from lark_agent.datapath import host
from lark_agent.errors import KernelError, LarkError, PolicyRefusal, PrerequisiteError, Unavailable
from lark_agent.linux import cgroups, process, sockets
from lark_agent.linux.sockets import Remains
from lark_agent.model import Connectivity, Family, alike_but_for_reach
from lark_agent.policy.vocabulary import UnusableValue, check_unsandboxed
from lark_agent.sandbox.connectivity import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lark_agent.datapath import SlotPlan
    from lark_agent.model import NetworkPlan
    from lark_agent.sandbox.holding import Holding

_NAME = re.compile(r"lark-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
log = structlog.get_logger(__name__)


class HostDriver:
    """There is nothing to build."""

    def check(self) -> None:
        """Accept every machine: one without control groups of version 2 is found at the job."""

    def renew(self, sandbox: Sandbox) -> None:
        """Do nothing: `HostJobs.adopt` takes over."""

    def set_up(self, slot: int) -> Sandbox:
        """Return the slot's counters as a sandbox."""
        return Sandbox(slot, Connectivity.HOST)

    def fit(self, sandbox: Sandbox) -> bool:  # noqa: ARG002  of the protocol
        """Nothing wears off."""
        return True

    def tear_down(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Do nothing: the group ends with `HostJobs.end`."""
        del sandboxes
        return []


class HostJobs:
    """All jobs without a sandbox; an `Enforcement`. Belongs to the kernel thread.

    The programs are loaded for the first such job: most workers never have one.
    """

    def __init__(
        self, bpffs: Path, slots: int, run_directory: Path, throttles: Callable[[str], bool]
    ) -> None:
        """`throttles` tells of a quota's name whether it lowers rates, which nothing does here."""
        self._bpffs = bpffs
        self._slots = slots
        self._remembered = run_directory / "cgroups"
        self._throttles = throttles
        self._living: dict[str, int] = {}
        """Attachment id → number of its group; 0 before it has one."""
        self._programs: host.HostPrograms | None = None

    def close(self) -> None:
        """Close what is open; jobs that run stay counted and held."""
        if self._programs is not None:
            self._programs.close()

    def concerns(self, holding: Holding) -> bool:
        """Tell whether a plan is for a job without a sandbox."""
        return holding.plan.connectivity is Connectivity.HOST

    def begin(self, holding: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """Move the job into a group of its own. Raises Refused, and leaves nothing then."""
        self._check_enforceable(holding.plan)
        try:
            root = cgroups.mount()
            programs = self._loaded()
        except (PrerequisiteError, KernelError) as error:
            raise Unavailable(f"this worker cannot count jobs by control group: {error}") from error
        around = cgroups.of(holding.pid)
        if not around:
            raise Unavailable(
                "the job's control group is not one that the agent sees (another cgroup namespace)"
            )
        group = root / around.lstrip("/") / f"lark-{holding.attachment_id}"
        _check_confined(holding.plan, group, root)
        self._remember(holding.attachment_id, group)
        try:
            group.mkdir(mode=0o755)
            self._living[holding.attachment_id] = programs.bind(group, holding.sandbox.slot)
            _move(holding, group)
        except (LarkError, OSError) as error:
            self.end(holding)
            raise Unavailable(f"cannot hold the job in control group {group}: {error}") from error
        return _for_families(holding.plan, slot_plan)

    def join(self, holding: Holding) -> None:
        """Move one more process of the job into its group. Raises LarkError."""
        group = self._group(holding.attachment_id)
        if group is None:
            raise Unavailable("the job's control group is gone")
        _move(holding, group)

    def change(self, before: Holding, after: Holding, slot_plan: SlotPlan) -> SlotPlan:
        """Check that a changed plan can be held, too."""
        if not alike_but_for_reach(before.plan, after.plan):
            self._check_enforceable(after.plan)
        group = self._group(after.attachment_id)
        if group is not None:
            _check_confined(after.plan, group, cgroups.mount())
        return _for_families(after.plan, slot_plan)

    def adopt(self, holding: Holding) -> None:
        """Put this agent's programs on the group of a job that it found."""
        group = self._group(holding.attachment_id)
        if group is None and holding.pidfd < 0:
            return  # it ended meanwhile, and the batch system has removed its group
        if group is None:
            raise KernelError(
                f"finding the control group of {holding.attachment_id}",
                "it is gone",
                "if the job runs on, its traffic is not counted any more",
            )
        number = self._loaded().bind(group, holding.sandbox.slot)
        self._living[holding.attachment_id] = number

    def end(self, holding: Holding) -> None:
        """Let nothing pass any more; remove the group if it is empty."""
        if number := self._living.pop(holding.attachment_id, 0):
            self._loaded().unbind(number)
        self.sweep()

    def sweep(self) -> None:
        """Remove the groups of ended jobs that have become empty."""
        for name in self._names() - self._living.keys():
            group = self._group(name)
            if group is None or cgroups.remove(group):
                (self._remembered / name).unlink(missing_ok=True)

    def close_leftovers(self) -> None:
        """After the last `adopt`: let nothing pass for the groups of jobs that nobody knows."""
        for name in self._names() - self._living.keys():
            try:
                if (group := self._group(name)) is not None:
                    self._loaded().attach(group)
            except LarkError as error:
                trouble.met("close a control group")
                log.error("cannot close a control group", group=str(group), error=str(error))
        self.sweep()

    def left(self, attachment_id: str) -> Left:
        """Return what looks at a job's remains."""
        return Left(self._group(attachment_id))

    def _loaded(self) -> host.HostPrograms:
        if self._programs is None:
            self._programs = host.load(self._bpffs, self._slots)
        return self._programs

    def _check_enforceable(self, plan: NetworkPlan) -> None:
        """Raise PolicyRefusal for what nothing enforces without a sandbox.

        The policy has asked the same; a job may still have asked for more since.
        """
        try:
            check_unsandboxed(plan, self._throttles)
        except UnusableValue as error:
            raise PolicyRefusal(f"profile {plan.profile}: {error}") from error

    def _remember(self, name: str, group: Path) -> None:
        self._remembered.mkdir(mode=0o700, exist_ok=True)
        (self._remembered / name).write_text(str(group), encoding="utf-8")
        self._living[name] = 0

    def _names(self) -> set[str]:
        if not self._remembered.exists():
            return set()
        return {file.name for file in self._remembered.iterdir()}

    def _group(self, name: str) -> Path | None:
        """Return the group of an attachment, None if there is none any more."""
        try:
            group = Path((self._remembered / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return group if group.is_dir() else None


@dataclass(frozen=True, slots=True)
class Left:
    """What a job without a sandbox has left behind."""

    group: Path | None

    def abort(self) -> Remains:
        """Abort the sockets that processes of the job's group have; see `sockets.abort`."""
        if self.group is None:
            return Remains(0, 0)
        groups = [self.group, *cgroups.below(self.group)]
        try:
            return sockets.abort({cgroups.identity(group) for group in groups})
        except KernelError:
            if self.group.exists():
                raise
            return Remains(0, 0)

    def silence(self) -> None:
        """Do nothing: other jobs use the same routes. The end of the plan silences the group."""


def is_held(pid: int) -> bool:
    """Tell whether a process is in the group of a job without a sandbox."""
    return any(_NAME.fullmatch(part) for part in cgroups.of(pid).split("/"))


def _move(holding: Holding, group: Path) -> None:
    """Move the job's main process; a number that was given to another process goes back."""
    cgroups.move(holding.pid, group)
    if process.alive(holding.pidfd):  # so the number has been its all the time
        return
    for stranger in cgroups.processes(group):
        with contextlib.suppress(KernelError):  # gone, too
            cgroups.move(stranger, group.parent)
    raise Unavailable("the process that asked is gone")


def _check_confined(plan: NetworkPlan, group: Path, root: Path) -> None:
    """Raise Unavailable if the plan forbids something and the job could leave its group."""
    around = cgroups.others_who_may_move(group, root)
    if around is None:
        return
    if plan.reach is not None or plan.cut or plan.quotas or plan.ip is not Family.ANY:
        raise Unavailable(
            f"profile {plan.profile} forbids something, and the job could move out of its control "
            f"group, since not only root may move processes in {around}; the batch system must not "
            "delegate that group, or another connectivity be chosen"
        )
    log.warning("a job can leave its control group", group=str(group), delegated=str(around))


def _for_families(plan: NetworkPlan, slot_plan: SlotPlan) -> SlotPlan:
    return replace(
        slot_plan,
        addr4=None if plan.ip is Family.IPV6 else host.THIS4,
        addr6=None if plan.ip is Family.IPV4 else host.THIS6,
    )
