"""`lark`, the command for people: what did which job move, and is this worker fit.

Each command asks one service (`asking`), and shows the answer as a table (`show`) or as JSON
(`as_json`). This module only knows options, the choice of output and exit statuses. It imports
neither grpc nor rich: both are loaded where they are used, so that help and completion answer
in well under 100 ms.

Errors are one line on standard error, "lark: what was tried, what came back; what to do".
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lark_agent.accounting.questions import GroupBy, JobFilter
from lark_agent.cli import run as starting
from lark_agent.cli import units
from lark_agent.cli.policy import policy
from lark_agent.cli.quota import quota
from lark_agent.errors import LarkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lark_agent.cli.show import Frame

AGENT_SOCKET = "/run/lark/agent.sock"
COLLECTOR_SOCKET = "/run/lark-collector/query.sock"
INTERRUPTED = 130
BROKEN_PIPE = 141

EPILOG = """\b
Exit status:
  0    done
  1    `lark doctor` found something that fails; `lark policy explain`: the job is refused
  2    wrong option, or a configuration file that cannot be used
  6    the agent or collector did not answer, or refused
  7    no such job among those you may see
  8    `lark doctor --live`: a trial failed
  9    `lark doctor --live`: something could not be tried
  125  `lark run` could not start the command
  130  interrupted
