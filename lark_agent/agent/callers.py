"""Who asks on the run socket, by what the kernel says, and whether they can have a sandbox at all.

Refused are callers in another network namespace than the agent's (they are in a sandbox already, or
in one they made: comparing namespaces cannot be raced as comparing pids could), but for the
children of a starter that the agent itself put into one (`lark_agent.agent.starters`); callers in
the control group of a job that has no sandbox; and root, whom no sandbox can hold, unless it asks
for a user.

Behind a caller may stand the batch system: a parent process whose real user is root and whose
program is one of `trusted_launchers` (`lark_agent.linux.programs`). A process's name would not do:
a user can give sudo any name, by a link, and have it start what they like as themselves.
"""

from __future__ import annotations

import asyncio
import pwd
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from lark_agent.errors import InvalidRequest, PolicyRefusal
from lark_agent.hooks.identity import Caller, Launcher
from lark_agent.linux import namespaces, process, programs
from lark_agent.sandbox import host

if TYPE_CHECKING:
    from lark_agent.config import AgentSettings
    from lark_agent.hooks.request import RunRequest

_USER_SECONDS, _MOST_USERS = 60.0, 10_000
_MOST_DOUBTS = 100
log = structlog.get_logger(__name__)


class Callers:
    """Looks at callers."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._host = namespaces.identity("/proc/self/ns/net")
        self._users: dict[int, tuple[str, float]] = {}
        self._doubted: set[str] = set()
        """Programs that a line in the log was written about."""

    async def name(self, peer: process.Peer, request: RunRequest) -> Caller:
        """Say who asks. Raises Refused if it is root for itself, or another for others."""
        if peer.uid == 0 and not request.user:
            raise PolicyRefusal("root cannot be held in a sandbox; run the job as its user")
        if peer.uid != 0 and request.user is not None:
            raise PolicyRefusal("only root may ask for another account")
        uid = peer.uid or request.user or 0
        user = await self._user(uid)
        shared = any(fnmatchcase(user, pattern) for pattern in self._settings.shared_accounts)
        return Caller(peer.pid, uid, user, self._launcher(peer.pid), shared, by_root=peer.uid == 0)

    def check(
        self, peer: process.Peer, pidfd: int, starters: tuple[int, int] | None = None
    ) -> bool:
        """Raise Refused if the caller can have no sandbox, whatever it asks for.

        `starters` is the network of the starter whose child it is, where it may be as well; returns
        whether it is there.
        """
        if peer.pid == 0:
            raise InvalidRequest(
                "the caller is outside this worker's process tree (another pid namespace)"
            )
        network = process.network_identity(peer.pid)
        if network not in {self._host, starters} or not process.alive(pidfd):
            raise PolicyRefusal(
                "the caller is not in the worker's own network: it is in a sandbox already; "
                "start the command directly"
            )
        if host.is_held(peer.pid):
            raise PolicyRefusal(
                "the caller is in the control group of a job already; start the command directly"
            )
        return network != self._host

    async def _user(self, uid: int) -> str:
        """Return the name of a user, remembered for a while.

        Directory services may be slow, so they are not asked in the loop's thread.
        """
        now = asyncio.get_running_loop().time()
        name, until = self._users.get(uid, ("", 0.0))
        if now >= until:
            try:
                name = (await asyncio.to_thread(pwd.getpwuid, uid)).pw_name
            except KeyError:
                name = str(uid)
            if len(self._users) >= _MOST_USERS:
                self._users.clear()
            self._users[uid] = name, now + _USER_SECONDS
        return name

    def _launcher(self, pid: int) -> Launcher | None:
        """Return the batch system's process that started the caller, if one did."""
        parent = process.parent(pid)
        if parent <= 1:
            return None
        _, uid = process.command_and_user(parent) or ("", -1)
        name = self._trusted(parent) if uid == 0 else ""
        if not name:
            return None
        launcher = Launcher(parent, process.start_time(parent), name)
        # still its parent: so the number was the launcher's all the time
        return launcher if process.parent(pid) == parent else None

    def _trusted(self, pid: int) -> str:
        """Return as which launcher a process of root is trusted, empty: as none.

        Distributions install variants of a program, slurmstepd-wlm for slurmstepd.
        """
        program = programs.of(pid)
        if program is None:
            return ""
        trusted, name = self._settings.trusted_launchers, Path(program.path).name
        if program.path in trusted:
            return name
        known = next((each for each in trusted if f"{name}-".startswith(f"{each}-")), "")
        if known and program.doubt:
            self._doubt(program)
            return ""
        return known

    def _doubt(self, program: programs.Program) -> None:
        if program.path not in self._doubted and len(self._doubted) < _MOST_DOUBTS:
            self._doubted.add(program.path)
            log.warning(
                "not taken for the batch system", program=program.path, why=program.doubt,
                remedy="give it to root, or its path in trusted_launchers",
            )  # fmt: skip
