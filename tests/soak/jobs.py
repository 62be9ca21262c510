"""Jobs of several kinds, started one after the other by a few threads at once."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from tests.lab.process import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.lab.jobs import AdValue
    from tests.lab.world import Lab

REFUSED = 125
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
class Kind:
    """A kind of job."""

    name: str
    command: tuple[str, ...]
    ad: Mapping[str, AdValue] = field(default_factory=dict)
    lives: float = 0.0
    """Seconds after which it is killed; 0: it ends by itself."""


def _python(code: str) -> tuple[str, ...]:
    return ("/usr/bin/python3", "-I", "-S", "-c", code)


def _fetch(family: str, host: str, size: int, *more: str) -> tuple[str, ...]:
    url = f"http://server.{host}.test/bytes/{size}"
    return ("curl", "-sS", "-m", "60", family, *more, "-o", "/dev/null", url)


ROUTED: Mapping[str, AdValue] = {"Want": "routed"}
KINDS = (
    Kind("nothing", ("true",)),
    Kind("datagrams", _python(DATAGRAMS)),
    Kind("datagrams, routed", _python(DATAGRAMS), ROUTED),
    Kind("talks", ("/usr/bin/python3", "-I", "-c", TALKS)),
    Kind("download", _fetch("-4", "internet", 500_000)),
    Kind("download, IPv6", _fetch("-6", "campus", 500_000)),
    Kind("download, routed", _fetch("-6", "internet", 300_000), ROUTED),
    Kind("upload", ("sh", "-c", UPLOAD)),
    Kind("leaves a child", _python(LEAVES)),
    Kind("killed", _fetch("-4", "campus", 50_000_000, "--limit-rate", "2M"), lives=0.4),
    Kind("no network", ("true",), {"Want": "none"}),
)


class Runners:
    """Threads that run jobs until told to stop."""

    def __init__(self, lab: Lab, wrappers: tuple[str, ...], seed: int, threads: int) -> None:
        self._lab = lab
        self._wrappers = wrappers
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.ran: dict[str, str] = {}
        """Job id → kind, of those that were let in."""
        self.killed: set[str] = set()
        """Of these it is not known whether they were let in before."""
        self.refused = 0
        self.ends: Counter[str] = Counter()
        self.broken: list[str] = []
        """What a job met that no fault explains."""
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed} {n}"), user))
            for n, user in zip(range(threads), ("alice", "bob") * threads, strict=False)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the jobs that run end, and begin no more."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, chance: random.Random, user: str) -> None:
        while not self._stop.is_set():
            try:
                self._one(chance, user)
            except LabError as error:
                self.broken.append(str(error))

    def _one(self, chance: random.Random, user: str) -> None:
        kind, wrapper = chance.choice(KINDS), chance.choice(self._wrappers)
        job = self._lab.start_job(kind.command, user=user, ad=kind.ad, wrapper=wrapper)
        if kind.lives:
            time.sleep(kind.lives)
            with suppress(psutil.NoSuchProcess, LabError):
                job.kill(signal.SIGKILL)
        try:
            done = job.result(120)
        finally:
            self._lab.dismiss(job.starter)
        with self._lock:
            if done.status == REFUSED:
                self.refused += 1
            elif kind.lives and done.status == -signal.SIGKILL:
                self.killed.add(job.job_id)
            else:
                self.ran[job.job_id] = kind.name
                self.ends[f"{kind.name}: {done.status}"] += 1
        if done.status == REFUSED:
            time.sleep(0.2)  # a batch system does not start the next at once, either
