"""Once a minute: a look at whether everything that carries our names is somebody's.

An agent that runs knows its jobs and its pool, so there should be nothing to repair; what is found
is counted as an error of the task `reconcile` and logged with what was done. Reading the kernel is
left to the dismantling thread, which no job waits for.

What was read is old when it is acted upon. So a record is closed only if the attachment was unknown
before and after reading, and a slot is touched only after the pool has given it up, which it does
for a free one: from then on no job can get it until it is dismantled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from lark_agent.agent import observing
from lark_agent.agent.reconcile import Books, Dismantle, Silence, Truncate, repairs
from lark_agent.agent.recovery import leftover, truncate
from lark_agent.errors import LarkError

if TYPE_CHECKING:
    from pathlib import Path

    from lark_agent.accounting.journal import Journal
    from lark_agent.agent.attachments import Attachments
    from lark_agent.agent.reconcile import Repair
    from lark_agent.agent.tasks import OwnThread, Tasks
    from lark_agent.datapath import Datapath
    from lark_agent.model import Record
    from lark_agent.sandbox.addressing import Addressing
    from lark_agent.sandbox.pool import Pool

SECONDS = 60.0
log = structlog.get_logger(__name__)


class Rounds:
    """Of one agent."""

    def __init__(
        self, journal: Journal, attachments: Attachments, pool: Pool, datapath: Datapath,
        numbers: Addressing, bpffs: Path, in_journal: OwnThread, in_dismantling: OwnThread,
        tasks: Tasks,
    ) -> None:  # fmt: skip
        self._journal = journal
        self._attachments = attachments
        self._pool = pool
        self._datapath = datapath
        self._numbers = numbers
        self._bpffs = bpffs
        self._in_journal = in_journal
        self._in_dismantling = in_dismantling
        self._tasks = tasks

    async def run(self) -> None:
        """Look for ever; a background task."""
        while True:
            await asyncio.sleep(SECONDS)
            await self.look()

    async def look(self) -> tuple[Repair, ...]:
        """Look once and repair; returns what had to be done. Raises LarkError."""
        attended, busy = frozenset(self._attachments.living), self._pool.busy
        living = await self._in_journal(self._journal.living)
        kernel = await self._in_dismantling(lambda: observing.kernel(self._bpffs, living))
        books = Books(
            frozenset(map(observing.known, living)),
            attended | self._attachments.living.keys(),
            busy | self._pool.busy,
        )
        todo = repairs(kernel, books)
        records = {each.record.attachment_id: each.record for each in living}
        for repair in todo:
            log.error("repairing", repair=repair)
            self._tasks.errors["reconcile"] += 1
            await self._make(repair, records)
        return todo

    async def _make(self, repair: Repair, records: dict[str, Record]) -> None:
        if isinstance(repair, Truncate):
            record = records[repair.attachment_id]
            await self._in_journal(lambda: truncate(self._journal, record, repair.why))
        elif isinstance(repair, (Silence, Dismantle)):
            slot = repair.slot
            sandbox = await self._in_dismantling(lambda: leftover(slot, self._numbers))
            if self._pool.withdraw(sandbox) and slot < self._datapath.slots:
                self._datapath.deactivate(slot)
        else:  # only an agent that starts finishes what ended without one
            raise LarkError(f"an agent that runs cannot make the repair {repair}")
