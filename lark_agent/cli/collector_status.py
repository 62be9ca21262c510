"""`lark-collector status`: the running collector's own state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import grpc

from lark_agent.cli import tables, units
from lark_agent.cli.as_json import write
from lark_agent.cli.tables import Column, Grid
from lark_agent.rpc import channel
from lark_agent.rpc.lark.v1 import collector_pb2, collector_pb2_grpc

if TYPE_CHECKING:
    from lark_agent.rpc.lark.v1.collector_pb2 import GetCollectorStatusResponse

COLUMNS = (Column("WHAT"), Column("STATE"))


def ask(where: str) -> GetCollectorStatusResponse:
    """Ask the collector at a socket; raises RemoteError."""
    with channel.connect(where) as opened:
        try:
            return collector_pb2_grpc.CollectorStateStub(opened).GetCollectorStatus(
                collector_pb2.GetCollectorStatusRequest()
            )
        except grpc.RpcError as error:
            raise channel.explained(error, where) from error


def form(said: GetCollectorStatusResponse) -> dict[str, Any]:
    """Return what programs read."""
    return {
        "version": said.version,
        **_time("started", said.started_ns),
        "store": said.store,
        "failure": said.failure,
        "streams": said.streams,
        "reporting": list(said.reporting),
        "workers": said.workers,
        "records": said.records,
        "refused": said.refused,
        "errors": dict(sorted(said.errors.items())),
        **_time("certificate_ends", said.certificate_ends_ns),
        **_time("authority_ends", said.authority_ends_ns),
    }


def _time(name: str, at_ns: int) -> dict[str, Any]:
    return {f"{name}_ns": at_ns or None, name: units.iso(at_ns) if at_ns else None}


def grid(said: GetCollectorStatusResponse, width: int) -> Grid:
    """Draw one fact a line, then one error a line."""
    shown = form(said)
    rows = [
        ("version", said.version),
        ("started", shown["started"]),
        ("store", said.store),
        ("takes records", f"no: {said.failure}" if said.failure else "yes"),
        ("records", f"{said.records} of {said.workers} workers"),
        ("streams of reports", f"{said.streams}, of {len(said.reporting)} workers"),
        ("refused calls of workers", str(said.refused)),
        ("certificate ends", shown["certificate_ends"] or "runs without TLS"),
        ("newest authority ends", shown["authority_ends"] or "runs without TLS"),
        *((f"errors: {name}", str(number)) for name, number in shown["errors"].items()),
    ]
    return Grid(COLUMNS, rows, width)


def show(where: str, *, as_json: bool) -> None:
    """Print the state."""
    said = ask(where)
    if as_json:
        click.echo(write(form(said)))
    else:
        tables.draw([grid(said, tables.console().width)])
