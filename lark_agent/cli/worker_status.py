"""`lark-agent status`: the running agent's own state.

The agent tells it, all but when its certificate ends: that is in a file which only root can read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lark_agent.cli import asking, tables, units
from lark_agent.cli.as_json import write
from lark_agent.cli.tables import Column, Grid
from lark_agent.errors import LarkError
from lark_agent.trust import identity

if TYPE_CHECKING:
    from lark_agent.config import AgentSettings
    from lark_agent.rpc.lark.v1.agent_pb2 import GetStatusResponse

COLUMNS = (Column("WHAT"), Column("STATE"))


def certificate(settings: AgentSettings) -> tuple[int, str]:
    """Return when it ends (UTC nanoseconds, 0: unknown or none), and in words."""
    link = settings.collector
    if not link.address:
        return 0, "none: no collector is configured"
    if link.insecure:
        return 0, "none: the collector is reached without TLS"
    try:
        found = identity.load(Path(link.identity))
    except (LarkError, OSError) as error:
        return 0, f"cannot be read: {error}"
    ends_ns = found.ends * 10**9
    return ends_ns, units.iso(ends_ns) or ""


def form(said: GetStatusResponse, ends_ns: int) -> dict[str, Any]:
    """Return what programs read."""
    return {
        "worker": said.worker,
        "version": said.version,
        "started_ns": said.started_ns,
        "started": units.iso(said.started_ns),
        "loader": said.loader,
        "uplink": said.uplink,
        "mtu": said.mtu,
        "slots": said.slots,
        "ready": said.ready,
        "attached": said.attached,
        "reserved": said.reserved,
        "condemned": said.condemned,
        "ready_by_kind": dict(sorted(said.ready_by_kind.items())),
        "collector": said.collector,
        "collector_state": said.collector_state,
        "unacknowledged": said.unacknowledged,
        "certificate_ends_ns": ends_ns or None,
        "certificate_ends": units.iso(ends_ns) if ends_ns else None,
        "refusals": dict(sorted(said.refusals.items())),
        "errors": dict(sorted(said.errors.items())),
    }


def grid(said: GetStatusResponse, ends: str, width: int) -> Grid:
    """Draw one fact a line, then one refusal or error a line."""
    slots = (
        f"{said.slots}: {said.attached} with jobs ({said.reserved} reserved), {said.ready} ready, "
        f"{said.condemned} being dismantled"
    )
    rows = [
        ("worker", said.worker),
        ("version", f"{said.version}, {said.loader} datapath"),
        ("started", units.iso(said.started_ns) or "-"),
        ("uplink", f"{said.uplink}, MTU {said.mtu}"),
        ("slots", slots),
        ("collector", said.collector or "none is configured"),
        ("link", said.collector_state or "-"),
        ("records that wait", str(said.unacknowledged)),
        ("certificate ends", ends),
        *((f"refused: {kind}", str(number)) for kind, number in sorted(said.refusals.items())),
        *((f"errors: {name}", str(number)) for name, number in sorted(said.errors.items())),
    ]
    return Grid(COLUMNS, rows, width)


def show(settings: AgentSettings, *, as_json: bool) -> None:
    """Print the state; raises RemoteError."""
    with asking.connect(f"{settings.paths.run}/agent.sock") as asker:
        said = asker.status()
    ends_ns, ends = certificate(settings)
    if as_json:
        click.echo(write(form(said, ends_ns)))
    else:
        tables.draw([grid(said, ends, tables.console().width)])
