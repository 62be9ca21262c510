"""Programs of the site that the agent runs: its callout, its quota hook.

Which program, as whom and for how long comes from the site's configuration alone; nothing of a job
is in its arguments or environment, only on its standard input. It runs as an unprivileged user in a
session of its own, and is killed with all it started when its time is over.

setpriv(1) changes the user, not `subprocess`: with a user to change to, Python would fork the
agent, and the agent never forks; without one it uses vfork(2), in C, and executes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
from typing import TYPE_CHECKING

from lark_agent.errors import LarkError

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_MOST_SAID = 400


class ProgramFailed(LarkError):  # noqa: N818  reads as a verdict, as Refused does
    """The program could not be run, was late, said too much, or ended with an error."""


async def run(
    command: Sequence[str], user: str, timeout_seconds: float, told: bytes, most_bytes: int
) -> bytes:
    """Tell a program something and return what it wrote; raises ProgramFailed."""
    program = command[0]
    try:
        account = await asyncio.to_thread(pwd.getpwnam, user)
    except KeyError as error:
        raise ProgramFailed(f"there is no user '{user}' to run {program}") from error
    # privilege: CAP_SETUID and CAP_SETGID, to have less than the agent
    become = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    try:
        process = await asyncio.create_subprocess_exec(
            "setpriv", *become, "--inh-caps=-all", "--no-new-privs", "--", *command,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, cwd="/", env=_ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ProgramFailed(f"cannot run setpriv: {error.strerror}; install util-linux") from error
    try:
        async with asyncio.timeout(timeout_seconds):
            answer, said, _ = await asyncio.gather(
                _read(process.stdout, most_bytes + 1), _read(process.stderr, _MOST_SAID),
                _tell(process.stdin, told),
            )  # fmt: skip
            if len(answer) > most_bytes:
                raise ProgramFailed(f"{program} answered over {most_bytes} bytes")
            status = await process.wait()
    except TimeoutError as error:
        _kill(process)
        raise ProgramFailed(f"{program} did not end within {timeout_seconds:g} s") from error
    except asyncio.CancelledError:
        _kill(process)
        raise
    if status:
        last = " ".join(said.decode(errors="replace").split()) or "it said nothing"
        raise ProgramFailed(f"{program} ended with {status}: {last}")
    return answer


async def _tell(pipe: asyncio.StreamWriter | None, told: bytes) -> None:
    """Write what is to be told; a program need not read it."""
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
