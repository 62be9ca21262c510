"""Checks of the running agent: one of it, reachable, with sandboxes ready and records sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent import trouble
from lark_agent.cli.doctor.findings import fail, ok, warn
from lark_agent.errors import RemoteError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.cli.doctor.findings import Finding
    from lark_agent.cli.doctor.probe import Probe
    from lark_agent.rpc.lark.v1.agent_pb2 import GetStatusResponse

RUN_SOCKET = "/run/lark/run.sock"
"""Where lark-run asks, whatever the configuration says."""
START = "systemctl start lark-agent; its log: journalctl -u lark-agent"
REMEDIES = {
    "ALREADY_EXISTS": "give one of the two machines another name: worker in agent.toml",
    "PERMISSION_DENIED": "`lark-collector agent list` shows who may report; to enrol this worker "
    "anew, make a token with --replace",
    "UNAUTHENTICATED": "see the check of the certificate; a worker whose certificate is over has "
    "to be enrolled again, with a token made with --replace",
}
"""By the word with which the collector refused."""
MANY_WAITING = 10_000
"""Records; a worker that starts a job a second makes as many in three hours."""


def one_agent(probe: Probe) -> Iterator[Finding]:
    """Look for exactly one agent."""
    pids = probe.agents()
    if len(pids) > 1:
        yield fail(
            f"{len(pids)} agents run here: processes {', '.join(map(str, pids))}",
            "stop all but one; two agents would take each other's sandboxes apart",
        )
    elif pids:
        yield ok(f"process {pids[0]}")
    else:
        yield fail("no lark-agent runs", START)


def run_socket(probe: Probe) -> Iterator[Finding]:
    """Check that a job can ask for a sandbox."""
    try:
        probe.connect(RUN_SOCKET)
    except OSError as error:
        yield fail(f"{RUN_SOCKET}: {error.strerror}: every job will be refused", START)
        return
    if probe.settings.paths.run != "/run/lark":
        yield warn(
            f"paths.run is {probe.settings.paths.run}, but lark-run always asks at {RUN_SOCKET}",
            "leave paths.run out, unless another agent is meant to serve jobs",
        )
    else:
        yield ok(f"{RUN_SOCKET} answers")


def status(probe: Probe) -> Iterator[Finding]:
    """Ask the agent for its own state."""
    try:
        said = probe.status()
    except RemoteError as error:
        yield fail(f"the agent does not tell its state: {error}", START)
        return
    wanted = probe.settings.pool.ready
    free = said.slots - said.attached - said.condemned
    yield ok(
        f"version {said.version}, {said.loader} datapath, uplink {said.uplink} MTU {said.mtu}, "
        f"{said.attached} of {said.slots} slots in use"
        f"{f' ({said.reserved} reserved for jobs about to start)' if said.reserved else ''}, "
        f"{_ready(said)}"
    )
    if free <= 0:
        yield warn(f"all {said.slots} slots are taken: the next job waits", "raise [pool] slots")
    elif said.ready == 0 and wanted > 0:
        yield warn(
            "no sandbox is ready: the next job waits until one is built",
            "normal for a moment after many starts; if it stays, see journalctl -u lark-agent",
        )
    else:
        yield from _empty_kinds(said)
    for kind, number in sorted(said.refusals.items()):
        yield warn(
            f"{number} jobs were refused ({kind}) since the agent started",
            "their reasons are in journalctl -u lark-agent and in the jobs' hold reasons",
        )
    for task, number in sorted(said.errors.items()):
        if task == trouble.COLLECTOR_AWAY:
            continue  # said under "collector"
        yield warn(
            f"the task '{task}' failed {number} times since the agent started",
            "see journalctl -u lark-agent",
        )


def _empty_kinds(said: GetStatusResponse) -> Iterator[Finding]:
    for kind, number in sorted(said.ready_by_kind.items()):
        if not number:
            yield warn(
                f"no sandbox of {kind} is ready: the next job there waits until one is built",
                "normal for a moment after many starts; if it stays, see journalctl -u lark-agent",
            )


def _ready(said: GetStatusResponse) -> str:
    kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(said.ready_by_kind.items()))
    return f"{said.ready} ready ({kinds})" if kinds else f"{said.ready} ready"


def collector(probe: Probe) -> Iterator[Finding]:
    """Check that records reach the collector."""
    try:
        said = probe.status()
    except RemoteError:
        return  # said under "agent"
    waiting = f"{said.unacknowledged} records wait on this worker"
    if not said.collector:
        yield ok("none configured: records stay on this worker")
    elif said.collector_state != "connected":
        yield warn(
            f"{said.collector}: {said.collector_state}; {waiting}, none is lost",
            REMEDIES.get(
                said.collector_state.partition(":")[0],
                "is lark-collector running, and does [collector] address lead to it?",
            ),
        )
    elif said.unacknowledged > MANY_WAITING:
        yield warn(
            f"{said.collector}: connected, but {waiting}", "see the collector's log and disk"
        )
    else:
        yield ok(f"{said.collector}: connected; {waiting}")
