"""What goes wrong: one fault after the other, from a deck that a seed shuffles.

A deck has each fault as often as its weight, and every one of them at its front once, so that even
a short run meets them all. `outages` are the times in which a job may be refused: there was no
agent, or no room for its record. They take at most half of the time, whatever the machine is busy
with: what an outage took, there is quiet afterwards.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

from tests.lab.process import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.lab.process import Process
    from tests.lab.world import Lab

STATE = "/var/lib/lark"
STORE = "/var/lib/lark-collector"
# names are not lost: a resolver that waits five seconds for each is not what is tried here
LOSSY = """
table inet loss {
    chain incoming {
        type filter hook input priority 0;
        meta length > 300 tcp flags & (fin | syn | rst) == 0 numgen random mod 100 < 1 counter drop
        meta l4proto udp th dport != 53 numgen random mod 100 < 5 counter drop
    }
    chain outgoing {
        type filter hook output priority 0;
        meta length > 300 tcp flags & (fin | syn | rst) == 0 numgen random mod 100 < 1 counter drop
    }
}
"""
LOSING = ("campus", "internet")
WEIGHTS = {
    "agent killed": 6,
    "agent stopped": 2,
    "policy reloaded": 2,
    "collector killed": 4,
    "collector away": 2,
    "disk full": 2,
    "collector's disk full": 1,
}
AFTERWARDS_SECONDS = 3.0
"""After an outage, a job may still be refused so long."""


class Faults:
    """Agent and collector of a laboratory, and what happens to them."""

    def __init__(self, lab: Lab, agent: str, collector: str, seed: int) -> None:
        self._lab = lab
        self._agent_config, self._collector_config = agent, collector
        self._chance = random.Random(seed)
        self._deck = self._shuffled()
        self.met: Counter[str] = Counter()
        self.lost: dict[str, int] = {}
        """Packets that each far host did not let through."""
        self.outages: list[tuple[float, float]] = []
        """Begin and end; the end of one that lasts is never."""
        self.words: list[str] = []
        """Logs of daemons that are gone."""
        self.collector = lab.collector(collector)
        self.agent = lab.agent(agent)
        self._strikes: dict[str, Callable[[], None]] = {
            "agent killed": lambda: self._renew_agent(signal.SIGKILL),
            "agent stopped": lambda: self._renew_agent(signal.SIGTERM),
            "policy reloaded": lambda: self.agent.signal(signal.SIGHUP),
            "collector killed": lambda: self._renew_collector(signal.SIGKILL, 0),
            "collector away": lambda: self._renew_collector(
                signal.SIGTERM, self._chance.uniform(1, 6)
            ),
            "disk full": self._fill_disk,
            "collector's disk full": lambda: self._fill(STORE),
        }

    def lose_packets(self) -> None:
        """Let the far hosts lose some, from now on."""
        for host in LOSING:
            self._lab.run(["nft", "-f", "-"], host=host, stdin=LOSSY)

    def keep_packets(self) -> None:
        """Let the far hosts lose nothing any more, and see what they did."""
        for host in LOSING:
            listed = self._lab.run(["nft", "-j", "list", "table", "inet", "loss"], host=host)
            self.lost[host] = sum(
                part["counter"]["packets"]
                for each in json.loads(listed.stdout)["nftables"]
                for part in each.get("rule", {}).get("expr", [])
                if "counter" in part
            )
            self._lab.run(["nft", "delete", "table", "inet", "loss"], host=host)

    def strike(self) -> None:
        """Let one thing happen, and wait a moment."""
        name, begun = next(self._deck), time.monotonic()
        self._strikes[name]()
        self.met[name] += 1
        took = time.monotonic() - begun
        time.sleep(max(took, self._chance.uniform(0.2, 3)))

    def daemons(self) -> dict[str, Process]:
        """Return the two that run now, by name."""
        return {"agent": self.agent, "collector": self.collector}

    def kills(self) -> int:
        """Return how many daemons were killed."""
        return self.met["agent killed"] + self.met["collector killed"]

    def unmet(self) -> list[str]:
        """Return what did not happen."""
        kept = [f"packets lost at {host}" for host, number in self.lost.items() if not number]
        return [name for name in WEIGHTS if not self.met[name]] + kept

    def explain(self, begun: float, ended: float) -> bool:
        """Tell whether a job that ran from begin to end may have been refused."""
        return any(
            since <= ended and begun <= until + AFTERWARDS_SECONDS for since, until in self.outages
        )

    def log(self) -> str:
        """Return what all daemons said."""
        return "".join([*self.words, self.agent.stderr, self.collector.stderr])

    def _shuffled(self) -> Iterator[str]:
        first = list(WEIGHTS)
        self._chance.shuffle(first)
        yield from first
        while True:
            deck = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
            self._chance.shuffle(deck)
            yield from deck

    @contextlib.contextmanager
    def _outage(self) -> Iterator[None]:
        begun = time.monotonic()
        self.outages.append((begun, float("inf")))
        yield
        self.outages[-1] = (begun, time.monotonic())

    def _renew_agent(self, number: signal.Signals) -> None:
        with self._outage():
            self._end(self.agent, number)
            time.sleep(self._chance.choice([0.0, 0.0, 1.0]))
            self.agent = self._lab.agent(self._agent_config)

    def _renew_collector(self, number: signal.Signals, away: float) -> None:
        self._end(self.collector, number)
        time.sleep(away)
        self.collector = self._lab.collector(self._collector_config)

    def _fill_disk(self) -> None:
        with self._outage():
            self._fill(STATE)

    def _fill(self, place: str) -> None:
        ballast = f"{place}/ballast"
        self._lab.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=4k"], check=False)
        time.sleep(self._chance.uniform(0.5, 2))
        with contextlib.suppress(FileNotFoundError):
            self._lab.path(ballast).unlink()

    def _end(self, process: Process, number: signal.Signals) -> None:
        process.signal(number)
        try:
            process.wait(30)
        except LabError:
            self.words.append(process.stderr)
            raise
        self.words.append(process.stderr)
