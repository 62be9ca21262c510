"""What HTCondor learns: attributes of the machine and its slots, and of jobs.

**Machine.** A program that the startd keeps running prints ads, each closed by a line with a dash,
and the startd puts them into its slots' ads at once. One ad is for all slots; one for each job
carries a `SlotMergeConstraint` that holds for its slot alone. (The startd keeps the first
constraint that comes with an ad's name, so it cannot say more than the name does.)
`LarkReady` is an expression over time: it turns false by itself when nobody prints any more.

What a slot's ad says of its job stays there: it is no metric of the startd's
(`STARTD_CRON_…_METRICS`), which the starter would carry into the job's ad. The starter takes those
from a file in the job's scratch directory that belongs to the **job's user** (tried on 23.9: a job
that rewrites `.update.ad` decides what its ad says).

**Job.** The submit node writes, from the records of the collector, into attributes that neither
the user nor the job can write (`PROTECTED_JOB_ATTRS`): what the job has moved so far while it runs,
and the account when it has ended, for which the schedd keeps the finished job in its queue: see
`lark_agent.hooks.htcondor_config`.

Names are LARK's where it had one. Pure: no input or output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lark_agent.model import Rates, Record

STARTER = "condor_starter"
"""Command that runs one job, as root."""
DIRECTIONS = ("Incoming", "Outgoing")
METERED = ("NetworkIncoming", "NetworkOutgoing")
RATE = "AverageBandwidthUsage"
TRANSFERRED = ("NetworkTransferIncoming", "NetworkTransferOutgoing")
ACCOUNT = (
    *METERED, *(f"{name}ByClass" for name in METERED), "NetworkCost", "NetworkRecord", *TRANSFERRED,
    RATE, *(f"{RATE}{direction}{by}" for direction in DIRECTIONS for by in ("", "ByClass")),
)  # fmt: skip
"""Names that `job_attributes` gives, and nobody else may."""
MEGA = 10**6
UNNEGOTIATED = (
    "ifThenElse(PartitionableSlot =?= true,"
    " max({ 0, BandwidthBooked - (TotalBandwidth - Bandwidth) }), undefined)"
)
"""What jobs have been guaranteed beyond what the startd has given out, by the startd's own count.

Jobs outside HTCondor; or one that raised its own share by an ad in its directory.
"""
_SLOT = re.compile(r"[A-Za-z0-9_]{1,64}")

Attributes = dict[str, str]
"""Name → ClassAd expression."""


@dataclass(frozen=True, slots=True)
class MachineState:
    """A worker, as its agent sees it; bit/s."""

    uplink: str
    connectivities: tuple[str, ...]
    families: tuple[str, ...]
    networks: Mapping[str, int]
    """Name → 802.1Q id, 0: untagged."""
    capacity: Rates
    booked: Rates
    places: tuple[tuple[str, Record], ...] = ()
    """Slot and record of its job."""


def slot_of(arguments: Sequence[str]) -> str:
    """Return the slot that a starter's command line names, "" if it names none."""
    for option, value in pairwise(arguments[1:]):
        if option == "-a" and _SLOT.fullmatch(value):
            return value
    return ""


def text(value: str) -> str:
    """Write a string of ours as a ClassAd literal."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def word(traffic_class: str) -> str:
    """Make a class's name one of ClassAds."""
    return re.sub("[^A-Za-z0-9_]", "_", traffic_class)


