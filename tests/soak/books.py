"""The collector's books beside the wire."""

from __future__ import annotations

import json
import time
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from lark_agent.model import Count
from tests.lab.capture import flows
from tests.lab.process import LabError
from tests.lab.topology import WORKER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.lab.world import Lab

PATIENCE_SECONDS = 120


def on_the_wire(captures: Iterable[Path], prefixes: Iterable[str]) -> tuple[Count, Count]:
    """Return what left the worker and its jobs, and what came for them, as far hosts saw it."""
    networks = [ip_network(prefix) for prefix in (WORKER.ipv4, WORKER.ipv6, *prefixes)]
    known: dict[str, bool] = {}

    def ours(address: str) -> bool:
        if address not in known:
            known[address] = any(ip_address(address) in network for network in networks)
        return known[address]

    sent, received = Count(), Count()
    for capture in captures:
        for packet in flows(capture):
            if ours(packet.src):
                sent += Count(1, packet.ip_len)
            elif ours(packet.dst):
                received += Count(1, packet.ip_len)
    return sent, received


def in_the_books(lab: Lab) -> tuple[Count, Count]:
    """Return what the collector's totals say."""
    said = json.loads(lab.run(["lark", "usage", "--by", "worker", "--json"]).stdout)
    sent, received = Count(), Count()
    for row in said["totals"]:
        sent += Count(row["sent"]["packets"], row["sent"]["bytes"])
        received += Count(row["received"]["packets"], row["received"]["bytes"])
    return sent, received


def await_finals(lab: Lab, ran: Iterable[str]) -> list[str]:
    """Wait until the collector has a final record of every job; returns what is wrong with them."""
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
    return [f"{name} has two records" for name in twice] + [f"{name} is truncated" for name in cut]
