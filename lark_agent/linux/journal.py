"""Events as entries of systemd's journal, with fields that it can be asked for.

An entry is one datagram of FIELD=value lines to the journal's socket (systemd's
JOURNAL_NATIVE_PROTOCOL); values have no line ends, because `lark_agent.linux.log` has escaped them,
so the protocol's other form is not needed. What the journal does not take (it is being restarted,
the datagram is too long) goes to standard error, which is the journal's too, as the line that it
would be without this. The socket never blocks: a journal that is slow must not hold up the agent.
"""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET = Path("/run/systemd/journal/socket")
FIELDS = {"attachment": "LARK_ATTACHMENT", "job": "LARK_JOB"}
"""Pairs of an event that are fields of their own."""


def entry(message: str, priority: int, event: Mapping[str, object]) -> str:
    """Return the datagram of an event; its first two lines are MESSAGE and PRIORITY."""
    named = [f"{field}={event[key]}" for key, field in FIELDS.items() if event.get(key)]
    name = f"SYSLOG_IDENTIFIER={Path(sys.argv[0]).name}"
    return "\n".join([f"MESSAGE={message}", f"PRIORITY={priority}", name, *named, ""])


class Journal(logging.Handler):
    """Sends what its formatter makes with `entry`."""

    def __init__(self, where: Path) -> None:
        super().__init__()
        self._where = str(where)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one entry."""
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001  as logging's own handlers: a line must not end the agent
            self.handleError(record)
            return
        try:
            self._socket.sendto(text.encode(errors="backslashreplace"), self._where)
        except OSError:
            message, priority = (line.partition("=")[2] for line in text.split("\n")[:2])
            sys.stderr.write(f"<{priority}>{message}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()
