"""Who asks on the run socket, by what the kernel says, and whether they can have a sandbox at all.

Refused are callers in another network namespace than the agent's (they are in a sandbox already, or
in one they made: comparing namespaces cannot be raced as comparing pids could) or in the control
group of a job that has no sandbox, and root, whom no sandbox can hold, unless it asks for a user.
"""

from __future__ import annotations

import asyncio
import pwd
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lark_agent.errors import InvalidRequest, PolicyRefusal
from lark_agent.hooks.identity import Caller, Launcher
from lark_agent.linux import namespaces, process
from lark_agent.sandbox import host

if TYPE_CHECKING:
    from lark_agent.config import AgentSettings
    from lark_agent.hooks.request import RunRequest

_USER_SECONDS, _MOST_USERS = 60.0, 10_000


class Callers:
    """Looks at callers."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._host = namespaces.identity("/proc/self/ns/net")
        self._users: dict[int, tuple[str, float]] = {}

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

    def check(self, peer: process.Peer, pidfd: int) -> None:
        """Raise Refused if the caller can have no sandbox, whatever it asks for."""
        if peer.pid == 0:
            raise InvalidRequest(
                "the caller is outside this worker's process tree (another pid namespace)"
            )
        network = process.network_identity(peer.pid)
        if network != self._host or not process.alive(pidfd):
            raise PolicyRefusal(
                "the caller is not in the worker's own network: it is in a sandbox already; "
                "start the command directly"
            )
        if host.is_held(peer.pid):
            raise PolicyRefusal(
                "the caller is in the control group of a job already; start the command directly"
            )

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
        name, uid = process.command_and_user(parent) or ("", -1)
        if uid != 0 or name not in self._settings.trusted_launchers:
            return None
        launcher = Launcher(parent, process.start_time(parent), name)
        # still its parent: so the number was the launcher's all the time
        return launcher if process.parent(pid) == parent else None
