"""What an agent finds when it starts: attachments of an earlier run, and leftovers.

The kernel went on counting and checking without the agent: programs, maps and namespaces are
pinned. What is to be done follows from `lark_agent.agent.reconcile`; this module does it:

* an attachment that cannot get any more totals is closed with its last durable ones (`truncated`),
  before anything else, so that nothing that comes after can make its totals less;
* every other one is adopted; one whose processes ended meanwhile is finished by
  `Attachments.adopt` with the kernel's totals (`agent-absent`);
* plans that no attachment has are switched off once the datapath is open, and what else carries our
  names is dismantled.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import structlog

from lark_agent import crash
from lark_agent.agent import observing
from lark_agent.agent.attachment import Attachment, Member
from lark_agent.agent.clock import Clock
from lark_agent.agent.reconcile import Books, Dismantle, Silence, Truncate, repairs
from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.linux import files, process
from lark_agent.linux.links import Links
from lark_agent.model import LAYER2, Connectivity, ExitReason
from lark_agent.sandbox import addressing, networks
from lark_agent.sandbox.connectivity import Sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from lark_agent.accounting.journal import Journal, Living, Process
    from lark_agent.agent.reconcile import Why
    from lark_agent.model import Record
    from lark_agent.sandbox.addressing import Addressing

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What to do with what was found."""

    adopted: tuple[Attachment, ...]
    leftovers: tuple[Sandbox, ...]
    silenced: frozenset[int]
    """Slots whose plan is of a job that the journal does not know."""


def recover(journal: Journal, numbers: Addressing, numbering: Path, bpffs: Path) -> Found:
    """Sort out the past; closes what can get no more totals.

    `numbering` is the file that remembers the arithmetic of the earlier run. Raises
    PrerequisiteError if jobs still run with another one.
    """
    open_ones = {living.record.attachment_id: living for living in journal.living()}
    books = Books(frozenset(map(observing.known, open_ones.values())))
    todo = repairs(observing.kernel(bpffs, open_ones.values()), books)
    for repair in todo:
        if isinstance(repair, Truncate):
            truncate(journal, open_ones.pop(repair.attachment_id).record, repair.why)
            crash.here("recovery.truncated")
    adopted = [_adopt(living, numbers) for living in open_ones.values()]
    known = numbering.read_text(encoding="utf-8") if numbering.exists() else repr(numbers)
    if adopted and (known != repr(numbers) or any(_moved(one, numbers) for one in adopted)):
        _close(adopted)
        raise PrerequisiteError(
            f"{len(adopted)} jobs still run with other addresses or NAT ports than now configured; "
            "restore [addresses], [nat] and [pool] slots until they have ended"
        )
    # whole or not at all: half of it would be another arithmetic
    files.write_whole(numbering, repr(numbers))
    crash.here("recovery.numbered")
    slots = [repair.slot for repair in todo if isinstance(repair, Dismantle)]
    return Found(
        tuple(adopted),
        tuple(leftover(slot, numbers) for slot in slots),
        frozenset(repair.slot for repair in todo if isinstance(repair, Silence)),
    )


def truncate(journal: Journal, record: Record, why: Why) -> None:
    """Make the last durable totals of an attachment its final ones. Raises StoreError."""
    final = replace(
        record.sampled(record.usage, record.sampled_ns),
        ended_ns=record.sampled_ns, final=True, exit_reason=ExitReason.TRUNCATED,
    )  # fmt: skip
    journal.save([final])
    log.warning(
        "closed with its last durable totals", attachment=record.attachment_id,
        job=record.job.job_id, why=str(why),
    )  # fmt: skip


def leftover(slot: int, numbers: Addressing) -> Sandbox:
    """Return what dismantles a slot that nobody has, of whatever kind it was.

    What the worker routes has the same parts as what it translates, and all of a slot's addresses
    go.
    """
    return networks.found_on_network(slot) or _nat_sandbox(slot, numbers)


def _adopt(living: Living, numbers: Addressing) -> Attachment:
    record, launch = living.record, living.launch
    members = [_find(known) for known in launch.members]
    attachment = Attachment(
        record, _sandbox_of(record, numbers), living.plan, members,
        Clock.at(max(time.time_ns(), record.sampled_ns)), launch.key,
        _find(launch.holder) if launch.holder else None, launch.steps,
        moved_before=launch.moved_before,
    )  # fmt: skip
    attachment.outcome_known.set()
    log.info(
        "found attachment", attachment=record.attachment_id, slot=record.slot,
        running=attachment.runs, processes=len(members),
    )  # fmt: skip
    return attachment


def _find(known: Process) -> Member:
    """Return a process that is what it was, or the fact that it is gone."""
    pidfd = -1
    if process.start_time(known.pid) == known.start_time:
        try:
            pidfd = process.open_pid(known.pid)
        except KernelError:
            pidfd = -1
        if pidfd >= 0 and process.start_time(known.pid) != known.start_time:
            os.close(pidfd)  # the number was given to another process just now
            pidfd = -1
    return Member(known, pidfd, alive=pidfd >= 0)


def _sandbox_of(record: Record, numbers: Addressing) -> Sandbox:
    if record.connectivity == Connectivity.NONE and not record.first_port:
        return Sandbox(record.slot, record.connectivity)
    if record.connectivity in {Connectivity.NAT, Connectivity.NONE}:  # none: for services only
        return _nat_sandbox(record.slot, numbers)
    without_ipv4 = record.connectivity == Connectivity.ROUTED and not record.ipv4
    sandbox = Sandbox(
        record.slot,
        record.connectivity,
        IPv4Address(record.ipv4) if record.ipv4 else None,
        IPv6Address(record.ipv6) if record.ipv6 else None,
        _interface(record.slot),
        local4=numbers.ipv4(record.slot) if without_ipv4 else None,
    )
    if record.connectivity in LAYER2:
        return networks.returned(sandbox, record.network, record.worker)
    return sandbox


def _nat_sandbox(slot: int, numbers: Addressing) -> Sandbox:
    return Sandbox(
        slot, Connectivity.NAT, numbers.ipv4(slot), numbers.ipv6(slot), _interface(slot),
        *numbers.block(slot),
    )  # fmt: skip


def _interface(slot: int) -> int:
    with Links() as links:
        return links.index(addressing.name(slot))


def _moved(attachment: Attachment, numbers: Addressing) -> bool:
    """Tell whether a routed job's addresses are not those of the prefixes configured now."""
    sandbox, routed = attachment.sandbox, numbers.routed
    if sandbox.connectivity != Connectivity.ROUTED:
        return False
    if sandbox.slot >= numbers.slots:
        return True
    return (sandbox.ipv4, sandbox.ipv6) != (routed.ipv4(sandbox.slot), routed.ipv6(sandbox.slot))


def _close(attachments: list[Attachment]) -> None:
    for attachment in attachments:
        for member in attachment.everyone:
            if member.pidfd >= 0:
                os.close(member.pidfd)
