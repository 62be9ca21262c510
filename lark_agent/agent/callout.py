"""The site's callout: a program that may overrule the policy for one job.

Its words are those of `lark_agent.policy.overrides`; this room only runs it. Which program, as
whom and for how long comes from the site's configuration alone; nothing of the job is in its
arguments or environment, only on its standard input. It runs as an unprivileged user in a
session of its own, and is killed with all it started when its time is over or the job hangs up.
At most `_AT_ONCE` run at a time; the rest wait, and their time begins when theirs do.

setpriv(1) changes the user, not `subprocess`: with a user to change to, Python would fork the
agent, and the agent never forks; without one it uses vfork(2), in C, and executes at once.

What fails is logged with what the program said on standard error, and then the site's
`on_failure` holds. Ads that are too long to be told refuse the job whatever the site chose, or a
job could grow its ad until nobody asks the callout any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
from typing import TYPE_CHECKING

import structlog

from lark_agent.config import OnFailure
from lark_agent.errors import LarkError, PolicyRefusal, Unavailable
from lark_agent.policy.overrides import MAX_BYTES, Overrides, UnreadableAnswer, question

if TYPE_CHECKING:
    from lark_agent.config import Callout
    from lark_agent.policy.site import Asking, SitePolicy

_AT_ONCE = 8
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_MOST_SAID = 400

log = structlog.get_logger(__name__)


class CalloutFailed(LarkError):  # noqa: N818  reads as a verdict, as Refused does
    """The program could not be run, was late, or gave no usable answer."""


class Callouts:
    """Runs the callout of whichever policy holds."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def ask(self, policy: SitePolicy, asking: Asking) -> Overrides:
        """Return what the callout of a policy that has one overrules.

        Raises PolicyRefusal for ads too long for it, and Unavailable if it fails and the site
        does not let jobs go on without it.
        """
        callout = policy.callout
        told = question(*policy.ads(asking))
        if len(told) > MAX_BYTES:
            raise PolicyRefusal(
                f"the ads are {len(told)} bytes; the site's callout takes {MAX_BYTES}; shorten "
                "the job's ad (environment and arguments are the usual cause)"
            )
        try:
            async with self._room:
                return Overrides.parse(await _run(callout, told))
        except (CalloutFailed, UnreadableAnswer) as error:
            log.error(
                "callout failed", command=callout.command[0], job=asking.job.job_id,
                error=str(error), on_failure=callout.on_failure.value,
            )  # fmt: skip
            if callout.on_failure is OnFailure.CONTINUE:
                return Overrides()
            raise Unavailable(
                f"the site's policy cannot decide: its callout failed ({error}); "
                "tell the site's admin"
            ) from error


async def _run(callout: Callout, told: bytes) -> bytes:
    """Return what the program wrote; raises CalloutFailed."""
    program = callout.command[0]
    try:
        account = await asyncio.to_thread(pwd.getpwnam, callout.user)
    except KeyError as error:
        raise CalloutFailed(f"there is no user '{callout.user}' to run {program}") from error
    # privilege: CAP_SETUID and CAP_SETGID, to have less than the agent
    become = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    try:
        process = await asyncio.create_subprocess_exec(
            "setpriv", *become, "--inh-caps=-all", "--no-new-privs", "--", *callout.command,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, cwd="/", env=_ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise CalloutFailed(f"cannot run setpriv: {error.strerror}; install util-linux") from error
    try:
        async with asyncio.timeout(callout.timeout_seconds):
            answer, said, _ = await asyncio.gather(
                _read(process.stdout, MAX_BYTES + 1), _read(process.stderr, _MOST_SAID),
                _tell(process.stdin, told),
            )  # fmt: skip
            if len(answer) > MAX_BYTES:
                raise CalloutFailed(f"{program} answered over {MAX_BYTES} bytes")
            status = await process.wait()
    except TimeoutError as error:
        _kill(process)
        raise CalloutFailed(
            f"{program} did not end within {callout.timeout_seconds:g} s"
        ) from error
    except asyncio.CancelledError:
        _kill(process)
        raise
    if status:
        last = " ".join(said.decode(errors="replace").split()) or "it said nothing"
        raise CalloutFailed(f"{program} ended with {status}: {last}")
    return answer


async def _tell(pipe: asyncio.StreamWriter | None, told: bytes) -> None:
    """Write the question; a program need not read it."""
    assert pipe is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        pipe.write(told)
        await pipe.drain()
    pipe.close()


async def _read(pipe: asyncio.StreamReader | None, most: int) -> bytes:
    """Read to the end or to `most` bytes, and go on reading what is too much into nothing."""
    assert pipe is not None
    kept = bytearray()
    while piece := await pipe.read(4096):
        kept += piece[: most - len(kept)]
    return bytes(kept)


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the program and what it left in its session; the loop collects it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
