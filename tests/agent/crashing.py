"""An agent that is killed at named points, and what may be left of it afterwards.

The names are collected from the source (`lark_agent.crash`). A `Victim` worker has one job, the
witness, that lives through every death; each agent of a chain takes over what the one before left,
and is killed at the next point. So each restart is the recovery from one point and the way to the
next.
"""

from __future__ import annotations

import ast
import contextlib
import json
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent import crash
from tests.agent.launching import Starter
from tests.agent.worker import Talker, in_kernel, python, until
from tests.lab.filesystem import ROOT, STATE
from tests.lab.process import LabError
from tests.lab.world import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.lab.process import Process
    from tests.lab.world import Lab

FILE = STATE / "agent.toml"
CONFIG = """
default_profile = "shared"
[accounting]
interval_seconds = 1
[pool]
slots = 16
ready = 2
drain_seconds = 1
reserve_seconds = 1
hold_seconds = 1
[nat]
rest_seconds = 0
[collector]
address = "127.0.0.1:9620"
insecure = true
[classes]
campus = ["198.51.100.0/24"]
[profiles.shared]
quotas = ["q"]
[quotas.q]
bytes = "10GB"
per = "owner"
action = "cut-class"
"""
# connections of jobs that tracking still knows; deletes them, so ask once
CONNECTIONS = """
from lark_agent.config import AgentSettings
from lark_agent.linux import conntrack
from lark_agent.sandbox.addressing import Addressing
numbers = Addressing.of(AgentSettings())
print(conntrack.forget({a for slot in range(16) for a in numbers.addresses_of(slot)}))
"""
USUAL = {"agent.lock", "agent.sock.d", "numbering", "resolv.conf"}
"""What stays in /run/lark after every stop."""
# three datagrams to campus
SEND = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(3):
    s.sendto(bytes(1000), ("198.51.100.10", 9))
"""
FORWARDING = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"]
PATIENCE_SECONDS = 30.0


def points() -> list[str]:
    """Return the names of all points, in the order of the source; fails if one is not unique."""
    found = []
    for file in sorted((ROOT / "lark_agent").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and (node.func.value.id, node.func.attr) == ("crash", "here")
            ):
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"a name must be a word: {file}"
                found.append(str(name.value))
    assert len(set(found)) == len(found), "a name stands in one place"
    return found


def by_step() -> dict[str, list[str]]:
    """Return the points of each step."""
    found = defaultdict(list)
    for name in points():
        found[name.partition(".")[0]].append(name)
    return found


def start(lab: Lab, point: str = "") -> Process:
    """Start an agent that is to die at a point, or nowhere."""
    command = [str(PROGRAMS / "lark-agent"), "run", "--config", str(FILE)]
    return lab.service(command, env={crash.VARIABLE: point} if point else None)


class Victim:
    """A worker whose agents are killed, and its witness."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        lab.path(FILE).write_text(CONFIG)
        lab.collector()
        self.turns = 0
        agent = start(lab)
        self.witness = Talker(lab)
        self.talk()
        agent.signal(signal.SIGKILL)
        agent.wait()

    def kill_at(self, point: str, provoke: Callable[[Victim, Process], None]) -> None:
        """Start an agent and let it die at a point; the witness talks before and after."""
        try:
            agent = start(self.lab, point)
        except LabError as error:
            if "ended with -9" not in str(error):
                raise
        else:
            self.talk()
            provoke(self, agent)
            assert agent.wait(PATIENCE_SECONDS) == -signal.SIGKILL, f"{point} was not passed"
            assert "Traceback" not in agent.stderr
        self.talk()

    def talk(self) -> None:
        """Let the witness send once."""
        self.witness.talk()
        self.turns += 1


def nothing(_victim: Victim, _agent: Process) -> None:
    """Wait for what the agent does by itself."""


def job(victim: Victim, _agent: Process) -> None:
    """Start a job of somebody who has none; it may be refused, but must not hang."""
    started = victim.lab.start_job(python(SEND), user="bob")
    assert started.result().status in {0, 125}


def reserve(victim: Victim, _agent: Process) -> None:
    """Announce a job and start it, as HTCondor does."""
    starter = Starter(victim.lab)
    starter.start_hook()
    time.sleep(0.3)
    starter.run(python(SEND))


def change(victim: Victim, _agent: Process) -> None:
    """Change what the witness may do."""
    settings = [victim.witness.job.job_id, "set", "reach=all", "--json"]
    victim.lab.run(["lark", "job", *settings], check=False)


def reload(_victim: Victim, agent: Process) -> None:
    """Tell the agent to read its file again."""
    agent.signal(signal.SIGHUP)


STEPS: dict[str, Callable[[Victim, Process], None]] = {
    "pool": nothing,
    "worker": nothing,
    "recovery": nothing,
    "upgrade": nothing,
    "dismantle": nothing,
    "sample": nothing,
    "journal": nothing,
    "ack": nothing,
    "claim": job,
    "grant": job,
    "end": job,
    "settle": job,
    "final": job,
    "lease": job,
    "reservation": reserve,
    "join": reserve,
    "change": change,
    "reload": reload,
}
"""What makes an agent pass the points of a step."""


def leaked(lab: Lab, agent: Process, before: Sequence[str]) -> dict[str, object]:
    """Stop the agent of a worker without jobs; returns everything of it that is still there."""
    until(lambda: not descriptors(agent), "an agent that has closed what it had of jobs")
    assert agent.terminate() == 0
    found: dict[str, object] = {"kernel": in_kernel(lab)}
    snippet = [sys.executable, "-c", CONNECTIONS]
    found["connections"] = int(lab.run(snippet, cwd=str(ROOT)).stdout)
    places = lab.path("/run/lark"), lab.path("/run/lark/agent.sock.d")
    found["files"] = {file.name for place in places for file in place.iterdir()} - USUAL
    found["qdiscs and settings"] = set(state(lab)) ^ set(before)
    return {what: left for what, left in found.items() if left}


def descriptors(agent: Process) -> list[str]:
    """Return what an agent has open of jobs: pidfds, and namespaces."""
    found = []
    for entry in Path(f"/proc/{agent.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return [target for target in found if target.startswith(("anon_inode:[pidfd]", "net:"))]


def state(lab: Lab) -> list[str]:
    """Return queueing disciplines and forwarding of a worker, a line each."""
    qdiscs = json.loads(lab.run(["tc", "-j", "qdisc", "show"]).stdout)
    settings = lab.run(["cat", *FORWARDING]).stdout.split()
    return [f"{q['dev']} {q['kind']}" for q in qdiscs] + [f"forwarding {' '.join(settings)}"]
