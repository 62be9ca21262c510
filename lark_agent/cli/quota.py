"""`lark quota`: how much of what is used, and what is left.

A collector knows the quotas of owners and groups over all workers, an agent those of the jobs that
it runs, and of shared ones what its worker used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lark_agent.cli import units
from lark_agent.cli.tables import Column, Grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.accounting.quotas import Standing

COLUMNS = (
    Column("QUOTA"),
    Column("PER", 6),
    Column("SUBJECT", 0),
    Column("PERIOD", 4),
    Column("LIMIT", 2, "right"),
    Column("USED", 1, "right"),
    Column("LEFT", 0, "right"),
    Column("LEASED", 7, "right"),
    Column("WORKERS", 8, "right"),
    Column("ACTION", 5),
    Column("STATE", 3),
)


@click.command(epilog="\b\nExample:\n  lark quota\n  sudo lark quota --owner alice --json")
@click.option("--owner", default="", help="Only what holds for the jobs of this owner.")
@click.option("--bytes", "exact", is_flag=True, help="Print bytes to the last digit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_obj
def quota(obj: dict[str, str], owner: str, exact: bool, as_json: bool) -> None:
    """Show how quotas stand in the present period.

    LEASED is what workers may use of LEFT without asking again. People see what holds for their own
    jobs, root and admins everything. The agent (--agent) also knows the quotas of single jobs.
    """
    from lark_agent.cli import asking, tables  # noqa: PLC0415  grpc takes 90 ms to import
    from lark_agent.cli.as_json import write  # noqa: PLC0415  as above

    with asking.connect(obj["endpoint"]) as asker:
        found = asker.quotas(owner)
    if as_json:
        click.echo(write({"quotas": [form(standing) for standing in found]}))
    elif found:
        tables.draw([grid(found, tables.console().width, exact=exact)])
    else:
        click.echo("no quota holds for any job that you may see", err=True)


def form(standing: Standing) -> dict[str, Any]:
    """Return what programs read."""
    return {
        **standing.key._asdict(),
        "limit": standing.limit,
        "used": standing.used,
        "left": standing.left,
        "leased": leased(standing),
        "workers": standing.workers,
        "action": standing.action,
        "used_up": standing.used_up,
        "as_of_ns": standing.as_of_ns,
        "as_of": units.iso(standing.as_of_ns),
    }


def leased(standing: Standing) -> int:
    """Return what workers may still use without asking."""
    return max(0, standing.granted - standing.used)


def grid(found: Sequence[Standing], width: int, *, exact: bool) -> Grid:
    """Draw one line a quota and subject."""
    rows = [
        (
            standing.key.quota,
            standing.key.scope,
            standing.key.subject or "-",
            standing.key.period or "-",
            units.size(standing.limit, exact=exact),
            units.size(standing.used, exact=exact),
            units.size(standing.left, exact=exact),
            units.size(leased(standing), exact=exact),
            str(standing.workers),
            standing.action,
            "used up" if standing.used_up else "ok",
        )
        for standing in found
    ]
    return Grid(COLUMNS, rows, width)
