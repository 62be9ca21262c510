"""Jobs of several kinds, started one after the other by a few threads at once.

Every kind says what its jobs move, so a record can be wrong about a job even if all records
together are right about the wire. A job that was let in and ends by itself ends with status 0,
whatever happens to agent, collector, disk and packets meanwhile.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from tests.lab.process import LabError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.lab.jobs import AdValue
    from tests.lab.world import Lab

REFUSED = 125
PAUSE_SECONDS = 1.0
DATAGRAMS = """
import socket, sys
for family, address in ((socket.AF_INET, "198.51.100.10"), (socket.AF_INET6, "2001:db8:3::10")):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for _ in range(40):
            sock.sendto(bytes(700), (address, 9))
"""
TALKS = """
import socket
for number in range(20):
    with socket.create_connection(("server.campus.test", 7), 20) as sock:
        sock.sendall(b"x" * (1 + 50 * number))
        sock.recv(4096)
"""
# ends, and leaves a child that goes on sending
LEAVES = """
import os, socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if os.fork() == 0:
    os.setsid()
    for _ in range(50):
        sock.sendto(bytes(500), ("203.0.113.10", 9))
        time.sleep(0.002)
sock.sendto(bytes(100), ("203.0.113.10", 9))
"""
UPLOAD = "head -c 300000 /dev/zero > out && curl -sS -m 60 -T out http://server.campus.test/out"


@dataclass(frozen=True, slots=True)
class Moves:
    """Least and most IP bytes in one direction; no most: what is lost is sent again."""

    least: int = 0
    most: int | None = 0

    def fits(self, number: int) -> bool:
        """Tell whether a record may say so."""
        return self.least <= number and (self.most is None or number <= self.most)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job, and what each of its jobs moves if it ends with status 0."""

    name: str
    command: tuple[str, ...]
    sent: Moves = Moves()
    received: Moves = Moves()
    ad: Mapping[str, AdValue] = field(default_factory=dict)
    lives: float = 0.0
    """Seconds after which it is killed; 0: it ends by itself."""


def _python(code: str) -> tuple[str, ...]:
    return ("/usr/bin/python3", "-I", "-S", "-c", code)


def _fetch(family: str, host: str, size: int, *more: str) -> tuple[str, ...]:
    url = f"http://server.{host}.test/bytes/{size}"
    return ("curl", "-sS", "-m", "60", family, *more, "-o", "/dev/null", url)


def _at_least(number: int) -> Moves:
    return Moves(number, None)


