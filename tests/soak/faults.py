"""What goes wrong: one fault after the other, chosen by a seed."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

from tests.lab.process import LabError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.process import Process
    from tests.lab.world import Lab

STATE = "/var/lib/lark"
BALLAST = f"{STATE}/ballast"
LOSSY = """
table inet loss {
    chain incoming {
        type filter hook input priority 0;
        meta length > 300 tcp flags & (fin | syn | rst) == 0 numgen random mod 100 < 1 drop
        meta l4proto udp numgen random mod 100 < 5 drop
    }
    chain outgoing {
        type filter hook output priority 0;
        meta length > 300 tcp flags & (fin | syn | rst) == 0 numgen random mod 100 < 1 drop
    }
}
"""


class Faults:
    """Agent and collector of a laboratory, and what happens to them."""

    def __init__(self, lab: Lab, agent: str, collector: str, seed: int) -> None:
        self._lab = lab
        self._agent_config, self._collector_config = agent, collector
        self._chance = random.Random(seed)
        self.met: Counter[str] = Counter()
        self.words: list[str] = []
        """Logs of daemons that are gone."""
        self.collector = lab.collector(collector)
        self.agent = lab.agent(agent)
        self._faults: dict[str, tuple[int, Callable[[], None]]] = {
            "agent killed": (6, self._kill_agent),
            "agent stopped": (2, self._stop_agent),
            "policy reloaded": (2, self._reload),
            "collector killed": (4, self._kill_collector),
            "collector away": (2, self._lose_collector),
            "disk full": (2, self._fill_disk),
        }

    def lose_packets(self) -> None:
        """Let the far hosts lose some, from now on."""
        for host in ("campus", "internet"):
            self._lab.run(["nft", "-f", "-"], host=host, stdin=LOSSY)

    def keep_packets(self) -> None:
        """Let the far hosts lose nothing any more."""
        for host in ("campus", "internet"):
            self._lab.run(["nft", "delete", "table", "inet", "loss"], host=host)

    def strike(self) -> None:
        """Let one thing happen, and wait a moment."""
        names = list(self._faults)
        weights = [weight for weight, _ in self._faults.values()]
        (name,) = self._chance.choices(names, weights)
        self._faults[name][1]()
        self.met[name] += 1
        time.sleep(self._chance.uniform(0.2, 3))

    def kills(self) -> int:
        """Return how many daemons were killed."""
        return self.met["agent killed"] + self.met["collector killed"]

    def log(self) -> str:
        """Return what all daemons said."""
        return "".join([*self.words, self.agent.stderr, self.collector.stderr])

    def _kill_agent(self) -> None:
        self._end(self.agent, signal.SIGKILL)
        time.sleep(self._chance.choice([0.0, 0.0, 1.0]))
        self.agent = self._start_agent()

    def _stop_agent(self) -> None:
        self._end(self.agent, signal.SIGTERM)
        self.agent = self._start_agent()

    def _start_agent(self) -> Process:
        return self._lab.agent(self._agent_config)

    def _reload(self) -> None:
        self.agent.signal(signal.SIGHUP)

    def _kill_collector(self) -> None:
        self._end(self.collector, signal.SIGKILL)
        self.collector = self._lab.collector(self._collector_config)

    def _lose_collector(self) -> None:
        self._end(self.collector, signal.SIGTERM)
        time.sleep(self._chance.uniform(1, 6))
        self.collector = self._lab.collector(self._collector_config)

    def _fill_disk(self) -> None:
        self._lab.run(["dd", "if=/dev/zero", f"of={BALLAST}", "bs=4k"], check=False)
        time.sleep(self._chance.uniform(0.5, 2))
        with contextlib.suppress(FileNotFoundError):
            self._lab.path(BALLAST).unlink()

    def _end(self, process: Process, number: signal.Signals) -> None:
        process.signal(number)
        try:
            process.wait(30)
        except LabError:
            self.words.append(process.stderr)
            raise
        self.words.append(process.stderr)
