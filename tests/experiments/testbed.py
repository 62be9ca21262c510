"""The laboratory with links of a known rate, an agent with a policy, and streams that are watched.

::

    with Testbed(policy, link="1 Gbit/s") as bed:
        flow = bed.download(seconds=10, ad={"Kind": "cms"})
        flow.series()

Every stream has a job of its own, started through lark-run, and a server of its own on the campus.
A *download* is watched in the job, an *upload* at its server: each where the packets arrive, behind
all queues. The link between worker and router has the given rate in both directions, at the two
interfaces that send into it (`worker0` of the router, `uplink0` of the worker), and deep queues, so
nothing is lost on it. All streams have the same window: on a link without management they then
share equally, as LARK's did, instead of measuring which of them began first.

Unlike for captures, segments stay together as on hosts with offloads: cutting 83,000 packets a
second at the far end would take the cores that jobs need to fill the link.

Both ends run with a better priority than the rest of the machine: a giver that pauses gives its
turn away, and a taker looks at the counters.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lark_agent.quantities import rates
from tests.experiments import traffic
from tests.experiments.windows import Series
from tests.lab.process import LabError
from tests.lab.topology import CAMPUS, ROUTER, WORKER
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.lab.jobs import AdValue, JobHandle
    from tests.lab.process import Process

PROGRAM = Path(traffic.__file__).read_text()
UPLINK = "1 Gbit/s"
"""What all jobs together may use: by `[uplink] rate` with management, by the link without."""
LINK = "1.2 Gbit/s"
"""The link of managed runs. It is faster than what the worker gives out, as the queue for downloads
must form in the worker: on a link that is exactly as fast, it would form at the router, which knows
no jobs. What has queued there nevertheless, as when streams begin, drains with the difference."""
FIRST_PORT = 20000
NARROW, WIDE = "4096 65536 131072", "4096 524288 524288"
"""Of the far host's TCP (net.ipv4.tcp_rmem, tcp_wmem): twice the lab's, and eight times."""
NICENESS = -15
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Flow:
    """One stream: a job, its server, and which of them takes."""

    job: JobHandle
    server: Process
    job_takes: bool
    seconds: float

    def connected(self) -> bool:
        """Tell whether the job has reached its server."""
        return '"connected"' in self.server.stdout

    def series(self) -> Series:
        """Wait for the end and return what was received."""
        _, taker = self._ends()
        return Series.of(taker["samples"])

    def took(self) -> float:
        """Wait for the end of a transfer of a number of bytes and return its seconds."""
        giver, _ = self._ends()
        return float(giver["ended"] - giver["began"]) / 1e9

    def _ends(self) -> tuple[dict[str, Any], dict[str, Any]]:
        done = self.job.result(self.seconds + PATIENCE_SECONDS)
        if done.status != 0:
            raise LabError(f"a job's stream failed ({done.status}): {done.stderr}")
        self.server.wait(PATIENCE_SECONDS)
        ours, theirs = _last(done.stdout), _last(self.server.stdout)
        return (theirs, ours) if self.job_takes else (ours, theirs)


class Testbed:
    """One laboratory for an experiment; a context manager."""

    __test__ = False

    def __init__(self, policy: str, link: str, buffers: str = NARROW) -> None:
        self._policy, self._link, self._buffers = policy, rates(link), buffers
        self._ports = itertools.count(FIRST_PORT)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.lab = stack.enter_context(Lab())
            self._set_links()
            self._agent = self.lab.agent(self._policy)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def download(
        self, *, seconds: float, octets: int = 0, ad: Mapping[str, AdValue] | None = None
    ) -> Flow:
        """Start a job that receives, for some seconds or (if not 0) some bytes."""
        return self._flow("take", seconds, octets, ad)

    def upload(
        self, *, seconds: float, octets: int = 0, ad: Mapping[str, AdValue] | None = None
    ) -> Flow:
        """Start a job that sends, for some seconds or (if not 0) some bytes."""
        return self._flow("give", seconds, octets, ad)

    def wait_connected(self, *flows: Flow) -> int:
        """Wait until all streams are there; returns the time (ns)."""
        _until(lambda: all(flow.connected() for flow in flows), self._agent)
        for flow in flows:
            for process in (flow.job.pid, flow.server.pid):
                os.setpriority(os.PRIO_PROCESS, process, NICENESS)
        return time.monotonic_ns()

    def _flow(
        self, job: str, seconds: float, octets: int, ad: Mapping[str, AdValue] | None
    ) -> Flow:
        port, amount = str(next(self._ports)), (str(seconds), str(octets))
        server = "give" if job == "take" else "take"
        python = ["/usr/bin/python3", "-I", "-S", "-c", PROGRAM]
        listening = self.lab.service([*python, "listen", server, port, *amount], host=CAMPUS.name)
        started = self.lab.start_job(
            [*python, "connect", job, CAMPUS.ipv4, port, *amount], ad={"Kind": "none", **(ad or {})}
        )
        return Flow(started, listening, job == "take", seconds)

    def _set_links(self) -> None:
        ways = ((WORKER.name, "add", WORKER.interface, self._link.sent),
                (ROUTER, "change", "worker0", self._link.received),
                (ROUTER, "change", "campus0", max(self._link.sent, 5 * 10**9)))  # fmt: skip
        for host, verb, interface, rate in ways:
            # a millisecond at once, as the timer of a busy machine may be late; and 65 kB, a
            # super-packet, at least
            burst = max(rate // 8000, 1 << 17)
            tbf = ["tbf", "rate", f"{rate}bit", "burst", str(burst), "limit", "200m"]
            command = ["tc", "qdisc", verb, "dev", interface, "root", *tbf]
            self.lab.run(command, host=host)
        far = ((CAMPUS.name, CAMPUS.interface), (ROUTER, "worker0"), (ROUTER, "campus0"))
        for host, interface in far:
            features = [word for name in ("tso", "gso", "gro") for word in (name, "on")]
            self.lab.run(["ethtool", "-K", interface, *features], host=host)
        for key in ("tcp_rmem", "tcp_wmem"):
            self.lab.run(["sysctl", "-qw", f"net.ipv4.{key}={self._buffers}"], host=CAMPUS.name)


def _last(text: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(text.splitlines()[-1])
    return told


def _until(condition: Callable[[], bool], agent: Process) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise LabError(f"streams are not connected; the agent said:\n{agent.stderr[-4000:]}")
        time.sleep(0.01)
