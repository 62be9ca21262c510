"""Logs of the services: one line of key=value pairs an event, on standard error.

`setup` routes structlog and the standard library's loggers (grpc, asyncio) into one format. Under
systemd, standard error is the journal's: JOURNAL_STREAM names its device and inode. Each event is
then an entry with fields of its own (`lark_agent.linux.journal`), or, where the journal does not
take that, a line that starts with `<N>`, the syslog priority that journald takes off again
(sd-daemon(3)); it has no time, since the journal keeps its own. Elsewhere a line starts with the
UTC time.

A line that knows a slot, a sandbox or a job, but not the attachment, gets it from who was told by
`attribute` to find it: so what a driver deep in the kernel's affairs complains about can be found
by the attachment's id.

Values may come from jobs and peers. Whatever is not printable is escaped, so that nobody forges a
second line or a terminal's control sequence.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

import structlog

from lark_agent.linux import journal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from structlog.typing import EventDict, Processor, WrappedLogger

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Names of levels as syslog priorities (RFC 5424, 6.2.1)."""


def setup(*, verbose: bool = False, socket: Path = journal.SOCKET) -> None:
    """Log to standard error, or to the journal at `socket`; debug events only if verbose."""
    journaled = _stderr_is_journal()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.format_exc_info,
        _attributed,
        _printable,
    ]
    if not journaled:
        shared.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _Line(journaled=journaled),
        ],
    )
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if journaled:
        handler = journal.Journal(socket)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    # these tell of every poll and call at debug level
    for library in ("asyncio", "grpc"):
        logging.getLogger(library).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


_FINDERS: list[Callable[[Mapping[str, object]], str]] = []


def attribute(find: Callable[[Mapping[str, object]], str]) -> None:
    """Have `find` name the attachment that an event's pairs concern; "" if there is none.

    It is called by whichever thread writes the line.
    """
    _FINDERS[:] = [find]


def _attributed(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    for find in _FINDERS:
        if "attachment" not in event and (found := find(event)):
            event["attachment"] = found
    return event


class _Line:
    """Renders one event: time, level, event, then the other pairs in order; or as an entry."""

    def __init__(self, *, journaled: bool) -> None:
        self._journaled = journaled
        self._pairs = structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "event"], drop_missing=True, bool_as_flag=False
        )

    def __call__(self, logger: WrappedLogger, name: str, event: EventDict) -> str:
        level = str(event.get("level", "info"))
        line = self._pairs(logger, name, event)
        return journal.entry(line, PRIORITIES.get(level, 6), event) if self._journaled else line


def _printable(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Escape what is not printable, line ends included."""
    return {
        key: value
        if isinstance(value, (int, float, bool))
        else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
        for key, value in event.items()
    }


def _stderr_is_journal() -> bool:
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stderr = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(stderr.st_dev), str(stderr.st_ino))
