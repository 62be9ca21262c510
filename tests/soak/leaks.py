"""What agent, collector and jobs leave behind, beside what there was.

`standing` lists every object that they could leave, by kind: namespaces, links, queueing
disciplines and classifiers, routes, elements and rules of the firewall, tracked connections of
jobs' addresses, pins, mounts, processes, files of state and run directories, settings, and the
descriptors of the two daemons. It is looked at twice: beside daemons that wait, where numbers of
slots are left out, because any of them may be ready; and after both have stopped.

Nothing is deleted by looking. What the daemons that were there first had is what those at the end
may have: they have run a crowd of jobs by then.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.agent.crashing import FORWARDING
from tests.lab.filesystem import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.lab.process import Process
    from tests.lab.world import Lab

PLACES = (
    "/run/lark", "/var/lib/lark", "/run/lark-collector", "/var/lib/lark-collector",
    "/sys/fs/bpf", "/run/netns", "/dev/shm",
)  # fmt: skip
PATIENCE_SECONDS = 60.0
GC = ("lark-agent", "gc", "--dry-run", "--json", "--config")
# connections that tracking knows of jobs' addresses, a line each
CONNECTIONS = """
import sys
from pathlib import Path
from lark_agent.config import AgentSettings, load
from lark_agent.linux import conntrack
from lark_agent.linux.netlink import Netlink
from lark_agent.sandbox.addressing import Addressing
file = Path(sys.argv[1])
settings = load(AgentSettings, file, file)
numbers = Addressing.of(settings)
addresses = {a for slot in range(numbers.slots) for a in numbers.addresses_of(slot)}
with Netlink(conntrack._NETFILTER) as netlink:
    for side in (conntrack._TUPLE_ORIG, conntrack._TUPLE_REPLY):
        for original, *_ in conntrack._entries(netlink, addresses, side):
            print(original.hex())
"""
Standing = dict[str, Counter[str]]


def standing(lab: Lab, config: str, daemons: Mapping[str, Process]) -> Standing:
    """Return what there is, by kind; `config` is the agent's file, inside the lab."""
    ruleset = json.loads(lab.run(["nft", "-j", "list", "ruleset"]).stdout)["nftables"]
    addresses = [sys.executable, "-c", CONNECTIONS, config]
    found = {
        "namespaces": [entry.name for entry in lab.path("/run/netns").iterdir()],
        "links": [link["ifname"] for link in _listed(lab, "ip", "-j", "link")],
        "qdiscs": [f"{q['dev']} {q['kind']}" for q in _listed(lab, "tc", "-j", "qdisc", "show")],
        "routes": [
            f"{family} {_of_a_job(route) or route['dst']} {route.get('dev')}"
            for family in ("-4", "-6")
            for route in _listed(lab, "ip", family, "-j", "route", "show", "table", "all")
        ],
        "nft elements": list(_elements(ruleset)),
        "nft objects": [_object(each) for each in ruleset if "metainfo" not in each],
        "connections": lab.run(addresses, cwd=str(ROOT)).stdout.split(),
        "mounts": [line.split()[1] for line in lab.path("/proc/1/mounts").read_text().splitlines()],
        "processes": list(_processes(lab)),
        "files": [file for place in PLACES for file in _files(lab, place)],
        "settings": lab.run(["cat", *FORWARDING]).stdout.split(),
        **{f"descriptors of the {name}": _descriptors(each) for name, each in daemons.items()},
    }
    return {kind: Counter(names) for kind, names in found.items()}


def beyond(now: Standing, before: Standing) -> dict[str, dict[str, int]]:
    """Return what is there now and was not before, whatever its slot."""
    more = {kind: _slotless(names) - _slotless(before[kind]) for kind, names in now.items()}
    return {kind: dict(names) for kind, names in more.items() if names}


def changed(now: Standing, before: Standing) -> dict[str, dict[str, int]]:
    """Return what came, and with negative numbers what went."""
    found = {}
    for kind, names in now.items():
        names.subtract(before[kind])
        if left := {name: number for name, number in names.items() if number}:
            found[kind] = left
    return found


def await_quiet(
    lab: Lab, config: str, daemons: Mapping[str, Process], before: Standing
) -> dict[str, dict[str, int]]:
    """Wait until daemons have no more than there was; returns what stays."""
    end = time.monotonic() + PATIENCE_SECONDS
    while (left := beyond(standing(lab, config, daemons), before)) and time.monotonic() < end:
        time.sleep(0.5)
    repairs = json.loads(lab.run([*GC, config]).stdout)["repairs"]
    return left | ({"repairs": {str(each): 1 for each in repairs}} if repairs else {})


def _of_a_job(route: Mapping[str, Any]) -> str:
    """Return a word for what follows from the number of a slot."""
    return "a job's" if str(route.get("dev")).startswith("lark") else ""


def _listed(lab: Lab, *command: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(lab.run(command).stdout or "[]")
    return listed


def _elements(ruleset: list[dict[str, Any]]) -> Iterator[str]:
    for each in ruleset:
        for kind in ("set", "map"):
            for element in each.get(kind, {}).get("elem", []):
                yield f"{each[kind]['name']} {json.dumps(element)}"


def _object(each: dict[str, Any]) -> str:
    """Name a table, chain, set or rule, without what moves by itself."""
    ((kind, what),) = each.items()
    text = json.dumps({key: part for key, part in what.items() if key not in {"elem", "handle"}})
    return f"{kind} " + re.sub(r'"(packets|bytes)": \d+', "", text)


def _processes(lab: Lab) -> Iterator[str]:
    """Name what runs in the lab."""
    for entry in lab.path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError):
                yield (entry / "comm").read_text().strip()


def _files(lab: Lab, place: str) -> Iterator[str]:
    top = lab.path(place)
    for folder, folders, names in os.walk(top):
        inside = Path(place) / Path(folder).relative_to(top)
        yield from (str(inside / name) for name in (*folders, *names))


def _descriptors(daemon: Process) -> list[str]:
    """Name what a daemon has open: files by path, everything else by kind."""
    found = []
    for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(re.sub(r"\[\d+\]|#\d+", "", str(entry.readlink())))
    return found


def _slotless(names: Counter[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, number in names.items():
        found[re.sub(r"\b(lark|lport)\d+\b", r"\1#", name)] += number
    return found
