"""`lark-agent gc --dry-run`: what an agent would repair on this worker, and nothing done.

The comparison is the agent's own (`lark_agent.agent.reconcile`). Without an agent it says what the
next one does when it starts; beside one, what that does in its next round, once a minute: there
should be nothing. Repairs are the agent's alone, because only it knows what it is about to build.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lark_agent.cli.tables import Column, Grid
from lark_agent.errors import PrerequisiteError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.agent.reconcile import Repair
    from lark_agent.config import AgentSettings

COLUMNS = (Column("REPAIR"), Column("SLOT", 0, "right"), Column("ATTACHMENT"), Column("WHY"))
WORDS = {
    "Truncate": "close with its last durable totals",
    "Finish": "finish with the kernel's totals: the job ended while no agent ran",
    "Silence": "let nothing pass: a plan that no job has",
    "Dismantle": "remove what nobody has",
}


def wanted(settings: AgentSettings) -> tuple[Repair, ...]:
    """Return the repairs that an agent would make. Raises LarkError."""
    from lark_agent.accounting.journal import read_living  # noqa: PLC0415  --help stays fast
    from lark_agent.agent import observing  # noqa: PLC0415  as above
    from lark_agent.agent.daemon import JOURNAL_NAME  # noqa: PLC0415  as above
    from lark_agent.agent.reconcile import Books, repairs  # noqa: PLC0415  as above

    before = _busy(settings)
    living = read_living(Path(settings.paths.state) / JOURNAL_NAME)
    kernel = observing.kernel(Path(settings.paths.bpffs), living)
    known = frozenset(map(observing.known, living))
    after = _busy(settings)
    if before is None or after is None:
        return repairs(kernel, Books(known))
    busy = before | after
    attended = frozenset(each.attachment_id for each in known if each.slot in busy)
    return repairs(kernel, Books(known, attended, busy))


def _busy(settings: AgentSettings) -> frozenset[int] | None:
    """Ask the agent for the slots that are its own; None if none runs."""
    from lark_agent.cli import asking  # noqa: PLC0415  grpc takes 90 ms to import

    run = Path(settings.paths.run)
    if not _locked(run / "agent.lock"):
        return None
    try:
        with asking.connect(f"{run}/agent.sock") as asker:
            return frozenset(asker.status().busy_slots)
    except RemoteError as error:
        raise PrerequisiteError(
            f"an agent runs here and does not say what is its own: {error}; ask again when it "
            "serves, or when it is stopped"
        ) from error


def _locked(file: Path) -> bool:
    try:
        with file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except PermissionError as error:
        raise PrerequisiteError(f"only root can look: {file} is not yours to read") from error
    return False


def form(repair: Repair) -> dict[str, Any]:
    """Return what programs read."""
    kind = type(repair).__name__
    found: Sequence[str] = getattr(repair, "found", ())
    why = str(getattr(repair, "why", "")) or ", ".join(found)
    return {
        "repair": kind.lower(),
        "slot": getattr(repair, "slot", None),
        "attachment": getattr(repair, "attachment_id", None),
        "does": WORDS[kind],
        "why": why,
    }


def grid(repairs: Sequence[Repair], width: int) -> Grid:
    """Draw repairs, one a line."""
    rows = [
        (
            row["does"],
            "-" if row["slot"] is None else str(row["slot"]),
            row["attachment"] or "-",
            row["why"] or "-",
        )
        for row in map(form, repairs)
    ]
    return Grid(COLUMNS, rows, width)


def show(settings: AgentSettings, *, as_json: bool) -> None:
    """Print the repairs."""
    from lark_agent.cli import tables  # noqa: PLC0415  rich is slow to import
    from lark_agent.cli.as_json import write  # noqa: PLC0415  as above

    found = wanted(settings)
    if as_json:
        click.echo(write({"repairs": [form(repair) for repair in found]}))
    elif found:
        tables.draw([grid(found, tables.console().width)])
    else:
        click.echo("nothing to repair")
