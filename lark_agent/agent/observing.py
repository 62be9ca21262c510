"""Reading what `lark_agent.agent.reconcile` compares; changes nothing.

Processes are told by number and start time, so this needs no descriptors and can be done at any
time, beside an agent as well. What changes meanwhile makes an observation old, not wrong: who acts
on it looks again at what it is about to touch (`recovery` opens pidfds, the pool gives up only a
slot that is still free).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent import datapath
from lark_agent.agent.attachment import boot_id
from lark_agent.agent.enforcing import is_counted
from lark_agent.agent.reconcile import Kernel, Known
from lark_agent.linux import namespaces, process
from lark_agent.linux.links import Links
from lark_agent.model import Connectivity
from lark_agent.sandbox import addressing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from lark_agent.accounting.journal import Living, Process

_MOST_SLOTS = 4096
"""Names with higher numbers are nobody's slots."""


def known(living: Living) -> Known:
    """Return what matters of an attachment of the journal."""
    record, launch = living.record, living.launch
    holder = launch.holder
    return Known(
        record.attachment_id,
        record.slot,
        frozenset(each.boot_id for each in processes(living)),
        counted=is_counted(record.connectivity) or bool(record.first_port),
        bound=record.connectivity is not Connectivity.HOST,
        waits=launch.steps or (not launch.members and holder is not None and _runs(holder)),
    )


def kernel(bpffs: Path, living: Iterable[Living]) -> Kernel:
    """Return what the kernel has, and which of these attachments run. Raises KernelError."""
    pinned = datapath.look(bpffs)
    plans, bindings = pinned or (frozenset(), frozenset())
    with Links() as links:
        found = {**links.names(addressing.PREFIX), **links.names(addressing.PORT_PREFIX)}
    return Kernel(
        boot_id(),
        frozenset(
            each.record.attachment_id for each in living if any(map(_runs, each.launch.members))
        ),
        _slots(namespaces.names(addressing.PREFIX)),
        _slots(found),
        pinned is not None,
        plans,
        bindings,
    )


def processes(living: Living) -> Sequence[Process]:
    """Return a job's processes and what holds its place."""
    launch = living.launch
    return [*launch.members, *([launch.holder] if launch.holder else [])]


def _runs(known: Process) -> bool:
    return process.start_time(known.pid) == known.start_time


def _slots(names: Iterable[str]) -> frozenset[int]:
    slots = (addressing.slot_of(name) for name in names)
    return frozenset(slot for slot in slots if slot is not None and slot < _MOST_SLOTS)