def by_class(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    """Sum bytes: direction → class's word → bytes; what is zero is left out."""
    found: dict[str, dict[str, int]] = {direction: {} for direction in DIRECTIONS}
    for each in (each for record in records for each in record.usage.classes):
        for direction, count in zip(DIRECTIONS, (each.received, each.sent), strict=True):
            if count.bytes:
                name = word(each.traffic_class)
                found[direction][name] = found[direction].get(name, 0) + count.bytes
    return found


def vlans(networks: Mapping[str, int]) -> list[str]:
    """Return by what jobs may ask for networks, given name → 802.1Q id."""
    return [*sorted(networks), *(str(each) for each in sorted(set(networks.values())) if each)]


def machine_ad(state: MachineState, used: Rates, *, ready_until: int) -> Attributes:
    """Describe the worker to all its slots; `used` is measured on the uplink.

    `ready_until` is in seconds since the epoch.
    """
    capacity, booked = capacity_of(state.capacity), _booked(state.booked)
    families = [{"ipv4": "IPv4", "ipv6": "IPv6"}[family] for family in state.families]
    return {
        "LarkReady": f"time() < {ready_until}",
        "NetworkAccounting": "true",
        "NetworkType": text(",".join(state.connectivities)),
        "VLAN": text(",".join(vlans(state.networks))),
        "IPProtocol": text(",".join(families)),
        "ExternalInterface": text(state.uplink),
        "BandwidthCapacity": str(capacity),
        "BandwidthBooked": str(booked),
        "AvailBandwidth": str(max(0, capacity - booked)),
        "BandwidthUnnegotiated": UNNEGOTIATED,
        "BandwidthUsedIncoming": f"{used.received / MEGA:.3f}",
        "BandwidthUsedOutgoing": f"{used.sent / MEGA:.3f}",
    }


def slot_ad(slot: str, record: Record) -> Attributes:
    """Describe one job's usage to the slot that it runs in, and whose it is: it stays there."""
    return {
        "SlotMergeConstraint": f'regexp("^{slot}(@|$)", Name)',
        **{f"Job{name}": value for name, value in so_far([record]).items()},
        "JobNetworkRecord": text(record.attachment_id),
    }


def so_far(records: Sequence[Record]) -> Attributes:
    """Return what a job has moved in all its runs, running or not."""
    found = {name: str(count) for name, count in _totals(records).items()}
    for direction, classes in by_class(records).items():
        found[f"Network{direction}ByClass"] = _nested(classes)
    return found


def job_attributes(records: Sequence[Record]) -> Attributes:
    """Return what the ad of an ended job says of all its runs; all records must be final."""
    found = so_far(records) | _rates(records)
    found["NetworkCost"] = f"{sum(record.cost for record in records) / MEGA:.6f}"
    moved = [record.transfer for record in records if record.transfer is not None]
    if len(moved) == len(records):  # else it would be a part that looks like all
        found["NetworkTransferIncoming"] = str(sum(each.received.bytes for each in moved))
        found["NetworkTransferOutgoing"] = str(sum(each.sent.bytes for each in moved))
    found["NetworkRecord"] = text(",".join(record.attachment_id for record in records))
    return found


def printed(name: str, attributes: Attributes) -> Iterator[str]:
    """Yield the lines by which a cron program publishes one ad."""
    yield from (f"{attribute} = {value}" for attribute, value in attributes.items())
    yield f"- {name}"


def _rates(records: Sequence[Record]) -> Attributes:
    """Return the same in Mbit/s, over the time that the runs lasted."""
    seconds = sum(record.ended_ns - record.started_ns for record in records) / 10**9

    def rate(count: int) -> str:
        return f"{count * 8 / MEGA / seconds if seconds > 0 else 0.0:.6f}"

    totals = _totals(records)
    found = {RATE: rate(sum(totals.values()))}
    for direction, classes in by_class(records).items():
        found[f"{RATE}{direction}"] = rate(totals[f"Network{direction}"])
        rates = {name: rate(count) for name, count in classes.items()}
        found[f"{RATE}{direction}ByClass"] = _nested(rates)
    return found


def _nested(values: Mapping[str, object]) -> str:
    """Write an ad within an ad."""
    return f"[ {'; '.join(f'{name} = {value}' for name, value in sorted(values.items()))} ]"


def _totals(records: Iterable[Record]) -> dict[str, int]:
    """Return the bytes in each direction, as the job sees them."""
    usages = [record.usage for record in records]
    received = sum(usage.received.bytes for usage in usages)
    return dict(zip(METERED, (received, sum(usage.sent.bytes for usage in usages)), strict=True))


def capacity_of(rates: Rates) -> int:
    """Return the whole Mbit/s that there are in both directions."""
    return min(rates.sent, rates.received) // MEGA


def _booked(rates: Rates) -> int:
    """Return the whole Mbit/s that are gone in one direction or the other."""
    return -(-max(rates.sent, rates.received) // MEGA)
