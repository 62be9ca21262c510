"""The arithmetic of a shared quota: a pool of bytes, and leases of it that workers spend.

Workers enforce in their kernels, to the packet, and cannot ask for each packet. So the
book-keeper grants a worker bytes in advance, a **lease** that the worker's kernel lets through and
no more. What is granted is taken from the pool at once; what a lease did not spend comes back when
it is closed, with the last job of its subject. As long as every grant is written down before it is
told, the sum of what all kernels let through is at most the pool's limit, whatever is lost,
repeated or restarted.

What a worker says is its whole state (granted, used, closed), never a difference, so that a message
may be lost or come twice or late:

* a worker whose `granted` is less than the book's did not hear the last answer: it is told again,
  and given no more, until both agree;
* a closed lease stays closed; the worker opens another, under a new name, for its next job;
* a lease that the book does not know, or knows as smaller, was granted before the book was restored
  from a backup: the worker is believed, and only then can a pool be over its limit. So it can by
  what a worker let through beyond its lease because its site chose `unreachable = "continue"`, or
  an action that does not cut.

A lease grows by a share of what is left, so that the first does not starve the others and what lies
unused on all workers shrinks as the pool runs dry: half of what is left, divided by the leases
that are open, but not less than a thousandth of the limit or 1 MB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lark_agent.accounting.quotas import PoolKey

LEAST_CHUNK = 10**6
LARGEST_PACKET = 1 << 17
"""No packet charges more bytes: 64 KiB of payload (GSO) and a header for each of its segments."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What the book knows of one quota of one subject in one period, in bytes."""

    granted: int = 0
    """Sum over all leases that ever were; closed ones with what they used."""
    used: int = 0
    """As last reported, sum over the same leases."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What the book knows of one lease, in bytes."""

    granted: int = 0
    used: int = 0
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What a worker says of one of its leases, in bytes."""

    lease: str
    """UUIDv7."""
    key: PoolKey
    limit: int
    """Of the pool, as this worker is configured."""
    action: str
    """A `QuotaAction`."""
    granted: int
    """What it was told."""
    used: int
    wanted: bool = False
    """It is about to need more."""
    closed: bool = False
    """It will not use more, under this name."""
    dry: bool = False
    """A packet did not fit in it any more."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What the book answers, in bytes."""

    lease: str
    granted: int
    """In all, since the lease was opened."""
    exhausted: bool = False
    """Nothing is left to grant until a worker gives something back."""


def settle(
    pool: Pool, lease: Lease | None, claim: Claim, limit: int, open_leases: int
) -> tuple[Pool, Lease]:
    """Return pool and lease after a worker's claim.

    `limit` is the pool's, `open_leases` the number of its leases that share in it, this one
    included. Whether the pool is exhausted for this worker is `is_exhausted` of the outcome.
    """
    before = lease or Lease()
    if before.closed:
        return pool, before
    used = max(before.used, claim.used)
    granted = max(before.granted, claim.granted, used)
    if claim.closed:
        granted = used
    pool = Pool(pool.granted + granted - before.granted, pool.used + used - before.used)
    after = replace(before, granted=granted, used=used, closed=claim.closed)
    # who has not heard of the last grant is told of that first
    if claim.wanted and not claim.closed and claim.granted >= before.granted:
        more = chunk(limit, limit - pool.granted, open_leases)
        pool = replace(pool, granted=pool.granted + more)
        after = replace(after, granted=granted + more)
    return pool, after


def chunk(limit: int, left: int, open_leases: int) -> int:
    """Return by how many bytes a lease may grow."""
    if left <= 0:
        return 0
    share = left // (2 * max(1, open_leases))
    return min(left, max(share, limit // 1000, LEAST_CHUNK))


def is_exhausted(pool: Pool, limit: int) -> bool:
    """Tell whether nothing can be granted, until a worker gives something back."""
    return pool.granted >= limit


def is_dry(pool: Pool, limit: int, claim: Claim, lease: Lease, *, before: bool) -> bool:
    """Tell whether a packet did not fit in a pool any more, and might not now; `before`: until now.

    Pool and lease as `settle` returned them. A worker that has not heard of its last grant says
    nothing about the pool. What a lease gives back when it is closed may be less than a packet.
    """
    told = claim.dry and claim.granted >= lease.granted
    return limit - pool.granted < LARGEST_PACKET and (before or told)
