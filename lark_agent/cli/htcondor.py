"""The programs that HTCondor's daemons keep running, and where their configuration goes.

The startd's asks the agent every two seconds and prints; a job's last bytes are printed while its
sandbox drains. The schedd's asks who has ended without an account, asks the collector for the
records, and writes the account once every run of the job has a final record. In between it writes
what running jobs have moved so far, for a bounded time of each round, however many there are: an
edit of the queue takes a tenth of a second and more, and accounts come first. Both run as
HTCondor's own account, connect anew for each round, so that a service may be restarted any time,
and end when their daemon is gone. What goes wrong is said once, on standard error, which
HTCondor logs.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lark_agent.errors import LarkError, PrerequisiteError, RemoteError
from lark_agent.hooks import htcondor_ads, htcondor_libexec
from lark_agent.hooks.htcondor_config import RUNNING, UNTOLD
from lark_agent.model import Rates, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lark_agent.cli.asking import Asker
    from lark_agent.config import HTCondor
    from lark_agent.hooks.htcondor_ads import Attributes
    from lark_agent.model import Record

PERIOD_SECONDS = 2.0
LIVE_SECONDS = 10.0
"""How often running jobs are looked at, at most."""
LIVE_SHARE_SECONDS = 0.5
"""How long of a round is for them; what is left over comes in the next."""
READY_SECONDS = 30
"""How long a worker counts as ready after the agent was last heard of."""
_TOOL_SECONDS = 60


def program(name: str) -> str:
    """Return the path by which daemons start one of our programs; raises PrerequisiteError."""
    beside = Path(sys.argv[0]).absolute().with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise PrerequisiteError(f"{name} is not installed beside this program, nor in PATH")
    return found


def write(text: str, output: Path | None) -> None:
    """Write a file, or to standard output; raises PrerequisiteError."""
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text)
    except OSError as error:
        raise PrerequisiteError(
            f"cannot write {output}: {error.strerror}; run as root, where HTCondor is installed"
        ) from error


def starters_libexec(settings: HTCondor) -> Path | None:
    """Make the starter's LIBEXEC, or say why there is none."""
    try:
        return htcondor_libexec.make(Path(settings.programs), Path(settings.libexec))
    except PrerequisiteError as error:
        click.echo(f"condor_ssh_to_job will be off: {error}", err=True)
        return None


def publish(where: str) -> None:
    """Print the machine's and its jobs' ads until nobody reads them."""
    meter = Meter()
    _for_ever(lambda: _print(round_of_startd(where, meter, time.time())))


def account(where: str) -> None:
    """Write the accounts of ended jobs, and what running ones moved, until the schedd is gone."""
    live = Live()

    def once() -> None:
        with _connect(where) as asker:
            for job, attributes in accounts(asker, jobs_that(UNTOLD)):
                _edit(job, attributes)
            for job, attributes in live.round(asker, jobs_that):
                with contextlib.suppress(RemoteError):  # it has left the queue
                    _edit(job, attributes)
        _print(["-"])  # ends this program when its daemon is gone

    _for_ever(once)


