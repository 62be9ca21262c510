"""Records as rows and back; usage, plan and changes travel as JSON (msgspec) in a column each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from lark_agent.accounting.questions import Sample
from lark_agent.accounting.quotas import PoolKey, Standing
from lark_agent.collector.schema import POOL_KEY
from lark_agent.model import (
    Change,
    Connectivity,
    Count,
    ExitReason,
    Job,
    Peers,
    Record,
    Scheduler,
    Setting,
    Usage,
)

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Usage).decode
_decode_transfer = msgspec.json.Decoder(Usage | None).decode
_decode_changes = msgspec.json.Decoder(tuple[Change, ...]).decode
_decode_plan = msgspec.json.Decoder(tuple[Setting, ...]).decode

CHANGING = (
    "sequence", "sampled_ns", "ended_ns", "final", "exit_reason", "exit_status", "usage", "cost",
    "changes", "peers", "plan", "transfer",
)  # fmt: skip
"""Columns that a later record may set; the rest is what the first one said, for ever."""


def row_of(record: Record) -> dict[str, Any]:
    """Return the columns of `schema.RECORDS`."""
    job = record.job
    return {
        "attachment_id": record.attachment_id,
        "worker": record.worker,
        "slot": record.slot,
        "scheduler": str(job.scheduler),
        "job_id": job.job_id,
        "owner": job.owner,
        "uid": job.uid,
        "accounting_group": job.accounting_group,
        "verified": job.verified,
        "profile": record.profile,
        "connectivity": str(record.connectivity),
        "started_ns": record.started_ns,
        "sequence": record.sequence,
        "sampled_ns": record.sampled_ns,
        "ended_ns": record.ended_ns,
        "final": record.final,
        "exit_reason": str(record.exit_reason or ""),
        "exit_status": record.exit_status,
        "first_port": record.first_port,
        "last_port": record.last_port,
        "ipv4": record.ipv4,
        "ipv6": record.ipv6,
        "network": record.network,
        "cost": record.cost,
        "peers": str(record.peers),
        "plan": _encode(record.plan).decode(),
        "changes": _encode(record.changes).decode(),
        "usage": _encode(record.usage).decode(),
        "transfer": _encode(record.transfer).decode(),
    }


def record_of(row: RowMapping) -> Record:
    """Return the record in a row of `schema.RECORDS`."""
    return Record(
        attachment_id=row["attachment_id"],
        worker=row["worker"],
        slot=row["slot"],
        job=Job(
            scheduler=Scheduler(row["scheduler"]),
            job_id=row["job_id"],
            owner=row["owner"],
            uid=row["uid"],
            accounting_group=row["accounting_group"],
            verified=row["verified"],
        ),
        profile=row["profile"],
        connectivity=Connectivity(row["connectivity"]),
        started_ns=row["started_ns"],
        sequence=row["sequence"],
        sampled_ns=row["sampled_ns"],
        ended_ns=row["ended_ns"],
        final=row["final"],
        exit_reason=ExitReason(row["exit_reason"]) if row["exit_reason"] else None,
        exit_status=row["exit_status"],
        first_port=row["first_port"],
        last_port=row["last_port"],
        ipv4=row["ipv4"],
        ipv6=row["ipv6"],
        network=row["network"],
        peers=Peers(row["peers"]),
        cost=row["cost"],
        plan=_decode_plan(row["plan"]),
        changes=_decode_changes(row["changes"]),
        usage=_decode(row["usage"]),
        transfer=_decode_transfer(row["transfer"]),
    )


def sample_row_of(record: Record) -> dict[str, Any]:
    """Return the columns of `schema.SAMPLES`."""
    return {
        "attachment_id": record.attachment_id,
        "sequence": record.sequence,
        "sampled_ns": record.sampled_ns,
        **counts_of(record.usage.sent, record.usage.received),
    }


def counts_of(sent: Count, received: Count) -> dict[str, int]:
    """Return the columns of `schema.COUNTS`."""
    return {
        "sent_packets": sent.packets,
        "sent_bytes": sent.bytes,
        "received_packets": received.packets,
        "received_bytes": received.bytes,
    }


def sample_of(row: RowMapping) -> Sample:
    """Return the sample in a row of `schema.SAMPLES`."""
    return Sample(
        row["sampled_ns"],
        Count(row["sent_packets"], row["sent_bytes"]),
        Count(row["received_packets"], row["received_bytes"]),
    )


def standing_of(row: RowMapping) -> Standing:
    """Return how a quota stands from a row of `schema.POOLS` and its number of `workers`."""
    return Standing(
        PoolKey(*(row[name] for name in POOL_KEY)),
        row["limit_bytes"],
        row["used"],
        row["granted"],
        row["workers"],
        row["action"],
        row["changed_ns"],
        used_up=row["dry"],
    )
