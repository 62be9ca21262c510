"""What the kernel has and what the journal has, compared: a list of repairs.

A worker is in order when each open attachment of the journal is of this boot, has its counters and
a slot to itself, and either runs or is being ended by somebody; and when nothing else is in the
kernel under our names but what the agent itself keeps ready. `repairs` names every departure from
that, and nothing else: it does no input or output, so that one function serves an agent that
starts (`lark_agent.agent.recovery`), one that runs (`lark_agent.agent.rounds`) and the admin who
asks what it would do (`lark-agent gc --dry-run`).

Whose slot it is, if the journal gives one to several: the attachment's that runs, then that of one
whose process may still come, then the youngest's. The others are closed with their last durable
totals, for what the slot counted last is not theirs.

Making all repairs leaves a world in order, whatever their order; tests hold that for generated
worlds. The attachments that `repairs` does not name are the ones that live on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Why(StrEnum):
    """Why an attachment has no more than its last durable totals."""

    REBOOT = "the machine was started anew"
    NO_COUNTERS = "its counters are gone from the kernel"
    SLOT_TAKEN = "another job has its slot"
    UNATTENDED = "the agent that runs does not know it"


@dataclass(frozen=True, slots=True)
class Known:
    """An attachment without a final record."""

    attachment_id: str
    slot: int
    boots: frozenset[str]
    """Boot ids of its processes."""
    counted: bool = True
    """It has counters."""
    bound: bool = True
    """They hang on an interface; else on a control group."""
    waits: bool = False
    """A process may come though none runs."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel has under our names, by slot."""

    boot_id: str
    running: frozenset[str] = frozenset()
    """Attachments of which a process is what it was."""
    namespaces: frozenset[int] = frozenset()
    links: frozenset[int] = frozenset()
    pinned: bool = True
    """There are pins, and so the counters of all slots."""
    plans: frozenset[int] = frozenset()
    """Slots that let packets pass."""
    bindings: frozenset[tuple[int, int]] = frozenset()
    """Index of an interface, and the slot that it counts for."""


@dataclass(frozen=True, slots=True)
class Books:
    """What the journal has, and what an agent that runs has besides."""

    open: frozenset[Known] = frozenset()
    attended: frozenset[str] | None = None
    """Attachments that an agent watches over; None: no agent runs."""
    busy: frozenset[int] = frozenset()
    """Slots of an agent's own: ready, being built or dismantled, given to a job just now."""


@dataclass(frozen=True, slots=True, order=True)
class Truncate:
    """Write the final record with the last durable totals."""

    attachment_id: str
    why: Why


@dataclass(frozen=True, slots=True, order=True)
class Finish:
    """Write the final record with the kernel's totals: the job ended while no agent ran."""

    attachment_id: str
    slot: int


@dataclass(frozen=True, slots=True, order=True)
class Silence:
    """Let nothing pass for a slot that no job has."""

    slot: int


@dataclass(frozen=True, slots=True, order=True)
class Dismantle:
    """Remove namespace, interfaces and bindings of a slot that nobody has."""

    slot: int
    found: tuple[str, ...] = field(compare=False)
    """What of it is there."""


Repair = Truncate | Finish | Silence | Dismantle


def repairs(kernel: Kernel, books: Books) -> tuple[Repair, ...]:
    """Return what has to be done, records first."""
    closed = _closed(kernel, books)
    lasting = [known for known in books.open if known.attachment_id not in closed]
    ended = [known for known in lasting if _has_ended(known, kernel, books)]
    held = {known.slot for known in lasting} | books.busy
    return (
        *sorted(Truncate(name, why) for name, why in closed.items()),
        *sorted(Finish(known.attachment_id, known.slot) for known in ended),
        *(Silence(slot) for slot in sorted(kernel.plans - held)),
        *(Dismantle(slot, found) for slot, found in _objects(kernel) if slot not in held),
    )


def _closed(kernel: Kernel, books: Books) -> dict[str, Why]:
    """Return the attachments that can get no more totals."""
    closed = {
        known.attachment_id: why
        for known in books.open
        if (why := _lost(known, kernel, books)) is not None
    }
    by_slot: dict[int, list[Known]] = {}
    for known in books.open:
        if known.attachment_id not in closed:
            by_slot.setdefault(known.slot, []).append(known)
    for rivals in by_slot.values():
        rivals.sort(key=lambda known: _claim(known, kernel, books))
        closed |= {known.attachment_id: Why.SLOT_TAKEN for known in rivals[:-1]}
    return closed


def _lost(known: Known, kernel: Kernel, books: Books) -> Why | None:
    if books.attended is not None:
        return None if known.attachment_id in books.attended else Why.UNATTENDED
    if known.boots != {kernel.boot_id}:
        return Why.REBOOT
    if not known.counted:
        return None
    # without a plan but bound: an agent ended between the last reading and the final record
    bound = known.slot in {slot for _, slot in kernel.bindings} or not known.bound
    counts = kernel.pinned and (known.slot in kernel.plans or bound)
    return None if counts else Why.NO_COUNTERS


def _claim(known: Known, kernel: Kernel, books: Books) -> tuple[bool, bool, bool, str]:
    name = known.attachment_id
    return name in (books.attended or ()), name in kernel.running, known.waits, name


def _has_ended(known: Known, kernel: Kernel, books: Books) -> bool:
    if books.attended is not None:  # its pidfds tell the agent, which lets it drain
        return False
    return not known.waits and known.attachment_id not in kernel.running


def _objects(kernel: Kernel) -> list[tuple[int, tuple[str, ...]]]:
    """Return what there is of each slot."""
    parts = {
        "namespace": kernel.namespaces,
        "link": kernel.links,
        "binding": {slot for _, slot in kernel.bindings},
    }
    slots = frozenset[int]().union(*parts.values())
    return [
        (slot, tuple(name for name, having in parts.items() if slot in having))
        for slot in sorted(slots)
    ]
