"""`lark doctor --live`: a real job through a real sandbox of the agent that runs here.

The job (`trial`) talks with a peer on this worker (`peer`), so no packet leaves it. Datagrams of
one size, each answered before the next is sent, make numbers that can be known to the byte
without a capture: the job says how many it sent and got, the peer how many it heard, and the
record must say the same. Others go to a socket of the worker's that no service of the site's is,
by way of the sandbox's gateway: they must not arrive, and must be counted as dropped.

Nothing is sent before the job's record says what it got. A sandbox on a network of the site is
told not to send: its packets would leave the worker. Where the policy keeps the job from the peer,
that is a finding, and no failure.

The job takes one place of the pool, and none if all are taken; it waits for nothing for longer
than the agent's own settings say. Its record is one like all others, of job `doctor-PID`.
"""

from __future__ import annotations

import os
import pwd
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lark_agent.cli import asking, gc
from lark_agent.cli.doctor.findings import fail, ok, unchecked
from lark_agent.cli.doctor.peer import PORT, THERE, peer
from lark_agent.cli.doctor.trial import TrialJob
from lark_agent.cli.doctor.verdicts import FINDINGS, FORBIDDEN, LOG, NUMBER, SIZE, Outcome
from lark_agent.errors import LarkError, PrerequisiteError, RemoteError
from lark_agent.linux.links import Links
from lark_agent.model import Connectivity
from lark_agent.sandbox.addressing import name as sandbox_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lark_agent.cli.asking import Asker
    from lark_agent.cli.doctor.findings import Finding
    from lark_agent.cli.doctor.probe import Probe
    from lark_agent.cli.doctor.report import Findings
    from lark_agent.config import AgentSettings
    from lark_agent.model import Record

PATIENCE_SECONDS = 2.0
"""For one answer of the peer, which is on this machine."""
SLACK_SECONDS = 20.0
"""For what takes milliseconds on a machine that is not busy."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tried, and for whom."""

    settings: AgentSettings
    agent: str
    """Its socket."""
    wrapper: Path
    account: pwd.struct_passwd


def examine(probe: Probe, agent: str, user: str) -> Findings:
    """Try it if it can be tried; `agent` is its socket, `user` whose job it is to be."""
    if not probe.is_root:
        return [("trial job", unchecked("not tried: only root can", "sudo lark doctor --live"))]
    if probe.problem:
        return [("configuration", fail(probe.problem, "lark-agent check says more"))]
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return [("trial job", unchecked(f"no account {user}", "name one with --user"))]
    wrapper = probe.wrapper()
    if account.pw_uid == 0 or wrapper is None:
        what = "root cannot be held in a sandbox" if wrapper else "lark-run is not installed"
        return [
            ("trial job", unchecked(what, "name another --user, or lark-agent install-wrapper"))
        ]
    return _examine(Trial(probe.settings, agent, wrapper, account))


def _examine(trial: Trial) -> Findings:
    """Try it; returns the findings by the names of the checks."""
    with asking.connect(trial.agent) as asker:
        try:
            state = asker.status()
        except RemoteError as error:
            return [("agent", fail(f"the agent does not tell its state: {error}", LOG))]
        if state.slots - state.attached - state.condemned <= 0:
            full = f"all {state.slots} slots are taken by jobs, and the trial would keep one out"
            return [("trial job", unchecked(full, "try again when a job has ended"))]
        findings: Findings = []
        try:
            findings.extend(_tried(trial, asker))
        except LarkError as error:
            findings.append(("agent", fail(f"the trial could not be finished: {error}", LOG)))
        return findings


