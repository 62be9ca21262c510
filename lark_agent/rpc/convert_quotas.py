"""Between the words of quotas and the messages on the wire, by the rules of `convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.accounting.leases import Claim, Grant
from lark_agent.accounting.quotas import PERIOD, PoolKey, Standing
from lark_agent.config import QuotaAction, QuotaScope
from lark_agent.rpc.convert import ATTACHMENT_ID, MAX_INTEGER, MAX_TEXT, InvalidRecord, check_text
from lark_agent.rpc.lark.v1 import query_pb2, report_pb2

if TYPE_CHECKING:
    from collections.abc import Collection

_SHARED = (QuotaScope.OWNER, QuotaScope.GROUP)


def claim_to_wire(claim: Claim) -> report_pb2.Claim:
    """Copy a claim into a message."""
    return report_pb2.Claim(
        lease=claim.lease, **claim.key._asdict(), limit=claim.limit, action=claim.action,
        granted=claim.granted, used=claim.used, wanted=claim.wanted, closed=claim.closed,
        dry=claim.dry,
    )  # fmt: skip


def claim_from_wire(message: report_pb2.Claim) -> Claim:
    """Copy a message into a claim; raises InvalidRecord."""
    if not ATTACHMENT_ID.fullmatch(message.lease):
        raise InvalidRecord(f"claim: lease {message.lease[:MAX_TEXT]!r} is not a UUIDv7")
    for field in ("quota", "subject"):
        check_text(f"claim {message.lease}: {field}", getattr(message, field))
    _check_choice(message, "scope", _SHARED)
    _check_choice(message, "action", list(QuotaAction))
    if not PERIOD.fullmatch(message.period):
        raise InvalidRecord(f"claim {message.lease}: {message.period[:MAX_TEXT]!r} is no period")
    if max(message.limit, message.granted, message.used) > MAX_INTEGER // 4:
        raise InvalidRecord(f"claim {message.lease}: a number of bytes is above 2^61")
    return Claim(
        message.lease,
        PoolKey(message.quota, message.scope, message.subject, message.period),
        message.limit, message.action, message.granted, message.used,
        wanted=message.wanted, closed=message.closed, dry=message.dry,
    )  # fmt: skip


def _check_choice(message: report_pb2.Claim, field: str, known: Collection[str]) -> None:
    text = getattr(message, field)
    if text not in known:
        raise InvalidRecord(
            f"claim {message.lease}: {field} {text[:MAX_TEXT]!r} is none of {', '.join(known)}"
        )


def grant_to_wire(grant: Grant) -> report_pb2.Grant:
    """Copy a grant into a message."""
    return report_pb2.Grant(lease=grant.lease, granted=grant.granted, exhausted=grant.exhausted)


def grant_from_wire(message: report_pb2.Grant) -> Grant:
    """Copy a message into a grant; raises InvalidRecord."""
    if message.granted > MAX_INTEGER // 4:
        raise InvalidRecord(f"grant {message.lease[:MAX_TEXT]!r}: more than 2^61 bytes")
    return Grant(message.lease, message.granted, exhausted=message.exhausted)


def standing_to_wire(standing: Standing) -> query_pb2.Standing:
    """Copy how a quota stands into a message."""
    return query_pb2.Standing(
        **standing.key._asdict(), limit=standing.limit, used=standing.used,
        granted=standing.granted, workers=standing.workers, action=standing.action,
        as_of_ns=standing.as_of_ns, used_up=standing.used_up,
    )  # fmt: skip


def standing_from_wire(message: query_pb2.Standing) -> Standing:
    """Copy a message into how a quota stands."""
    return Standing(
        PoolKey(message.quota, message.scope, message.subject, message.period),
        message.limit, message.used, message.granted, message.workers, message.action,
        message.as_of_ns, used_up=message.used_up,
    )  # fmt: skip