"""


class Moment(click.ParamType[int]):
    """A span before now or a time, as UTC nanoseconds."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the text; click reports what it cannot read."""
        if isinstance(value, int):
            return value
        try:
            return units.moment(value, time.time_ns())
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Groups(click.ParamType[tuple[GroupBy, ...]]):
    """One or more words of GroupBy, separated by commas."""

    name = "|".join(GroupBy)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[GroupBy, ...]:
        """Read the words."""
        try:
            return tuple(GroupBy(word.strip()) for word in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list of {', '.join(GroupBy)}", param, ctx)


def options(*each: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Bundle options that several commands share."""

    def apply(command: Any) -> Any:
        for option in reversed(each):
            command = option(command)
        return command

    return apply


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
exact_option = click.option("--bytes", "exact", is_flag=True, help="Print bytes to the last digit.")
which_jobs = options(
    click.option("--owner", default="", help="Only jobs of this owner."),
    click.option("--group", default="", help="Only jobs of this accounting group."),
    click.option("--worker", default="", help="Only jobs on this worker."),
)
when = options(
    click.option("--since", type=Moment(), help="Alive after: 1d, 2h30m, 2026-11-22T20:00."),
    click.option("--until", type=Moment(), help="Started before; same forms."),
)


class Commands(click.Group):
    """The commands, which end in silence when nobody reads any more, as in `lark jobs | head`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and write everything out while a broken pipe can still be told."""
        try:
            outcome = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # the interpreter flushes once more at its end: let that go nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(BROKEN_PIPE) from None
        return outcome


@click.group(
    cls=Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--agent", metavar="PATH", help="Ask this agent. Default: /run/lark/agent.sock")
@click.option(
    "--collector",
    metavar="PATH",
    help="Ask this collector. Default: /run/lark-collector/query.sock, if it exists",
)
@click.version_option(package_name="lark-agent")
@click.pass_context
def lark(context: click.Context, agent: str | None, collector: str | None) -> None:
    """Show what jobs move over the network, and whether this worker is fit for them.

    The collector of this machine is asked if there is one (it knows all workers), else the agent
    (it knows this worker). The environment variable LARK_ENDPOINT names another one to ask.
    """
    if agent and collector:
        raise click.UsageError("--agent and --collector exclude each other: one service is asked")
    context.obj = {"agent": agent, "endpoint": endpoint(agent, collector)}


def endpoint(agent: str | None, collector: str | None) -> str:
    """Choose whom to ask; an option beats the environment, the collector beats the agent."""
    named = agent or collector or os.environ.get("LARK_ENDPOINT")
    if named:
        return named
    return COLLECTOR_SOCKET if Path(COLLECTOR_SOCKET).exists() else AGENT_SOCKET


def example(*lines: str) -> str:
    """Format the end of a command's help."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


@lark.command(epilog=example("lark jobs --running", "lark jobs --owner alice --since 1d --json"))
@which_jobs
@click.option("--running/--ended", default=None, help="Only jobs in this state.")
@when
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(0), help="Most jobs; 0: all."
)
@exact_option
@as_json_option
@click.pass_obj
def jobs(obj: dict[str, str], /, **given: Any) -> None:
    """List jobs, newest first."""
    from lark_agent.cli import as_json, asking, show, tables  # noqa: PLC0415  as above

    with asking.connect(obj["endpoint"]) as asker:
        found, more = asker.jobs(filter_of(given, running=given["running"]), given["limit"])
    if given["as_json"]:
        click.echo(as_json.write(as_json.jobs(found, more=more)))
        return
    if found:
        frame = frame_of(exact=given["exact"])
        tables.draw([show.jobs(found, frame)])
    else:
        click.echo("no jobs match", err=True)
    if more:
        click.echo(f"more jobs match than the {len(found)} shown; see --limit", err=True)


@lark.command(
    epilog=example(
        "lark job 1234.0",
        "lark job 0193ab6e-5c1f --json",
        'sudo lark job 1234.0 set rate="10 Mbit/s" reach=campus',
        "sudo lark job 1234.0 set cut=yes",
    )
)
@click.argument("job_id", metavar="ID")
@click.argument("change", nargs=-1, metavar="[set SETTING=VALUE ...]")
@exact_option
@as_json_option
@click.pass_obj
def job(
    obj: dict[str, str], job_id: str, change: tuple[str, ...], exact: bool, as_json: bool
) -> None:
    """Show everything about one job, or change what it may do while it runs.

    ID is the batch system's job id, or an attachment id or the start of one (8 characters). Shown
    are each run, traffic by class, drops and what they mean, and what was changed.

    With set, on the worker that runs the job and for admins: the settings of a profile (reach,
    peers, inbound, ports, services, rate, guarantee, queue, priority, dscp, flow_label, quotas),
    and cut=yes to let nothing through any more. It holds for the next packet and is recorded.
    """
    from lark_agent.cli import as_json as forms  # noqa: PLC0415  as above
    from lark_agent.cli import asking, show, tables  # noqa: PLC0415  as above

    where = obj["endpoint"]
    if change and where == COLLECTOR_SOCKET:  # the default: only the agent can change anything
        where = AGENT_SOCKET
    with asking.connect(where) as asker:
        if change:
            asker.change(job_id, settings_of(change))
        runs = asker.find(job_id)
    if as_json:
        click.echo(forms.write(forms.runs(runs)))
        return
    frame = frame_of(exact=exact)
    for number, run in enumerate(runs):
        if number:
            click.echo("\n" + "-" * min(frame.width, 80) + "\n")
        tables.draw(show.job(run, frame))


@lark.command(
    epilog=example("lark usage --by owner --since 1d", "lark usage --by group,day --since 30d")
)
@click.option(
    "--by",
    type=Groups(),
    multiple=True,
    default=["owner"],
    show_default="owner",
    help="What each line sums; several: one line a combination.",
)
@which_jobs
@click.option(
    "--since", type=Moment(), default="1d", show_default=True, help="1d, 2h30m, 2026-11-22."
)
@click.option("--until", type=Moment(), help="Same forms; default: now.")
@exact_option
@as_json_option
@click.pass_obj
def usage(obj: dict[str, str], /, **given: Any) -> None:
    """Sum what jobs moved, by owner, group, worker, destination class or day.

    Bytes belong to the UTC hour in which they were counted, so the interval is widened to whole
    hours; the first line says to which.
    """
    from lark_agent.cli import as_json, asking, show, tables  # noqa: PLC0415  as above
    from lark_agent.model import Count  # noqa: PLC0415  as above

    by = tuple(dict.fromkeys(group for groups in given["by"] for group in groups))
    wanted = filter_of(given)
    with asking.connect(obj["endpoint"]) as asker:
        found = asker.totals(by, wanted)
        # a job counts in several lines (one a class, one a day): their sum is not the jobs
        distinct = sum(row.jobs for row in asker.totals((), wanted).rows)
    total = (
        distinct,
        sum((row.sent for row in found.rows), Count()),
        sum((row.received for row in found.rows), Count()),
    )
    if given["as_json"]:
        click.echo(as_json.write(as_json.totals(by, found, total)))
    else:
        tables.draw(show.usage(by, found, total, frame_of(exact=given["exact"])))


@lark.command(epilog=example("lark top", "lark top --owner alice --once"))
@which_jobs
@click.option("--once", is_flag=True, help="Print one picture and end (default if not a terminal).")
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=click.FloatRange(1.0, 3600.0),
    help="Seconds between two pictures.",
)
@click.pass_obj
def top(obj: dict[str, str], /, once: bool, interval: float, **given: Any) -> None:
    """Watch running jobs, fastest first; q or Ctrl-C ends.

    Rates are exact differences of the worker's samples; AGE says how old the latest is.
    """
    from lark_agent.cli import asking, tables  # noqa: PLC0415  as above
    from lark_agent.cli import top as view  # noqa: PLC0415  as above

    wanted = filter_of(given, running=True)
    console = tables.console()
    with asking.connect(obj["endpoint"]) as asker:
        if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            view.once(asker, wanted, console)
        else:
            view.live(asker, wanted, console, interval)