def _tried(trial: Trial, asker: Asker) -> Iterator[tuple[str, Finding]]:
    job_id = f"doctor-{os.getpid()}"
    settings = trial.settings
    outcome = None
    link = "", 0
    try:
        with ExitStack() as stack:
            job = stack.enter_context(TrialJob(trial.wrapper, trial.account, job_id))
            gateway = job.listen(settings.pool.wait_seconds + SLACK_SECONDS)["gateway"]
            record = asker.find(job_id)[0].record
            link = _link(sandbox_name(record.slot))
            yield (
                "trial job",
                ok(
                    f"{job_id} of {trial.account.pw_name}: slot {record.slot}, "
                    f"profile {record.profile}, connectivity {record.connectivity}"
                ),
            )
            if record.connectivity in (Connectivity.NAT, Connectivity.ROUTED):
                outcome = _talk(job, record, gateway, stack)
            else:
                yield (
                    "way out",
                    unchecked(
                        f"profile {record.profile} has connectivity {record.connectivity}: "
                        "no peer on this worker can be there",
                        "name with --user an account whose jobs have nat or routed",
                    ),
                )
    except PrerequisiteError as error:
        yield "way out", unchecked(f"no peer for the trial job: {error}", "try again without it")
    except (LarkError, OSError) as error:
        yield (
            "trial job",
            fail(
                str(error),
                "what it says; if the policy refuses this account's jobs, name another with --user",
            ),
        )
    if outcome is not None:
        outcome = replace(outcome, record=_final(asker, job_id, settings))
        for title, look in FINDINGS:
            for finding in look(outcome):
                yield title, finding
    for finding in _left(settings, link):
        yield "clean-up", finding


def _link(name: str) -> tuple[str, int]:
    """Return a link's name and index, which no later link has."""
    with Links() as links:
        return name, links.index(name)


def _talk(job: TrialJob, record: Record, gateway: str, stack: ExitStack) -> Outcome:
    """Let the job talk to its end, and return what it and the peer say."""
    ipv6 = bool(record.ipv6)
    other = stack.enter_context(peer(ipv6=ipv6))
    closed = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    closed.bind(("0.0.0.0", 0))  # noqa: S104  by whichever address it would come
    closed.setblocking(False)
    peers = {str(a.version): str(a) for a in (THERE if ipv6 else THERE[:1])}
    forbidden = {"address": gateway, "port": closed.getsockname()[1], "number": FORBIDDEN}
    job.tell({
        "peers": peers, "port": PORT, "number": NUMBER, "size": SIZE,
        "patience": PATIENCE_SECONDS, "forbidden": forbidden,
    })  # fmt: skip
    said = job.listen(SLACK_SECONDS + PATIENCE_SECONDS * len(peers))
    job.wait(SLACK_SECONDS)
    arrived = 0
    try:
        while closed.recv(SIZE):
            arrived += 1
    except BlockingIOError:
        pass
    return Outcome(record, said, other.heard, arrived)


def _final(asker: Asker, job_id: str, settings: AgentSettings) -> Record:
    """Wait for the final record; returns the last one if it does not come."""
    end = time.monotonic() + settings.pool.drain_seconds + SLACK_SECONDS
    while True:
        record = asker.find(job_id)[0].record
        if record.final or time.monotonic() > end:
            return record
        time.sleep(0.1)


def _left(settings: AgentSettings, link: tuple[str, int]) -> Iterator[Finding]:
    """Check that the sandbox goes, and that the kernel has nothing else that is nobody's."""
    end = time.monotonic() + settings.pool.drain_seconds + SLACK_SECONDS
    while (left := _leftovers(settings, link)) and time.monotonic() < end:
        time.sleep(0.2)
    if left:
        yield fail(
            f"left over: {'; '.join(left)}",
            "the agent removes it within a minute; if `lark-agent gc --dry-run` still shows it "
            f"then: {LOG}",
        )
    else:
        yield ok("the sandbox is gone; no namespace, link, plan or pin is left that is nobody's")


def _leftovers(settings: AgentSettings, link: tuple[str, int]) -> list[str]:
    found = (
        [f"link {link[0]} of the trial job's sandbox"] if link[1] and _link(link[0]) == link else []
    )
    rows = [gc.form(repair) for repair in gc.wanted(settings)]
    return found + [f"{row['does']}, slot {row['slot']}: {row['why']}" for row in rows]
