"""`lark-collector`: the command that the collector's service unit runs.

Everything heavy (gRPC, SQLAlchemy) is imported by the command that needs it, so that help and
completion are quick. Every error that LARK raises on purpose is one line on standard error and an
exit status of `lark_agent.errors`; click's own usage errors exit with 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lark_agent.cli import admitting
from lark_agent.errors import ConfigurationError, LarkError

if TYPE_CHECKING:
    from lark_agent.config import CollectorSettings


@click.group(epilog="Exit statuses: 0 done, 2 wrong configuration or usage, 3 this machine lacks "
    "something, 5 the store cannot be used, 6 no answer, 1 anything else.")  # fmt: skip
@click.version_option(package_name="lark-agent")
def collector() -> None:
    """Take the workers' usage reports, keep them, answer questions about them."""


for _group in (admitting.token, admitting.agent, admitting.authority):
    collector.add_command(_group)


@collector.command()
@click.option("--config", type=click.Path(path_type=Path), help="TOML file to read.  [default: /etc/lark/collector.toml if it exists]")  # fmt: skip  # noqa: E501  one option a line
@click.option("--listen", metavar="HOST:PORT", help="Where workers report.")
@click.option(
    "--store", metavar="URL", help="Durable store, e.g. sqlite:////srv/lark/usage.sqlite."
)
@click.option("--socket", metavar="PATH", help="Unix socket where people ask.")
@click.option("--verbose", is_flag=True, help="Log debugging details.")
def run(
    config: Path | None, listen: str | None, store: str | None, socket: str | None, *, verbose: bool
) -> None:
    """Serve until SIGTERM. Options win over the configuration file.

    \b
    Example:
      lark-collector run --listen 127.0.0.1:9620 \\
          --store sqlite:////var/lib/lark-collector/usage.sqlite
    """  # noqa: D301  \b keeps click from filling the example
    given = {"listen": listen, "store": store, "socket": socket}
    settings = _settings(config, {key: value for key, value in given.items() if value is not None})
    import asyncio  # noqa: PLC0415  see the module's docstring

    from lark_agent.collector import daemon  # noqa: PLC0415  as above
    from lark_agent.linux import log  # noqa: PLC0415  as above

    log.setup(verbose=verbose)
    asyncio.run(daemon.run(settings))


@collector.command()
@click.option("--config", type=click.Path(path_type=Path), help="TOML file to check.")
def check(config: Path | None) -> None:
    """Check the configuration and print what it means; touch nothing."""
    settings = _settings(config, {})
    for key in settings.__struct_fields__:
        click.echo(f"{key} = {getattr(settings, key)}")


@collector.command(epilog="\b\nExample:\n  sudo lark-collector status --json")
@click.option("--socket", metavar="PATH", help="Where to ask, if not where it is configured.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def status(socket: str | None, *, as_json: bool) -> None:
    """Show the state of the collector that runs here, to root, admins and observers.

    Store, workers that report, records, what was refused, errors by name since the start, and when
    its certificates end. Exit status 6 if it does not answer, or refuses.
    """
    from lark_agent.cli import collector_status  # noqa: PLC0415  see the module's docstring

    collector_status.show(socket or _settings(None, {}).socket, as_json=as_json)


@collector.command("htcondor-config")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write it; without it, standard output.")  # fmt: skip  # noqa: E501  one option a line
@click.option("--socket", metavar="PATH", help="Where to ask, if not the collector here: an agent, on a pool of one machine.")  # fmt: skip  # noqa: E501  one option a line
def htcondor_config(output: Path | None, socket: str | None) -> None:
    """Write the file for HTCondor's config.d on a submit node.

    \b
    Example:
      lark-collector htcondor-config --output /etc/condor/config.d/50-lark-submit
    """  # noqa: D301  as above
    from lark_agent.cli import htcondor  # noqa: PLC0415  see the module's docstring
    from lark_agent.hooks.htcondor_config import submit_file  # noqa: PLC0415  as above

    arguments = ["--socket", socket] if socket else []
    htcondor.write(submit_file(htcondor.program("lark-collector"), arguments), output)


@collector.command("htcondor-schedd")
@click.option("--socket", metavar="PATH", help="Where to ask, if not the collector here.")
def htcondor_schedd(socket: str | None) -> None:
    """Write ended jobs' accounts into their ads: HTCondor's schedd keeps this running.

    `htcondor-config` writes what starts it.
    """
    from lark_agent.cli import htcondor  # noqa: PLC0415  see the module's docstring

    htcondor.account(socket or _settings(None, {}).socket)


def _settings(config: Path | None, given: dict[str, str]) -> CollectorSettings:
    import msgspec  # noqa: PLC0415  see the module's docstring

    from lark_agent.config import COLLECTOR_FILE, CollectorSettings, load  # noqa: PLC0415  as above

    settings = msgspec.structs.replace(load(CollectorSettings, config, COLLECTOR_FILE), **given)
    wrong = [f"--{key}: {text}" for key, text in settings.findings()]
    if wrong:
        raise ConfigurationError("\n".join(wrong))
    return settings


def main() -> None:
    """Run the command; errors of ours become one line and their exit status."""
    try:
        collector(prog_name="lark-collector")
    except LarkError as error:
        for line in str(error).splitlines():
            click.echo(f"lark-collector: {line}", err=True)
        sys.exit(error.exit_status)