@lark.command(epilog=example("sudo lark doctor", "lark doctor --json", "sudo lark doctor --live"))
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The agent's configuration. Default: /etc/lark/agent.toml",
)
@click.option("--live", is_flag=True, help="Try it instead: run a job, as root.")
@click.option("--user", metavar="NAME", help="With --live: whose job it is to be. Default: nobody")
@as_json_option
@click.pass_obj
def doctor(
    obj: dict[str, str | None], config: Path | None, user: str | None, *, live: bool, as_json: bool
) -> None:
    """Check this worker: kernel, firewall, addresses, resolver, wrapper, agent.

    Each finding comes with its remedy. Nothing is changed. Without root some checks cannot be
    made; they are listed as such. Exit status 1 if anything fails.

    With --live a job runs through a sandbox of the agent, and talks with a peer on this worker:
    does it get there, is it translated, does its record equal what was sent and received, is what
    is forbidden dropped and counted, is nothing left. Exit status 8 if any of it fails, 9 if some
    could not be tried, such as when all slots are taken.
    """
    from lark_agent.cli import tables  # noqa: PLC0415  as above
    from lark_agent.cli.doctor import report, system  # noqa: PLC0415  as above

    if user and not live:
        raise click.UsageError("--user is for --live")
    probe = system.probe(config, obj["agent"])
    findings = system.live(probe, obj["agent"], user) if live else report.examine(probe)
    if as_json:
        click.echo(report.as_json(findings))
    else:
        tables.draw([report.text(findings)])
    if live:
        raise click.exceptions.Exit(report.tried(findings))
    if report.failed(findings):
        raise click.exceptions.Exit(1)


lark.add_command(policy)
lark.add_command(quota)
lark.add_command(starting.run)


def settings_of(words: tuple[str, ...]) -> dict[str, str]:
    """Read `set SETTING=VALUE ...`."""
    settings = dict(word.partition("=")[::2] for word in words[1:])
    if words[0] != "set" or not settings or not all("=" in word for word in words[1:]):
        raise click.UsageError("write: lark job ID set SETTING=VALUE ...")
    return settings


def filter_of(given: dict[str, Any], *, running: bool | None = None) -> JobFilter:
    """Make a filter of the options shared by the commands."""
    since, until = given.get("since") or 0, given.get("until") or 0
    if until and since >= until:
        raise click.UsageError("--since is not before --until: no job can match")
    return JobFilter(given["owner"], given["group"], given["worker"], running, since, until)


def frame_of(*, exact: bool) -> Frame:
    """Say how to draw on this terminal, now."""
    from lark_agent.cli import show, tables  # noqa: PLC0415  as above

    return show.Frame(tables.console().width, exact, time.time_ns())


def main() -> None:
    """Run the command line; the entry point `lark`."""
    sys.exit(status(sys.argv[1:]))


def status(arguments: list[str]) -> int:
    """Run one command line, print its error if it has one, and return the exit status."""
    try:
        outcome = lark.main(arguments, prog_name="lark", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except LarkError as error:
        for line in str(error).splitlines():
            click.echo(f"lark: {units.visible(line)}", err=True)
        return error.exit_status
    return outcome if isinstance(outcome, int) else 0


if __name__ == "__main__":
    main()
