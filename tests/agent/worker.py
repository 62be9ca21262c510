"""What the agent's tests look at and drive: records, kernel objects, a job that talks on request.

Records are read from the journal file itself (by a process of the lab: SQLite resolves links in
paths) and kernel objects from the lab's own namespaces, so that a test can look at any time, also
while no agent runs.
`Talker` is a job whose traffic is known to the byte without a capture: datagrams of one size.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from lark_agent.accounting.journal import decode
from lark_agent.model import Count
from tests.lab.topology import CAMPUS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lark_agent.model import Record
    from tests.lab.process import Process
    from tests.lab.world import Lab

PATIENCE_SECONDS = 40.0
QUICK = """
[accounting]
interval_seconds = 1
[pool]
slots = 4
ready = 1
wait_seconds = 10
drain_seconds = 3
"""
"""A small worker that samples every second."""
TALK = """
import itertools, pathlib, socket, sys, time
there = pathlib.Path(sys.argv[1])
family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
sock.connect((sys.argv[2], int(sys.argv[3])))
(there / "ready").touch()
for number in itertools.count(1):
    while not (there / f"talk{number}").exists():
        if (there / "end").exists():
            raise SystemExit(0)
        time.sleep(0.01)
    for _ in range(100):
        try:
            sock.send(bytes(1000))
        except OSError:
            pass
    (there / f"talked{number}").touch()
"""
ONCE = Count(100, 102_800)
"""What one `Talker.talk` puts on the wire."""
READ = """
import sqlite3
db = sqlite3.connect("file:/var/lib/lark/journal.sqlite?mode=ro", uri=True, timeout=10)
for (body,) in db.execute("SELECT body FROM attachments ORDER BY attachment_id"):
    print(body.decode())
"""
_names = itertools.count(1)


def times(count: Count, number: int) -> Count:
    return Count(count.packets * number, count.bytes * number)


def python(code: str, *arguments: str) -> list[str]:
    """Return the command that runs a program text."""
    return ["/usr/bin/python3", "-I", "-S", "-c", code, *arguments]


def wanted(profiles: Mapping[str, str]) -> str:
    """Configure profiles, one of which a job picks by `Want` in its ad."""
    return "".join(
        f"""
[profiles.{name}]
{settings}
[[rules]]
when = 'Want == "{name}"'
profile = "{name}"
"""
        for name, settings in profiles.items()
    )


def until(true: Callable[[], Any], what: str, timeout: float = PATIENCE_SECONDS) -> Any:
    """Ask until the answer is true and return it; fails with `what` after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (answer := true()):
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)
    return answer


def records(lab: Lab) -> dict[str, Record]:
    """Return the journal's latest record of every job, by job id."""
    bodies = lab.run(python(READ)).stdout.encode().splitlines()
    found = [decode(body) for body in bodies]
    return {record.job.job_id: record for record in found}


def final(lab: Lab, job_id: str) -> Record:
    """Wait for the final record of a job."""

    def ended() -> Record | None:
        record = records(lab).get(job_id)
        return record if record is not None and record.final else None

    answer: Record = until(ended, f"final record of {job_id}")
    return answer


def drops(record: Record) -> dict[str, int]:
    """Return packets dropped by reason."""
    return {drop.reason: drop.count.packets for drop in record.usage.drops}


def sandboxes(lab: Lab) -> set[str]:
    """Return the names of the namespaces of sandboxes."""
    place = lab.path("/run/netns")
    return {entry.name for entry in place.iterdir() if entry.name.startswith("lark")}


def links(lab: Lab) -> set[str]:
    """Return the names of the sandboxes' links on the worker."""
    devices = lab.path(f"/proc/{1}/net/dev").read_text().splitlines()
    names = {line.partition(":")[0].strip() for line in devices}
    return {name for name in names if name.startswith("lark")}


def pins(lab: Lab) -> Path:
    """Return where the datapath is pinned."""
    return lab.path("/sys/fs/bpf/lark")


def in_kernel(lab: Lab) -> set[str]:
    """Return everything of the agent's that the kernel holds."""
    tables = {
        line for line in lab.run(["nft", "list", "tables"]).stdout.splitlines() if "lark" in line
    }
    return sandboxes(lab) | links(lab) | tables | ({"pins"} if pins(lab).exists() else set())


def refused_start(lab: Lab, config: str, *, user: str = "root") -> tuple[int, str]:
    """Start an agent that must not come up; returns its status and its words."""
    command = lab._daemon("lark-agent", config)
    done = lab.run(command, user=user, check=False, timeout=60)
    return done.returncode, done.stderr


def kill(agent: Process) -> None:
    """SIGKILL an agent and wait for its end."""
    agent.signal(9)
    agent.wait()


class Talker:
    """A running job that sends `ONCE` to the campus whenever it is told to."""

    def __init__(
        self, lab: Lab, *, user: str = "alice", to: str = CAMPUS.ipv4, port: int = 9,
        start: Callable[[list[str]], Any] | None = None,
    ) -> None:  # fmt: skip
        """`start` starts it otherwise than as a job of its own."""
        inside = f"/run/lab/home/{user}/talker{next(_names)}"
        self._there = lab.path(inside)
        self._there.mkdir()
        self._there.chmod(0o777)
        self._turns = itertools.count(1)
        command = python(TALK, inside, to, str(port))
        self.job: Any = start(command) if start else lab.start_job(command, user=user)
        until(self._exists("ready"), "a job that starts")

    def talk(self) -> None:
        """Let it send, and wait until it has."""
        number = next(self._turns)
        (self._there / f"talk{number}").touch()
        until(self._exists(f"talked{number}"), "a job that talks")

    def end(self) -> None:
        """Let it end, and wait until it has."""
        (self._there / "end").touch()
        assert self.job.result().status == 0

    def _exists(self, name: str) -> Callable[[], bool]:
        return (self._there / name).exists