ROUTED: Mapping[str, AdValue] = {"Want": "routed"}
SOME = _at_least(1)
ALL_DATAGRAMS = Moves(40 * (28 + 700) + 40 * (48 + 700), 40 * (28 + 700) + 40 * (48 + 700))
ALL_TALK = _at_least(sum(1 + 50 * number for number in range(20)))
KINDS = (
    Kind("nothing", ("true",)),
    Kind("datagrams", _python(DATAGRAMS), ALL_DATAGRAMS),
    Kind("routed datagrams", _python(DATAGRAMS), ALL_DATAGRAMS, ad=ROUTED),
    Kind("talks", ("/usr/bin/python3", "-I", "-c", TALKS), ALL_TALK, ALL_TALK),
    Kind("download", _fetch("-4", "internet", 500_000), SOME, _at_least(500_000)),
    Kind("IPv6 download", _fetch("-6", "campus", 500_000), SOME, _at_least(500_000)),
    Kind("routed download", _fetch("-6", "internet", 300_000), SOME, _at_least(300_000), ROUTED),
    Kind("upload", ("sh", "-c", UPLOAD), _at_least(300_000), SOME),
    Kind("leaves a child", _python(LEAVES), _at_least(28 + 100)),
    Kind("killed", _fetch("-4", "campus", 50_000_000, "--limit-rate", "2M"), lives=0.4),
    Kind("no network", ("true",), ad={"Want": "none"}),
)
WAYS = ("sandbox of the wrapper", "sandbox of the wrapper", "unprivileged")
USERS = ("alice", "bob")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A job that was not let in: when it was tried, and what it was told."""

    begun: float
    ended: float
    words: str


@dataclass(frozen=True, slots=True)
class Ran:
    """A job that was let in."""

    job_id: str
    kind: Kind
    way: str
    user: str


class Runners:
    """Threads that run jobs until told to stop; kinds and ways from shuffled decks."""

    def __init__(self, lab: Lab, wrappers: Mapping[str, str], seed: int, threads: int) -> None:
        """`wrappers` are the paths of the programs by way."""
        self._lab, self._wrappers = lab, wrappers
        self._chance = random.Random(f"{seed} jobs")
        self._kinds: deque[Kind] = deque()
        self._ways: deque[str] = deque()
        self._stop = threading.Event()
        self._most: float = float("inf")
        self._lock = threading.Lock()
        self.ran: dict[str, Ran] = {}
        """By job id."""
        self.killed: Counter[str] = Counter()
        """Of these it is not known whether they were let in before; by way."""
        self.refused: list[Refusal] = []
        self.broken: list[str] = []
        """What a job met that no fault explains."""
        self._names = [USERS[number % len(USERS)] for number in range(threads)]
        self._threads: list[threading.Thread] = []

    def start(self, most: float = float("inf")) -> None:
        """Begin; stop after about so many jobs."""
        self._stop.clear()
        self._most = self.let_in + most
        self._threads = [
            threading.Thread(target=self._run, args=(user,), daemon=True) for user in self._names
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until so many have run as `start` was told."""
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Let the jobs that run end, and begin no more."""
        self._stop.set()
        self.join()

    @property
    def let_in(self) -> int:
        """Jobs that were not refused."""
        return len(self.ran) + self.killed.total()

    def unmet(self) -> list[str]:
        """Return the kinds, ways and users of which no job was let in."""
        jobs = self.ran.values()
        met = {*(job.kind.name for job in jobs), *(job.way for job in jobs)}
        met |= {job.user for job in jobs} | ({"killed"} if self.killed else set())
        wanted = [*(kind.name for kind in KINDS), *dict.fromkeys(WAYS), *USERS]
        return [name for name in wanted if name not in met]

    def misjudged(self, jobs: Iterable[Mapping[str, Any]]) -> list[str]:
        """Return the records that say what their jobs cannot have moved."""
        wrong = []
        for job in jobs:
            ran = self.ran.get(job["job_id"])
            if ran is None:
                continue
            sent, received = job["sent"]["bytes"], job["received"]["bytes"]
            if not (ran.kind.sent.fits(sent) and ran.kind.received.fits(received)):
                wrong.append(f"{ran.kind.name}: sent {sent} bytes, received {received}")
            if job["owner"] != ran.user:
                wrong.append(f"{ran.kind.name}: a job of {ran.user} is {job['owner']}'s")
        return wrong

    def _run(self, user: str) -> None:
        while not self._stop.is_set() and self.let_in < self._most:
            try:
                self._one(user)
            except LabError as error:
                self.broken.append(str(error))

    def _draw(self) -> tuple[Kind, str]:
        with self._lock:
            if not self._kinds:
                self._kinds.extend(self._chance.sample(KINDS, len(KINDS)))
            if not self._ways:
                self._ways.extend(self._chance.sample(WAYS, len(WAYS)))
            return self._kinds.popleft(), self._ways.popleft()

    def _one(self, user: str) -> None:
        kind, way = self._draw()
        begun = time.monotonic()
        wrapper = self._wrappers[way]
        job = self._lab.start_job(kind.command, user=user, ad=kind.ad, wrapper=wrapper)
        if kind.lives:
            time.sleep(kind.lives)
            with suppress(psutil.NoSuchProcess, LabError):
                job.kill(signal.SIGKILL)
        try:
            done = job.result(120)
        finally:
            self._lab.dismiss(job.starter)
        if done.status == REFUSED:
            self._put_back(kind, way, Refusal(begun, time.monotonic(), done.stderr.strip()))
            return
        with self._lock:
            if kind.lives and done.status == -signal.SIGKILL:
                self.killed[way] += 1
                return
            self.ran[job.job_id] = Ran(job.job_id, kind, way, user)
        if done.status != 0:
            self.broken.append(f"{kind.name}: status {done.status}, {done.stderr.strip()}")

    def _put_back(self, kind: Kind, way: str, refusal: Refusal) -> None:
        with self._lock:
            self._kinds.append(kind)
            self._ways.append(way)
            self.refused.append(refusal)
        self._stop.wait(PAUSE_SECONDS)  # a batch system does not start the next at once, either
