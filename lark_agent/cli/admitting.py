"""`lark-collector token`, `agent` and `authority`: who may report to this collector.

They work on the authority's directory, beside a collector that runs or does not; it sees what
they change within a second.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lark_agent.cli.tables import Column, Grid
from lark_agent.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lark_agent.trust.authority import Authority

_CONFIG = click.option(
    "--config", type=click.Path(path_type=Path), help="The collector's TOML file."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
LONGEST_HOURS = 24 * 90
WORKERS = (
    Column("WORKER"), Column("STATE"), Column("ENROLLED"), Column("RENEWED"), Column("ENDS"),
)  # fmt: skip
TOKENS = (Column("TOKEN"), Column("WORKER"), Column("REPLACES"), Column("ENDS"))


@click.group()
def token() -> None:
    """Admit new workers: each needs a token, once."""


@token.command(
    epilog="\b\nExample:\n  lark-collector token create --worker wn1.example.org > token"
)
@_CONFIG
@click.option("--worker", metavar="NAME", default="", help="Good for this worker only.")
@click.option("--hours", type=click.FloatRange(0, LONGEST_HOURS, min_open=True), default=24, show_default=True, help="How long it is good.")  # fmt: skip  # noqa: E501  one option a line
@click.option("--replace", is_flag=True, help="The worker may be enrolled already: a new machine takes its place, and the old one is shut out.")  # fmt: skip  # noqa: E501  one option a line
def create(config: Path | None, worker: str, hours: float, *, replace: bool) -> None:
    """Print a token, a secret: one line for `lark-agent enroll`."""
    click.echo(_authority(config).create_token(worker, hours * 3600, replace=replace))


@token.command("list")
@_CONFIG
@_JSON
def tokens(config: Path | None, *, as_json: bool) -> None:
    """List the tokens that nobody has used; not their secrets."""
    found = [
        {"token": each.name, "worker": each.worker, "replaces": each.replace,
         "ends": _when(each.ends)}
        for each in _authority(config).tokens()
    ]  # fmt: skip
    _show("tokens", TOKENS, found, as_json=as_json)


@token.command()
@_CONFIG
@click.argument("name", metavar="TOKEN")
def delete(config: Path | None, name: str) -> None:
    """Make a token worthless, by its name in `token list`."""
    _authority(config).delete_token(name)


@click.group()
def agent() -> None:
    """See and revoke workers that may report."""


@agent.command("list")
@_CONFIG
@_JSON
def workers(config: Path | None, *, as_json: bool) -> None:
    """List the workers that were enrolled."""
    now = datetime.now(UTC).timestamp()
    found = [
        {"worker": each.worker,
         "state": "revoked" if each.revoked else "over" if each.ends <= now else "enrolled",
         "enrolled": _when(each.enrolled), "renewed": _when(each.renewed),
         "ends": _when(each.ends)}
        for each in _authority(config).workers()
    ]  # fmt: skip
    _show("workers", WORKERS, found, as_json=as_json)


@agent.command()
@_CONFIG
@click.argument("worker")
def revoke(config: Path | None, worker: str) -> None:
    """Take no reports of a worker any more; a stream that is open ends within a second."""
    _authority(config).revoke(worker)
    click.echo(f"{worker} is revoked; to admit it again, make a token with --replace")


@click.group()
def authority() -> None:
    """Keep the collector's own keys."""


@authority.command()
@_CONFIG
def rotate(config: Path | None) -> None:
    """Make a new signer; workers learn of it as they renew, and nothing stops."""
    _authority(config).rotate()
    click.echo("the new signer is used at once, and shown when every worker has renewed")


def _authority(config: Path | None) -> Authority:
    from lark_agent.config import COLLECTOR_FILE, CollectorSettings, load  # noqa: PLC0415  --help stays fast
    from lark_agent.trust.authority import Authority  # noqa: PLC0415  as above

    settings = load(CollectorSettings, config, COLLECTOR_FILE)
    if settings.insecure:
        raise ConfigurationError("this collector runs without TLS (insecure = true)")
    made = Authority(Path(settings.authority), settings.certificate_days)
    made.prepare()
    return made


def _show(
    name: str, columns: tuple[Column, ...], found: Iterable[dict[str, Any]], *, as_json: bool
) -> None:
    rows = list(found)
    if as_json:
        from lark_agent.cli.as_json import write  # noqa: PLC0415  as above

        click.echo(write({name: rows}))
    else:
        from lark_agent.cli import tables  # noqa: PLC0415  rich is slow to import

        cells = [[_word(value) for value in row.values()] for row in rows]
        tables.draw([Grid(columns, cells, tables.console().width)])


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) or "any"


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
