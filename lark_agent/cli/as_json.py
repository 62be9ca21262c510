"""The JSON that programs read: a contract, kept apart from the tables that people read.

Keys are snake_case; bytes and packets are exact integers; every time appears twice, as UTC
nanoseconds (`started_ns`) and in ISO 8601 (`started`, null where the time is not known). Fields
may be added; they are not renamed or removed. The forms are written down in docs/cli.md.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lark_agent.cli.units import iso

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.accounting.questions import GroupBy, JobRun, Totals
    from lark_agent.model import Count, Record


def write(value: Any) -> str:
    """Serialise; always ASCII, so that no terminal or pipe interprets what a user named."""
    return json.dumps(value, indent=2)


def count(value: Count) -> dict[str, int]:
    """Packets and bytes."""
    return {"packets": value.packets, "bytes": value.bytes}


def job(record: Record) -> dict[str, Any]:
    """One attachment with its usage."""
    usage = record.usage
    return {
        "attachment_id": record.attachment_id,
        "worker": record.worker,
        "slot": record.slot,
        "scheduler": record.job.scheduler.value,
        "job_id": record.job.job_id,
        "owner": record.job.owner,
        "uid": record.job.uid,
        "accounting_group": record.job.accounting_group,
        "verified": record.job.verified,
        "profile": record.profile,
        "connectivity": record.connectivity.value,
        "state": state(record),
        "started_ns": record.started_ns,
        "started": iso(record.started_ns),
        "ended_ns": record.ended_ns,
        "ended": iso(record.ended_ns),
        "exit_reason": record.exit_reason.value if record.exit_reason else None,
        "exit_status": record.exit_status,
        "final": record.final,
        "first_port": record.first_port,
        "last_port": record.last_port,
        "ipv4": record.ipv4,
        "ipv6": record.ipv6,
        "network": record.network,
        "peers": record.peers.value,
        "plan": {setting.name: setting.value for setting in record.plan},
        "changes": [
            {
                "at_ns": change.at_ns,
                "at": iso(change.at_ns),
                "by": change.by,
                "setting": change.setting,
                "value": change.value,
            }
            for change in record.changes
        ],
        "sent": count(usage.sent),
        "received": count(usage.received),
        "classes": [
            {
                "class": c.traffic_class,
                "sent": count(c.sent),
                "received": count(c.received),
                "cost_millionths": c.cost,
            }
            for c in usage.classes
        ],
        "cost_millionths": record.cost,
        "drops": [
            {
                "reason": drop.reason,
                **count(drop.count),
                **({"classes": dict(drop.classes)} if drop.classes else {}),
            }
            for drop in usage.drops
        ],
        "non_ip_sent": count(usage.non_ip_sent),
        "non_ip_received": count(usage.non_ip_received),
        "transfer": transfer(record),
        "sampled_ns": record.sampled_ns,
        "sampled": iso(record.sampled_ns),
        "sequence": record.sequence,
    }


def transfer(record: Record) -> dict[str, Any] | None:
    """Return what the batch system moved for a job; None where that is not accounted."""
    moved = record.transfer
    if moved is None:
        return None
    return {
        "sent": count(moved.sent),
        "received": count(moved.received),
        "classes": [
            {"class": c.traffic_class, "sent": count(c.sent), "received": count(c.received)}
            for c in moved.classes
        ],
    }


def state(record: Record) -> str:
    """Return "running" or "ended"."""
    return "ended" if record.ended_ns else "running"


def jobs(records: Sequence[Record], *, more: bool) -> dict[str, Any]:
    """`lark jobs`; `more` is true where the limit left jobs out."""
    return {"jobs": [job(record) for record in records], "more": more}


def runs(found: Sequence[JobRun]) -> dict[str, Any]:
    """`lark job`."""
    return {
        "runs": [
            job(run.record)
            | {
                "samples": [
                    {
                        "sampled_ns": s.sampled_ns,
                        "sampled": iso(s.sampled_ns),
                        "sent": count(s.sent),
                        "received": count(s.received),
                    }
                    for s in run.samples
                ]
            }
            for run in found
        ]
    }


def totals(by: Sequence[GroupBy], found: Totals, total: tuple[int, Count, Count]) -> dict[str, Any]:
    """`lark usage`; `total` is (distinct jobs, sent, received) over all rows."""
    return {
        "since_ns": found.since_ns,
        "since": iso(found.since_ns),
        "until_ns": found.until_ns,
        "until": iso(found.until_ns),
        "by": [g.value for g in by],
        "totals": [
            {
                "key": {g.value: text for g, text in zip(by, row.key, strict=True)},
                "jobs": row.jobs,
                "sent": count(row.sent),
                "received": count(row.received),
                "cost_millionths": row.cost,
            }
            for row in found.rows
        ],
        "total": {
            "jobs": total[0],
            "sent": count(total[1]),
            "received": count(total[2]),
            "cost_millionths": sum(row.cost for row in found.rows),
        },
    }
