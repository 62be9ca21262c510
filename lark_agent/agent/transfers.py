"""What a starter moved for its job, in the job's record.

HTCondor's starter moves a job's files, before the job starts and after it has ended. In a sandbox
of its own (`lark_agent.agent.starters`) it is an attachment like a job's: counted, sampled,
drained, adopted after a restart. But it has no job and is in no report; its usage is that of the
job that the starter starts, as `Record.transfer`.

So a job's record is complete when its starter has ended. The job's own plan ends with the job, its
counters are read and durable; the record is not final yet, and the sandbox is kept, until the
starter's counters have been read as well. Both are written in one transaction. An agent that is
killed in between finds the job ended and the starter running, or neither, and goes the same way.

A starter may start its job again (HTCondor's checkpoints). What it moved until then is the first
attachment's, which is complete at that moment; the rest is the next one's. A reservation for which
no job came has no share.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lark_agent.hooks import launch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lark_agent.agent.attachment import Attachment
    from lark_agent.hooks.identity import Launcher
    from lark_agent.model import Record, Usage

_WORD = "transfer"


def key_of(starter: Launcher) -> str:
    """Return the launch key of a starter's own sandbox."""
    return f"{_WORD} {starter.pid} {starter.start_time}"


def key_for(job: str) -> str:
    """Return the same for the starter of a job with this launch key; empty: it has none."""
    starter = launch.launcher(job)
    return "" if starter is None else key_of(starter)


class Transfers:
    """Who waits for whose starter; `living` are the agent's attachments by id."""

    def __init__(self, living: Mapping[str, Attachment]) -> None:
        self._living = living
        self._held: dict[str, Attachment] = {}

    def of(self, job: str) -> Attachment | None:
        """Return the sandbox of the starter of a job with this launch key."""
        return self._starters().get(key_for(job)) if self.some else None

    def without_job(self) -> int:
        """Count starters whose job has not asked yet."""
        taken = {key_for(each.key) for each in self._living.values() if each.key}
        return sum(key not in taken for key in self._starters())

    def earlier(self, job: str) -> tuple[Attachment, Attachment] | None:
        """Return the starter of a job that begins now, and the job that it started before."""
        starter = self.of(job)
        earlier = self._newest().get(job) if starter else None
        return (starter, earlier) if starter and earlier and earlier.members else None

    def share(self, job: Attachment, moved: Usage) -> bool:
        """Give a job what its starter has moved so far, and no more; True if it waited for that."""
        job.has_its_share = True
        job.record = _with(job, job.record, moved)
        return self._held.pop(job.record.attachment_id, None) is not None

    def held_by(self, ended: Iterable[Attachment]) -> list[Attachment]:
        """Return the ended jobs that wait for these attachments' ends."""
        keys = {each.key for each in ended if each.record.is_transfer}
        return [each for each in self._held.values() if key_for(each.key) in keys]

    def waiting(self, batch: Sequence[Attachment]) -> list[Attachment]:
        """Return which of these ended jobs have a starter that goes on."""
        if not self.some:
            return []
        starters, newest = self._starters(), self._newest()
        going_on = starters.keys() - {each.key for each in batch}
        return [
            each
            for each in batch
            if key_for(each.key) in going_on
            and each.members
            and not each.has_its_share
            and newest.get(each.key) is each
        ]

    def hold(self, jobs: Iterable[Attachment]) -> None:
        """Remember who waits."""
        self._held |= {each.record.attachment_id: each for each in jobs}

    def forget(self, attachment: Attachment) -> None:
        """Let go of an attachment whose record is final."""
        self._held.pop(attachment.record.attachment_id, None)

    def told(self, records: Sequence[Record]) -> list[Record]:
        """Return these new records with what their starters have moved, as far as is known."""
        if not self.some:
            return list(records)
        starters, newest = self._starters(), self._newest()
        fresh = {record.attachment_id: record.usage for record in records if record.is_transfer}
        found = []
        for record in records:
            job = self._living[record.attachment_id]
            starter = starters.get(key_for(job.key))
            if starter is not None and newest.get(job.key) is job and not job.has_its_share:
                known = starter.record
                found.append(_with(job, record, fresh.get(known.attachment_id, known.usage)))
            else:
                found.append(record)
        return found

    def outlived(self, batch: Sequence[Attachment]) -> list[Attachment]:
        """Return the jobs that go on though their starters are among these ended ones."""
        keys = {each.key for each in batch if each.record.is_transfer}
        running = (each for each in self._newest().values() if key_for(each.key) in keys)
        return [each for each in running if each not in batch]

    @property
    def some(self) -> bool:
        """Tell whether any starter has a sandbox; elsewhere nothing else is looked at."""
        return any(each.record.is_transfer for each in self._living.values())

    def _starters(self) -> dict[str, Attachment]:
        return {each.key: each for each in self._living.values() if each.record.is_transfer}

    def _newest(self) -> dict[str, Attachment]:
        """Return launch key → the attachment that began last; in the order of their ids."""
        jobs = (each for each in self._living.values() if not each.record.is_transfer)
        ordered = sorted(jobs, key=lambda each: each.record.attachment_id)
        return {each.key: each for each in ordered if each.key}


def _with(job: Attachment, record: Record, moved: Usage) -> Record:
    return replace(record, transfer=moved.since(job.moved_before))
