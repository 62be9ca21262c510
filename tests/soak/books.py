"""The collector's books beside the wire, job by job.

Whose a packet was is read off the wire alone: with `nat` its port on the worker's address lies in
the block of a slot, with `routed` its address is a slot's. Slots are used again, and records tell
their jobs apart by time, as they do for whoever asks about an address seen outside: a packet is of
the last job that the slot was given to before it was seen. Where it was seen is its class.

So each record is compared for itself: packets and bytes, in both directions, by class. A packet of
no record is a difference too.
"""

from __future__ import annotations

import json
import time
from bisect import bisect
from collections import defaultdict
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple

from lark_agent.model import Count
from tests.lab.capture import timed
from tests.lab.process import LabError
from tests.lab.topology import WORKER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tests.lab.world import Lab

PATIENCE_SECONDS = 120
NOBODY = "no record"
_WITH_PORTS = {6, 17}


class Entry(NamedTuple):
    """What is compared: one direction of one class of one record."""

    attachment_id: str
    traffic_class: str
    direction: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Books and wire."""

    records: int
    """How many there were, with or without a packet."""
    sent: Count
    """On the wire, as `received`."""
    received: Count
    difference: Count
    """Sum over all entries, without signs."""
    wrong: tuple[str, ...]
    """The first entries that differ."""


def compare(
    jobs: Sequence[Mapping[str, Any]], captures: Mapping[str, Path], prefixes: Iterable[str]
) -> Comparison:
    """Compare records with captures, whose names are classes; `prefixes` are the routed jobs'."""
    booked = in_the_books(jobs)
    wired = on_the_wire(Slots(jobs, prefixes), captures)
    differing = {
        entry: (booked.get(entry, Count()), wired.get(entry, Count()))
        for entry in sorted(booked.keys() | wired.keys())
        if booked.get(entry) != wired.get(entry)
    }
    return Comparison(
        len(jobs),
        _sum(count for entry, count in wired.items() if entry.direction == "sent"),
        _sum(count for entry, count in wired.items() if entry.direction == "received"),
        _sum(
            Count(abs(book.packets - wire.packets), abs(book.bytes - wire.bytes))
            for book, wire in differing.values()
        ),
        tuple(f"{entry}: books {b}, wire {w}" for entry, (b, w) in [*differing.items()][:10]),
    )


def in_the_books(jobs: Iterable[Mapping[str, Any]]) -> dict[Entry, Count]:
    """Return what records say, less what is nothing."""
    found = {}
    for job in jobs:
        for each in job["classes"]:
            for direction in ("sent", "received"):
                count = Count(each[direction]["packets"], each[direction]["bytes"])
                if count:
                    found[Entry(job["attachment_id"], each["class"], direction)] = count
    return found


def on_the_wire(slots: Slots, captures: Mapping[str, Path]) -> dict[Entry, Count]:
    """Return what captures say of the worker and its jobs."""
    packets: dict[Entry, int] = defaultdict(int)
    octets: dict[Entry, int] = defaultdict(int)
    for traffic_class, file in captures.items():
        for at_ns, packet in timed(file):
            ports = (packet.sport, packet.dport) if packet.proto in _WITH_PORTS else (0, 0)
            direction, owner = "sent", slots.owner(packet.src, ports[0], at_ns)
            if owner is None:
                direction, owner = "received", slots.owner(packet.dst, ports[1], at_ns)
            if owner is None:
                continue  # the far host and its router find each other
            entry = Entry(owner, traffic_class, direction)
            packets[entry] += 1
            octets[entry] += packet.ip_len
    return {entry: Count(number, octets[entry]) for entry, number in packets.items()}


class Slots:
    """Who had a port or an address when."""

    def __init__(self, jobs: Iterable[Mapping[str, Any]], prefixes: Iterable[str]) -> None:
        self._networks = [ip_network(prefix) for prefix in prefixes]
        self._ours = {WORKER.ipv4: True, WORKER.ipv6: True}
        self._first_of: dict[int, int] = {}
        self._held: dict[str | int, list[tuple[int, str]]] = defaultdict(list)
        for job in jobs:
            places: list[str | int] = []
            if job["connectivity"] == "routed":
                places = [job["ipv4"], job["ipv6"]]
            elif first := job["first_port"]:
                places = [first]
                self._first_of |= dict.fromkeys(range(first, job["last_port"] + 1), first)
            for place in places:
                self._held[place].append((job["started_ns"], job["attachment_id"]))
        for whose in self._held.values():
            whose.sort()

    def owner(self, address: str, port: int, at_ns: int) -> str | None:
        """Return whose an address was, or the worker's with a port; None if it is another's."""
        if address not in self._ours:
            self._ours[address] = any(ip_address(address) in each for each in self._networks)
        if not self._ours[address]:
            return None
        of_worker = address in {WORKER.ipv4, WORKER.ipv6}
        place = self._first_of.get(port, 0) if of_worker else address
        holders = self._held.get(place, [])
        before = bisect(holders, (at_ns, "~"))
        return holders[before - 1][1] if before else NOBODY


def await_finals(lab: Lab, ran: Iterable[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Wait until every job has a final record at the collector; returns all, and what is wrong."""
    wanted = set(ran)
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        jobs = json.loads(lab.run(["lark", "jobs", "--limit", "0", "--json"]).stdout)["jobs"]
        missing = wanted - {job["job_id"] for job in jobs if job["final"]}
        open_ = [job["job_id"] for job in jobs if not job["final"]]
        if not missing and not open_:
            break
        if time.monotonic() > end:
            raise LabError(f"no final records of {sorted(missing)[:5]}, open {open_[:5]} …")
        time.sleep(0.5)
    ids = [job["job_id"] for job in jobs]
    twice = (
        sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    )
    cut = [job["job_id"] for job in jobs if job["exit_reason"] == "truncated"]
    wrong = [f"{name} has two records" for name in twice] + [f"{name} is truncated" for name in cut]
    return jobs, [*wrong, *_other_totals(lab, jobs)]


def _other_totals(lab: Lab, jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell where `lark usage` says something else than the sum of the records."""
    said = json.loads(lab.run(["lark", "usage", "--by", "worker", "--json"]).stdout)
    wrong = []
    for direction in ("sent", "received"):
        totals, records = (
            _sum(Count(row[direction]["packets"], row[direction]["bytes"]) for row in rows)
            for rows in (said["totals"], jobs)
        )
        if totals != records:
            wrong.append(f"{direction}: lark usage has {totals}, the records come to {records}")
    return wrong


def _sum(counts: Iterable[Count]) -> Count:
    return sum(counts, Count())
