"""The firewall's table, packet by packet: each of its rules is there for something.

`probes.py` has the packets, `rows.py` which of them fails without which rule. The rules are those
of `firewall.ruleset` itself, read from its text: with one taken out, its probe must turn out the
other way.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from lark_agent.linux import nftables
from lark_agent.model import Port
from lark_agent.sandbox import firewall
from lark_agent.sandbox.services import DNS, Services
from tests.sandbox.probes import LISTED, LOOPBACK, MARKING, OPEN, PROBES, SHARE
from tests.sandbox.rows import ROWS
from tests.sandbox.wall import ADDRESSING, IPV4, IPV6, LONG, POOL, SHORT, Wall

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

STUB = IPv4Address("127.0.0.53")
OPENINGS = {
    "open4": [IPV4.routed[0]],
    "open6": [IPV6.routed[0]],
    "ports4": [f"{IPV4.routed[1]} . udp . {OPEN}"],
    "ports6": [f"{IPV6.routed[1]} . udp . {OPEN}"],
    "inward4": [f"udp . {OPEN} : {IPV4.jobs[0]}"],
    "inward6": [f"udp . {OPEN} : {IPV6.jobs[0]}"],
}


def written(*, router: bool) -> str:
    """Return the table of a worker with everything that makes rules."""
    loopback = Port("udp", LOOPBACK)
    services = Services(frozenset({*DNS, Port("udp", LISTED), loopback}), frozenset({loopback}))
    closed = () if router else ("ipv4", "ipv6")
    worker = firewall.Worker(services, STUB, closed, SHARE * (ADDRESSING.slots + 1), POOL)
    return firewall.ruleset(ADDRESSING, worker, OPENINGS)


def rows(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, chain, rule) of a table's text."""
    chain = ""
    for number, line in enumerate(text.splitlines()):
        if begun := re.fullmatch(r"  chain (\S+) {", line):
            chain = begun[1]
        elif line == "  }":
            chain = ""
        elif chain and line.strip() and not line.lstrip().startswith("type "):
            yield number, chain, line.strip()


def test_every_rule_has_its_probe() -> None:
    """No rule without a packet that needs it, and no packet for a rule that is gone."""
    found = [row[1:] for row in rows(written(router=False))]
    assert sorted(found) == sorted(ROWS)
    assert set(ROWS.values()) <= PROBES.keys()


@pytest.fixture
def wall(fresh_host: Path) -> Wall:
    made = Wall()
    nftables.run(MARKING)
    return made


@pytest.mark.parametrize("name", PROBES)
def test_the_firewall(wall: Wall, name: str) -> None:
    """What must not be heard is not heard, and what must be is: see `probes.py`."""
    probe = PROBES[name]
    nftables.run(written(router=probe.router))
    wall.begin(LONG if probe.passes else SHORT)
    assert probe.heard(wall) == probe.passes


@pytest.mark.parametrize("row", ROWS, ids=[f"{chain}: {rule}" for chain, rule in ROWS])
def test_without_a_rule_its_probe_fails(wall: Wall, row: tuple[str, str]) -> None:
    """Each rule keeps something off, or lets something through, that nothing else does."""
    probe = PROBES[ROWS[row]]
    lines = written(router=probe.router).splitlines()
    (number,) = [number for number, *found in rows("\n".join(lines)) if tuple(found) == row]
    nftables.run("\n".join(lines[:number] + lines[number + 1 :]))
    wall.begin(SHORT if probe.passes else LONG)
    assert probe.heard(wall) != probe.passes
