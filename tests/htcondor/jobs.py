"""Jobs of a pool: the submit file, the job's own log, and how it ended.

What happens to a job is read from the log that the user asked for in the submit file: nothing has
to be started for it, and it is what users read. An event is its number and the lines
up to the next.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.lab.process import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.htcondor.pool import Pool

EXECUTING, EVICTED, TERMINATED, ABORTED, HELD, STARTER_ERROR = 1, 4, 5, 9, 12, 21
WITNESS = "readlink /proc/self/ns/net >> $SUBMITTED_FROM/ran\n"
"""What a job that runs at all leaves behind, whatever its network, and whatever becomes of it."""
_EVENT = re.compile(r"^(\d{3}) \(\d+\.\d+\.\d+\) (.*?)^\.\.\.$", re.MULTILINE | re.DOTALL)
_RETURNED = re.compile(r"\(return value (\d+)\)")
_SIGNALLED = re.compile(r"\(signal (\d+)\)")
_PATIENCE_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a job's log."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended, as HTCondor tells its user."""

    status: int
    """Exit status, or minus the signal that ended it."""
    stdout: str
    stderr: str


class CondorJob:
    """A job that was submitted."""

    def __init__(self, pool: Pool, number: str, user: str, folder: str) -> None:
        self.number = number
        """Cluster and process, as people write it."""
        self.user, self.folder = user, folder
        self._pool = pool

    def file(self, name: str) -> Path:
        """Return where the test finds a file of the folder that it was submitted from."""
        return self._pool.machine.path(f"{self.folder}/{name}")

    @property
    def events(self) -> list[Event]:
        """What its log says so far."""
        log = self.file("log")
        text = log.read_text() if log.exists() else ""
        return [Event(int(number), rest) for number, rest in _EVENT.findall(text)]

    def await_event(self, *numbers: int, count: int = 1) -> Event:
        """Wait for the `count`-th event of these kinds; raises LabError if the job ends before."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            events = self.events
            found = [event for event in events if event.number in numbers]
            if len(found) >= count:
                return found[count - 1]
            over = any(event.number in {TERMINATED, ABORTED} for event in events)
            if over or time.monotonic() > until:
                raise LabError(f"job {self.number}: no event {numbers} of {events}")
            time.sleep(0.05)

    def ended(self) -> End:
        """Wait until it has terminated."""
        text = self.await_event(TERMINATED).text
        returned, signalled = _RETURNED.search(text), _SIGNALLED.search(text)
        if returned:
            status = int(returned[1])
        elif signalled:
            status = -int(signalled[1])
        else:
            raise LabError(f"job {self.number}: cannot read {text!r}")
        return End(status, self._read("out"), self._read("err"))

    def _read(self, name: str) -> str:
        return self.file(name).read_text(errors="replace") if self.file(name).exists() else ""

    def networks(self) -> list[str]:
        """Return the network namespace of each of its starts, where `WITNESS` is in its script."""
        return self._read("ran").split()

    def ad(self) -> dict[str, Any]:
        """Return its ad, from the queue or, after its end, from the history."""
        for command in ("condor_q", "condor_history"):
            if found := self._pool.query(command, self.number):
                return found[0]
        raise LabError(f"job {self.number} is neither in the queue nor in the history")

    def record(self) -> dict[str, Any]:
        """Wait for the agent's final record of it and return that."""
        return self._pool.record(self.number)


def submit_text(
    executable: str, inputs: Mapping[str, str], commands: Mapping[str, str | int]
) -> str:
    """Return a submit file: file transfer, one log, and what else the test wants."""
    lines: dict[str, str | int] = {
        "executable": executable, "output": "out", "error": "err", "log": "log",
        "should_transfer_files": "YES", "when_to_transfer_output": "ON_EXIT",
        "request_cpus": 1, "request_memory": 64, "request_disk": 1024, "notification": "never",
    }  # fmt: skip
    if inputs:
        lines["transfer_input_files"] = ",".join(inputs)
    for name, value in commands.items():
        lines[f"MY.{name.removeprefix('my_')}" if name.startswith("my_") else name] = value
    return "".join(f"{name} = {value}\n" for name, value in lines.items()) + "queue\n"
