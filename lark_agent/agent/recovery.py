"""What an agent finds when it starts: attachments of an earlier run, and leftovers.

The kernel went on counting and checking without the agent: programs, maps and namespaces are
pinned. So each attachment that the journal knows as living is one of three:

* a process of it still runs (same pid, same start time, same boot), or is still to come: it is
  adopted;
* its processes ended meanwhile: it is finished with the kernel's totals (`agent-absent`);
* the machine was rebooted: counters are gone, it is closed with its last durable totals
  (`truncated`).

Every other namespace or interface that carries our names is dismantled.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import structlog

from lark_agent.agent.attachment import Attachment, Member, boot_id
from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.linux import namespaces, process
from lark_agent.linux.links import Links
from lark_agent.model import LAYER2, Connectivity, ExitReason
from lark_agent.sandbox import addressing, networks
from lark_agent.sandbox.connectivity import Sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from lark_agent.accounting.journal import Journal, Living, Process
    from lark_agent.model import Record
    from lark_agent.sandbox.addressing import Addressing

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What to do with what was found."""

    adopted: tuple[Attachment, ...]
    leftovers: tuple[Sandbox, ...]


def recover(journal: Journal, numbers: Addressing, numbering: Path) -> Found:
    """Sort out the past; closes what a reboot truncated.

    `numbering` is the file that remembers the arithmetic of the earlier run. Raises
    PrerequisiteError if jobs still run with another one.
    """
    adopted = []
    for living in journal.living():
        if {known.boot_id for known in _processes(living)} != {boot_id()}:
            _truncate(journal, living)
            continue
        adopted.append(_adopt(living, numbers))
    known = numbering.read_text(encoding="utf-8") if numbering.exists() else repr(numbers)
    if adopted and (known != repr(numbers) or any(_moved(one, numbers) for one in adopted)):
        _close(adopted)
        raise PrerequisiteError(
            f"{len(adopted)} jobs still run with other addresses or NAT ports than now configured; "
            "restore [addresses], [nat] and [pool] slots until they have ended"
        )
    numbering.write_text(repr(numbers), encoding="utf-8")
    held = {attachment.sandbox.slot for attachment in adopted}
    return Found(tuple(adopted), tuple(_leftovers(held, numbers)))


def _adopt(living: Living, numbers: Addressing) -> Attachment:
    record, launch = living.record, living.launch
    members = [_find(known) for known in launch.members]
    attachment = Attachment(
        record, _sandbox_of(record, numbers), living.plan, members, launch.key,
        _find(launch.holder) if launch.holder else None, launch.steps,
        moved_before=launch.moved_before,
    )  # fmt: skip
    attachment.outcome_known.set()
    log.info(
        "found attachment", attachment=record.attachment_id, slot=record.slot,
        running=attachment.runs, processes=len(members),
    )  # fmt: skip
    return attachment


def _processes(living: Living) -> list[Process]:
    launch = living.launch
    return [*launch.members, *([launch.holder] if launch.holder else [])]


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


def _truncate(journal: Journal, living: Living) -> None:
    record = living.record
    final = replace(
        record.sampled(record.usage, record.sampled_ns),
        ended_ns=record.sampled_ns, final=True, exit_reason=ExitReason.TRUNCATED,
    )  # fmt: skip
    journal.save([final])
    log.warning("closed after a reboot", attachment=record.attachment_id, job=record.job.job_id)


def _leftovers(held: set[int], numbers: Addressing) -> list[Sandbox]:
    with Links() as links:
        found = set(links.names(addressing.PREFIX)) | set(links.names(addressing.PORT_PREFIX))
    found |= set(namespaces.names(addressing.PREFIX))
    slots = {slot for name in found if (slot := addressing.slot_of(name)) is not None}
    # of whatever kind: what the worker routes has the same parts, and all of a slot's addresses go
    return [
        networks.found_on_network(slot) or _nat_sandbox(slot, numbers)
        for slot in sorted(slots - held)
        if slot < 4096
    ]


def _close(attachments: list[Attachment]) -> None:
    for attachment in attachments:
        for member in attachment.everyone:
            if member.pidfd >= 0:
                os.close(member.pidfd)
