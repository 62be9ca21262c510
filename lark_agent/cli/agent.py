"""`lark-agent`: the daemon on each worker, and the admin's commands around it."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import click

from lark_agent.cli.lean import load_less
from lark_agent.config import AGENT_FILE, AgentSettings, load
from lark_agent.errors import ConfigurationError, LarkError
from lark_agent.hooks.install import DIRECTORY

SLURM_FILES = ("plugstack.conf", "gres.conf", "slurm.conf")
ENROLLMENT_PORT = 9621
LONGEST_TOKEN = 65_536
_FILE = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Configuration; without it {AGENT_FILE} if that exists, else the embedded default.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lark-agent", prog_name="lark-agent")
def agent() -> None:
    """Give every batch job a network of its own, and account for it.

    \b
    Exit statuses: 0 stopped in order, 1 other error, 2 configuration or usage,
    3 the machine lacks something, 4 the kernel refused, 5 the journal is unusable,
    6 the agent does not answer.
    """  # noqa: D301  \b keeps click from filling the lines


@agent.command()
@_FILE
@click.option("--verbose", is_flag=True, help="Log debug messages too.")
def run(file: Path | None, *, verbose: bool) -> None:
    """Run the agent in the foreground, as root.

    \b
    SIGTERM stops it; jobs that run keep their networks and are taken over by the next start.
    SIGHUP reloads classes, profiles and rules.

    \b
    Example:
      lark-agent run --config /etc/lark/agent.toml
    """  # noqa: D301  \b keeps click from filling the lines
    load_less()
    from lark_agent.linux import log  # noqa: PLC0415  --help stays fast

    settings = load(AgentSettings, file, AGENT_FILE)
    log.setup(verbose=verbose)
    from lark_agent.agent import daemon  # noqa: PLC0415  grpc and pyroute2 are slow to import

    asyncio.run(daemon.run(settings, file))


@agent.command()
@_FILE
def check(file: Path | None) -> None:
    """Check the configuration and say what is wrong with it.

    \b
    Example:
      lark-agent check --config /etc/lark/agent.toml
    """  # noqa: D301  \b keeps click from filling the lines
    from lark_agent.policy.site import SitePolicy  # noqa: PLC0415  --help stays fast

    settings = load(AgentSettings, file, AGENT_FILE)
    SitePolicy.compile(settings, file)
    click.echo(f"{file or (AGENT_FILE if AGENT_FILE.exists() else 'the embedded default')}: good")


@agent.command()
@_FILE
@click.option("--token-file", type=click.File("r"), default="-", help="Where the token is; without it, standard input.")  # fmt: skip  # noqa: E501  one option a line
@click.argument("address", metavar="[HOST:PORT]", required=False)
def enroll(file: Path | None, token_file: IO[str], address: str | None) -> None:
    """Get this worker a certificate from its collector, by a token made there.

    Without an address: port 9621 of the host in [collector] address. An agent that runs reports
    from then on; it renews the certificate by itself.

    \b
    Example:
      ssh collector lark-collector token create --worker $(hostname) | lark-agent enroll
      lark-agent enroll --token-file /root/token collector.example.org:9621
    """  # noqa: D301  \b keeps click from filling the lines
    from lark_agent.rpc.enrollment import enroll as ask  # noqa: PLC0415  --help stays fast
    from lark_agent.trust import token  # noqa: PLC0415  as above

    settings = load(AgentSettings, file, AGENT_FILE)
    link = settings.collector
    if not address and not link.address:
        raise ConfigurationError("no address: say it, or set [collector] address in agent.toml")
    where = address or f"{link.address.rpartition(':')[0]}:{ENROLLMENT_PORT}"
    given = token.parse(token_file.read(LONGEST_TOKEN))
    identity = ask(where, given, settings.worker_name, Path(link.identity))
    ends = datetime.fromtimestamp(identity.ends, UTC)
    click.echo(f"{identity.worker} is enrolled until {ends:%Y-%m-%d %H:%M} UTC: {link.identity}")


@agent.command("install-wrapper")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=DIRECTORY,
    show_default=True,
    help="Where the programs go; not on a file system mounted nosuid.",
)
def install_wrapper(directory: Path) -> None:
    """Install lark-run, HTCondor's programs, and lark-enter with its file capability.

    \b
    Example:
      lark-agent install-wrapper
      /usr/libexec/lark/lark-run curl http://example.org/
    """  # noqa: D301  \b keeps click from filling the lines
    from lark_agent.hooks.install import install  # noqa: PLC0415  --help stays fast

    for line in install(directory):
        click.echo(line)


@agent.command("slurm-config")
@_FILE
@click.argument("file_name", metavar="FILE", type=click.Choice(SLURM_FILES))
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/usr/libexec/lark"),
    show_default=True,
    help="Where install-wrapper put the plugin.",
)
def slurm_config(file: Path | None, file_name: str, directory: Path) -> None:
    """Print what a file of Slurm needs: plugstack.conf, gres.conf or slurm.conf.

    \b
    Example:
      lark-agent slurm-config plugstack.conf > /etc/slurm/plugstack.conf.d/lark.conf
      lark-agent slurm-config gres.conf >> /etc/slurm/gres.conf
    """  # noqa: D301  \b keeps click from filling the lines
    from lark_agent.hooks.slurm_config import text  # noqa: PLC0415  --help stays fast

    click.echo(text(file_name, load(AgentSettings, file, AGENT_FILE), directory), nl=False)


@agent.command("htcondor-config")
@_FILE
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write it; without it, standard output.",
)
def htcondor_config(file: Path | None, output: Path | None) -> None:
    """Write the file for HTCondor's config.d on this worker, from the agent's settings.

    Makes what it points HTCondor's starter to: see "The set-up of condor_ssh_to_job" in
    docs/htcondor.md.

    \b
    Example:
      lark-agent htcondor-config --output /etc/condor/config.d/50-lark
      condor_reconfig
    """  # noqa: D301  \b keeps click from filling the lines
    from lark_agent.cli import htcondor  # noqa: PLC0415  --help stays fast
    from lark_agent.hooks.htcondor_config import worker_file  # noqa: PLC0415  as above

    settings = load(AgentSettings, file, AGENT_FILE)
    arguments = ["--config", str(file.absolute())] if file else []
    agent_program = htcondor.program("lark-agent")
    libexec = htcondor.starters_libexec(settings.htcondor)
    htcondor.write(worker_file(settings, agent_program, arguments, libexec), output)


@agent.command("htcondor-startd")
@_FILE
def htcondor_startd(file: Path | None) -> None:
    """Publish network attributes and usage: HTCondor's startd keeps this running.

    Prints ads for ever; `htcondor-config` writes what starts it.
    """
    from lark_agent.cli import htcondor  # noqa: PLC0415  --help stays fast

    settings = load(AgentSettings, file, AGENT_FILE)
    htcondor.publish(f"{settings.paths.run}/agent.sock")


@agent.command(epilog="\b\nExample:\n  lark-agent gc --dry-run\n  lark-agent gc --dry-run --json")
@_FILE
@click.option(
    "--dry-run", is_flag=True, help="Only say it; has to be given, for agents repair by themselves."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def gc(file: Path | None, *, dry_run: bool, as_json: bool) -> None:
    """Show what differs between the kernel and the journal, as root.

    Repairs are made by the agent, when it starts and once a minute.
    """
    from lark_agent.cli import gc as garbage  # noqa: PLC0415  --help stays fast

    if not dry_run:
        raise click.UsageError("repairs are the agent's: restart it, or wait a minute")
    garbage.show(load(AgentSettings, file, AGENT_FILE), as_json=as_json)


@agent.command(epilog="\b\nExample:\n  lark-agent status\n  sudo lark-agent status --json")
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def status(file: Path | None, *, as_json: bool) -> None:
    """Show the state of the agent that runs here: slots, link, refusals and errors by name.

    Root also sees when the worker's certificate ends. Exit status 6 if no agent answers.
    """
    from lark_agent.cli import worker_status  # noqa: PLC0415  --help stays fast

    worker_status.show(load(AgentSettings, file, AGENT_FILE), as_json=as_json)


@agent.command("debug-bundle")
@_FILE
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write it; without it, a name with host and time, here.")  # fmt: skip  # noqa: E501  one option a line
@click.option("--with-records", is_flag=True, help="Put the journal's records in as well: jobs, owners, addresses.")  # fmt: skip  # noqa: E501  one option a line
def debug_bundle(file: Path | None, output: Path | None, *, with_records: bool) -> None:
    """Collect what somebody who helps needs to see of this worker, without secrets, as root.

    Versions, settings in force, doctor's findings, the agent's state, links, firewall, queues, the
    journal's size, the last lines of the log. It works without an agent, too.

    \b
    Example:
      lark-agent debug-bundle --output /root/lark-debug.tar.gz
    """  # noqa: D301  \b keeps click from filling the lines
    from lark_agent.cli import bundle  # noqa: PLC0415  --help stays fast
    from lark_agent.cli.doctor import system  # noqa: PLC0415  as above

    target = output or bundle.default_name()
    size = bundle.write(system.probe(file, None), target, with_records=with_records)
    click.echo(f"{target}: {size:,} bytes; read it before you give it away")


def main() -> None:
    """Entry point: errors become one line each and the error's exit status."""
    try:
        agent.main(standalone_mode=True, prog_name="lark-agent")
    except LarkError as error:
        for line in str(error).splitlines():
            click.echo(f"lark-agent: {line}", err=True)
        sys.exit(error.exit_status)
