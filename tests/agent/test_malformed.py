"""Malformed HTTP/2 and gRPC on every door of the real agent and the real collector.

Who speaks it is whoever can: a user on the unix sockets, an enrolled worker on the port for
reports, anybody on the one for enrolment. What is said is in `tests.rpc.malformed`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.agent.test_enrollment import AGENT, QUERY, Pool
from tests.agent.worker import ONCE, Talker, final, records, times, until
from tests.lab.filesystem import ROOT
from tests.lab.topology import CAMPUS
from tests.lab.world import Lab
from tests.rpc.malformed import attacks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.process import Process

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
MOST_MEMORY = 64 << 20
"""Bytes that all attacks may have cost a daemon when they are over; 27 MiB were measured."""
MOST_SECONDS = 120
"""For all attacks; 4 to 8 were measured."""
SEED = os.environ.get("LARK_SEED", "1")
"""Of what is random; for who wants to look further."""
ROGUE = "/var/lib/lark/rogue.json"


@dataclass(frozen=True, slots=True)
class Door:
    """Where it is spoken, by whom."""

    method: str
    address: str
    user: str
    host: str = "worker"
    identity: str = ""


DOORS = {
    "agent": Door("lark.v1.Query/ListJobs", "/run/lark/agent.sock", "alice"),
    "collector": Door(
        "lark.v1.Query/ListJobs", "/run/lark-collector/query.sock", "alice", CAMPUS.name
    ),
    "reports": Door(
        "lark.v1.Collector/Report", f"{CAMPUS.ipv4}:9620", "root", identity=ROGUE
    ),
    "enrolment": Door("lark.v1.Enrollment/Enroll", f"{CAMPUS.ipv4}:9621", "alice", identity="-"),
}  # fmt: skip


class Place:
    """A worker that reports to a collector, and another whose key is in the wrong hands."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.pool = Pool(lab)
        rogue = AGENT.replace("w1.", "rogue.") + f'identity = "{ROGUE}"\n'
        lab.path("/etc/lark/rogue.toml").write_text(rogue)
        for options in ((), ("--config", "/etc/lark/rogue.toml")):
            done = self.pool.enroll(self.pool.token(), *options)
            assert done.status == 0, done.stderr
        self.agent = lab.agent(AGENT)
        self.pool.reported()
        self.talker = Talker(lab)
        self.talks = 0

    def fallen(self) -> list[str]:
        """Return the last words of the daemons that have ended."""
        both = (self.agent, self.pool.process)
        return [each.stderr[-2000:] for each in both if each.poll() is not None]

    def serves(self) -> None:
        """Everybody else is served at every door, within a minute each."""
        self.talker.talk()
        self.talks += 1
        for host, command in (("worker", ["lark"]), (CAMPUS.name, QUERY)):
            self.lab.run([*command, "jobs"], user="bob", host=host, timeout=60)
        self.pool.reported()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab() as lab:
        yield Place(lab)


@pytest.mark.parametrize("name", DOORS)
def test_malformed_frames_disturb_nobody(place: Place, name: str) -> None:
    """Others are served meanwhile; what it costs is given back; what is wrong is cut off."""
    door = DOORS[name]
    seen = [psutil.Process(each.pid) for each in (place.agent, place.pool.process)]
    before = [(each.num_fds(), each.memory_info().rss) for each in seen]
    command = [sys.executable, "-m", "tests.rpc.malformed", SEED, door.method, door.address]
    attacker = place.lab.start(
        [*command, door.identity], user=door.user, host=door.host, cwd=str(ROOT)
    )
    until(lambda: _said(attacker) or place.fallen(), "the end of the attacks", MOST_SECONDS)
    assert place.fallen() == []
    ends = json.loads(attacker.stdout)
    place.serves()
    attacker.terminate()
    tried = list(attacks(door.method, SEED))
    assert list(ends) == [attack.name for attack in tried]
    let_be = [each.name for each in tried if each.refused and ends[each.name] != "closed"]
    assert let_be == []
    assert place.fallen() == []
    for each, (descriptors, memory) in zip(seen, before, strict=True):
        until(lambda: each.num_fds() <= descriptors + 8, "descriptors given back")  # noqa: B023  asked in this round
        assert each.memory_info().rss - memory < MOST_MEMORY
    place.serves()
    record = records(place.lab)[place.talker.job.job_id]
    assert not record.final


def test_nothing_was_lost(place: Place) -> None:
    """What a job sent while all of it went on is in its record, at the worker and the collector."""
    place.talker.end()
    record = final(place.lab, place.talker.job.job_id)
    (share,) = record.usage.classes
    assert share.sent == times(ONCE, place.talks)
    until(lambda: record.job.job_id in place.pool.records(), "its record at the collector")


def _said(attacker: Process) -> str:
    """Return what an attacker has to say, once it has come to its end."""
    assert attacker.poll() is None, attacker.stderr
    return attacker.stdout
