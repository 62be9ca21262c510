"""What Slurm keeps of a job's traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lark_agent.model import Record


def summary(record: Record) -> str:
    """Return what stays with the job at Slurm, in its admin comment: bytes by direction and class.

    Such as "lark worker1: sent=1200 received=34000 campus=1200/34000".
    """
    usage = record.usage
    classes = "".join(
        f" {c.traffic_class}={c.sent.bytes}/{c.received.bytes}" for c in usage.classes
    )
    return f"lark {record.worker}: sent={usage.sent.bytes} received={usage.received.bytes}{classes}"
