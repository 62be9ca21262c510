"""`lark run`: start a command in a network sandbox, by hand or where a batch system has no hook.

It execs `lark-run` with the same options, so a job that starts this way goes the same way as every
other: same questions to the agent, same policy, same exit statuses, and nobody believes it more for
having come through here. What it adds is for root, whom no sandbox can hold: `--user` becomes that
account completely before anything of the job's is looked at.

The job must find things as its caller left them, and Python changes two at its start: it ignores
SIGPIPE and SIGXFSZ, which would stay ignored in the job, and without a locale it adds LC_CTYPE to
the environment (PEP 538). So both signals get their default back (whoever had ignored SIGPIPE on
purpose calls lark-run itself), and the environment is the one that the kernel kept.
"""

from __future__ import annotations

import os
import pwd
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lark_agent.errors import InvalidRequest, KernelError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

NOT_STARTED = 125
"""As lark-run, env(1) and nohup(1): the statuses below it are the command's own."""


class Misused(click.UsageError):
    """The command line is wrong, and so the command did not start."""

    exit_code = NOT_STARTED


@contextmanager
def _not_started() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        raise Misused(error.format_message(), error.ctx) from error


class Starter(click.Command):
    """A command whose own mistakes cannot be taken for the exit status of what it starts."""

    def make_context(self, *given: Any, **named: Any) -> click.Context:
        """Read the options."""
        with _not_started():
            return super().make_context(*given, **named)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _not_started():
            return super().invoke(ctx)


@click.command(
    cls=Starter,
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Example:
  lark run --profile campus -- rsync -a results store.example.org:
  sudo lark run --user backup --job-id nightly -- /usr/local/bin/backup --all
""",
)
@click.option("--profile", metavar="NAME", help="Ask for this profile of the site's policy.")
@click.option("--group", metavar="NAME", help="Accounting group that the job is booked on.")
@click.option("--job-id", metavar="ID", help="What to call the job. Default: pid-PID")
@click.option("--user", metavar="NAME", help="Run as this account; root must give one.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(
    context: click.Context, /, user: str | None, command: tuple[str, ...], **named: Any
) -> None:
    """Run a command in a network sandbox, and account for what it moves.

    The site's policy decides as for any job that no batch system vouches for: a profile that gives
    more than the job may have is refused. Options after the command are the command's.

    \b
    Exit status: the command's own, or
      125  it was not started: a line on standard error says why
      126  it cannot be executed
      127  it was not found
    """  # noqa: D301  \b keeps click from filling the lines
    from lark_agent.hooks import install  # noqa: PLC0415  --help stays fast

    if context.parent is not None and (
        context.parent.params["agent"] or context.parent.params["collector"]
    ):
        raise click.UsageError(
            "--agent and --collector are not for run: it asks where lark-run does"
        )
    wrapper = install.find()
    if wrapper is None:
        raise Unavailable(
            f"cannot run {command[0]}: no lark-run on PATH nor in {install.DIRECTORY}; as root: "
            "lark-agent install-wrapper (and put its --directory on PATH if it is another one)"
        )
    account = _account(user)
    options = [word for name, value in named.items() if value is not None
               for word in (f"--{name.replace('_', '-')}", value)]  # fmt: skip
    _exec(wrapper, [*options, "--", *command], account)


def _account(user: str | None) -> pwd.struct_passwd | None:
    """Return the account to become, None to stay; raises InvalidRequest."""
    if user is None:
        if os.geteuid() == 0:
            raise InvalidRequest(
                "root cannot be held in a sandbox; say with --user whose job it is to be"
            )
        return None
    if os.geteuid() != 0:
        raise InvalidRequest(f"only root can run a job as {user}; leave --user out, or use sudo")
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise InvalidRequest(
            f"this machine has no account {user}; `getent passwd` shows which it has"
        ) from None
    if account.pw_uid == 0:
        raise InvalidRequest(f"{user} is root, whom no sandbox can hold; name another account")
    return account


def _exec(wrapper: Path, words: list[str], account: pwd.struct_passwd | None) -> NoReturn:
    """Become lark-run; raises Unavailable."""
    from lark_agent.linux import accounts  # noqa: PLC0415  --help stays fast

    environment = _environment()
    try:
        if account is not None:
            environment |= {
                os.fsencode(name): os.fsencode(value)
                for name, value in accounts.surroundings(account).items()
            }
            accounts.become(account)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execve(wrapper, [str(wrapper), *words], environment)  # noqa: S606  no shell is the point
    except KernelError as error:
        raise Unavailable(str(error)) from error
    except OSError as error:
        whom = f" as {account.pw_name}" if account else ""
        raise Unavailable(
            f"cannot start {wrapper}{whom}: {error.strerror}; it must be executable for everybody, "
            "and so must be the way there (`lark doctor` looks)"
        ) from error


def _environment() -> dict[bytes, bytes]:
    """Return the environment that this process was started with."""
    words = Path("/proc/self/environ").read_bytes().split(b"\0")
    return dict(word.split(b"=", 1) for word in words if b"=" in word)
