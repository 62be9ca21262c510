"""The way to the collector: which channel to open, and the certificate behind it kept fresh.

Each connection reads the identity anew, so enrolment needs no restart of the agent. When two thirds
of the certificate's life are over it is renewed by a process of its own
(`lark_agent.rpc.enrollment`), over the connection's own credentials; `renewed` then tells who has
a connection to open another. If the collector cannot be reached that is tried every few minutes
for the last third; a worker that misses all of it must be enrolled again, and its records wait in
the journal.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog

from lark_agent import trouble
from lark_agent.errors import PrerequisiteError
from lark_agent.rpc import secure
from lark_agent.trust.identity import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.config.worker import CollectorLink
    from lark_agent.trust.identity import Identity

_LOOK_SECONDS = 60.0
_RENEW_SECONDS = 60.0
"""How long a renewal may take."""
log = structlog.get_logger(__name__)


class Link:
    """Opens channels to one collector, as one worker."""

    def __init__(
        self, settings: CollectorLink, worker: str, look_seconds: float = _LOOK_SECONDS
    ) -> None:
        self.address = settings.address
        self._insecure = settings.insecure
        self._file = Path(settings.identity)
        self._worker = worker
        self._look_seconds = look_seconds
        self.renewed = asyncio.Event()
        """Set when there is a newer certificate than that of the last channel."""

    def channel(self, options: Sequence[tuple[str, int]]) -> grpc.aio.Channel:
        """Return a channel; raises PrerequisiteError if this worker has no valid identity."""
        self.renewed.clear()
        if self._insecure:
            return grpc.aio.insecure_channel(self.address, options=list(options))
        identity = self._identity()
        return grpc.aio.secure_channel(
            self.address, secure.credentials(identity), options=[*options, *secure.OPTIONS]
        )

    async def keep_fresh(self) -> None:
        """Renew the certificate in time, for ever; a background task."""
        said = ""
        if self._insecure:
            await asyncio.Event().wait()  # there is none, and a task that ends is started again
        while True:
            await asyncio.sleep(self._pause())
            try:
                identity = await asyncio.to_thread(load, self._file)
                if time.time() < identity.renew_at():
                    continue
                why = await self._renew()
            except PrerequisiteError:
                continue  # who reports says so
            if why:
                trouble.met("renew the certificate")
            else:
                self.renewed.set()
                log.info("renewed the certificate", collector=self.address)
            if why not in {"", said}:
                log.warning("cannot renew the certificate", collector=self.address, error=why)
            said = why

    def _pause(self) -> float:
        """Return when to look next: often enough for a certificate of however short a life."""
        try:
            identity = load(self._file)
        except PrerequisiteError:
            return self._look_seconds
        return min(self._look_seconds, max((identity.ends - identity.begins) / 20, 0.5))

    async def _renew(self) -> str:
        """Return why it could not be renewed; empty if it was."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-m", "lark_agent.rpc.enrollment", self.address, str(self._file),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            _, said = await asyncio.wait_for(child.communicate(), _RENEW_SECONDS)
        except TimeoutError:
            child.kill()
            await child.wait()
            return f"no answer within {_RENEW_SECONDS:g} s"
        if child.returncode == 0:
            return ""
        return said.decode(errors="replace").strip() or f"status {child.returncode}"

    def _identity(self) -> Identity:
        identity = load(self._file)
        if identity.worker != self._worker:
            raise PrerequisiteError(
                f"{self._file} is of worker {identity.worker}, and this one is {self._worker}: "
                "enrol it, or say worker = … in agent.toml"
            )
        if identity.ends <= time.time():
            raise PrerequisiteError(
                f"the certificate of this worker ended ({self._file}): enrol it again, with a "
                "token made with --replace"
            )
        return identity