class Live:
    """What running jobs have moved, as far as it is new."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._listed = float("-inf")
        self._waiting: list[dict[str, Any]] = []
        self._told: dict[str, Attributes] = {}

    def round(
        self, asker: Asker, jobs: Callable[[str], list[dict[str, Any]]]
    ) -> Iterator[tuple[str, Attributes]]:
        """Yield job and attributes of those that moved since they were last yielded.

        Stops when the round's time for them is over; `jobs` asks the schedd.
        """
        start = self._clock()
        if not self._waiting and start - self._listed >= LIVE_SECONDS:
            self._listed, self._waiting = start, jobs(RUNNING)
            running = {_name(ad) for ad in self._waiting}
            self._told = {job: told for job, told in self._told.items() if job in running}
        while self._waiting and self._clock() - start < LIVE_SHARE_SECONDS:
            ad = self._waiting.pop()
            records = _records(asker, str(ad.get("GlobalJobId", "")), str(ad.get("Owner", "")))
            attributes = htcondor_ads.so_far(records)
            if records and self._told.get(_name(ad)) != attributes:
                self._told[_name(ad)] = attributes
                yield _name(ad), attributes


class Meter:
    """Rates of an interface, from one look to the next."""

    def __init__(self, statistics: Path = Path("/sys/class/net")) -> None:
        self._statistics = statistics
        self._last: tuple[str, float, int, int] | None = None

    def rates(self, interface: str, now: float) -> Rates:
        """Return bit/s since the last look; none at the first. `now` is in seconds."""
        folder = self._statistics / interface / "statistics"
        try:
            sent, received = (int((folder / f"{way}_bytes").read_text()) for way in ("tx", "rx"))
        except OSError:  # renamed or gone: the agent will say
            return Rates()
        before, self._last = self._last, (interface, now, sent, received)
        if before is None or before[0] != interface or now <= before[1]:
            return Rates()
        seconds = now - before[1]
        moved = (max(0, sent - before[2]), max(0, received - before[3]))
        return Rates(*(round(each * 8 / seconds) for each in moved))


def round_of_startd(where: str, meter: Meter, now: float) -> Iterator[str]:
    """Yield the lines of one round; a worker without its agent is not ready."""
    try:
        with _connect(where) as asker:
            state = asker.machine()
    except RemoteError as error:
        attributes = {"LarkReady": "false", "LarkProblem": htcondor_ads.text(str(error))}
        yield from htcondor_ads.printed("machine", attributes)
        return
    ad = htcondor_ads.machine_ad(
        state, meter.rates(state.uplink, now), ready_until=int(now) + READY_SECONDS
    )
    yield from htcondor_ads.printed("machine", {**ad, "LarkProblem": '""'})
    # of two in a slot the older has ended, and its starter is gone
    newest = dict(sorted(state.places, key=lambda place: place[1].started_ns))
    for slot, record in newest.items():
        yield from htcondor_ads.printed(slot, htcondor_ads.slot_ad(slot, record))


def jobs_that(are: str) -> list[dict[str, Any]]:
    """Ask the schedd which jobs meet a constraint; raises RemoteError."""
    said = _tool(
        "condor_q", "-allusers", "-constraint", are, "-json",
        "-attributes", "ClusterId,ProcId,GlobalJobId,Owner",
    )  # fmt: skip
    ads: list[dict[str, Any]] = json.loads(said) if said.strip() else []
    return ads


def accounts(asker: Asker, ads: list[dict[str, Any]]) -> Iterator[tuple[str, Attributes]]:
    """Yield job and account of those whose records are all final."""
    for ad in ads:
        records = _records(asker, str(ad.get("GlobalJobId", "")), str(ad.get("Owner", "")))
        if records and all(record.final for record in records):
            yield _name(ad), htcondor_ads.job_attributes(records)


def _name(ad: dict[str, Any]) -> str:
    return f"{ad['ClusterId']}.{ad['ProcId']}"


def _edit(job: str, attributes: Attributes) -> None:
    _tool("condor_qedit", job, *(word for pair in attributes.items() for word in pair))


def _records(asker: Asker, job: str, owner: str) -> list[Record]:
    """Return the records of one job, oldest first.

    The id came from a job's ad: another user's record with it is not this job's.
    """
    from lark_agent.cli.asking import NoSuchJob  # noqa: PLC0415  grpc is slow to import

    try:
        found = [run.record for run in asker.find(job)]
    except NoSuchJob:
        return []
    mine = [
        record
        for record in found
        if record.job.scheduler is Scheduler.HTCONDOR
        and record.job.verified
        and record.job.owner == owner
        and record.job.job_id == job
    ]
    return sorted(mine, key=lambda record: record.started_ns)


def _connect(where: str) -> Any:
    from lark_agent.cli import asking  # noqa: PLC0415  grpc is slow to import

    return asking.connect(where)


def _tool(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TOOL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RemoteError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise RemoteError(f"{' '.join(command[:2])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _print(lines: Iterator[str] | list[str]) -> None:
    """Print at once; ends the program when nobody reads any more."""
    try:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stderr.close()  # nor does anybody read this
        raise SystemExit(0) from None


def _for_ever(once: Callable[[], None]) -> None:
    said = ""
    while True:
        try:
            once()
            said = ""
        except LarkError as error:
            if str(error) != said:  # HTCondor logs every line
                click.echo(str(error), err=True)
                said = str(error)
        time.sleep(PERIOD_SECONDS)
