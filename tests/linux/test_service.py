"""What services say to their manager and to the log."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from lark_agent.linux import systemd

if TYPE_CHECKING:
    from pathlib import Path

SPEAK = """
import logging, pathlib, structlog, sys
from lark_agent.linux import log
log.setup(verbose=False, socket=pathlib.Path(sys.argv[1]))
structlog.get_logger().info("job started", job="7.0", count=3)
structlog.get_logger().debug("not shown")
structlog.get_logger().warning("forged\\n<0>line", owner="\\x1b[31mred", attachment="0190-a")
logging.getLogger("grpc").error("from a %s", "library")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger().exception("failed")
"""


def spoken(*, as_journal: bool, tmp_path: Path) -> list[str]:
    """Log from a process whose standard error is the journal's, or is not."""
    target = tmp_path / "log"
    with target.open("wb") as stream:
        status = os.fstat(stream.fileno())
        # any other inode: a JOURNAL_STREAM inherited from a parent is not ours
        inode = status.st_ino if as_journal else status.st_ino + 1
        subprocess.run(
            [sys.executable, "-c", SPEAK, str(tmp_path / "journal")],
            check=True,
            stderr=stream,
            env={**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{inode}"},
        )
    return target.read_text().splitlines()


def test_the_journal_gets_priorities_and_no_time(tmp_path: Path) -> None:
    """Each event is one line with its syslog priority, libraries' events too."""
    lines = spoken(as_journal=True, tmp_path=tmp_path)
    assert lines[0] == '<6>level=info event="job started" job=7.0 count=3'
    assert [line[:3] for line in lines] == ["<6>", "<4>", "<3>", "<3>"]
    assert lines[2] == '<3>level=error event="from a library"'
    assert "ZeroDivisionError" in lines[3]


def test_the_journal_gets_fields_to_ask_for(tmp_path: Path) -> None:
    """Attachment and job are fields of the entry, in one datagram; then standard error is empty."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        journal.settimeout(10)
        assert spoken(as_journal=True, tmp_path=tmp_path) == []
        entries = [journal.recv(65_536).decode().split("\n") for _ in range(4)]
    assert entries[0] == [
        'MESSAGE=level=info event="job started" job=7.0 count=3', "PRIORITY=6",
        "SYSLOG_IDENTIFIER=-c", "LARK_JOB=7.0", "",
    ]  # fmt: skip
    assert [entry[1] for entry in entries] == [f"PRIORITY={n}" for n in (6, 4, 3, 3)]
    assert "LARK_ATTACHMENT=0190-a" in entries[1]
    assert all(len(entry) <= 6 for entry in entries), "no value makes a field of its own"


def test_a_terminal_gets_the_time_and_no_priorities(tmp_path: Path) -> None:
    """Without the journal a line starts with the UTC time."""
    for line in spoken(as_journal=False, tmp_path=tmp_path):
        assert line.startswith("timestamp=20")
        assert "Z level=" in line


def test_nobody_forges_lines_or_colours(tmp_path: Path) -> None:
    """Line ends and escape sequences in values are written out."""
    line = spoken(as_journal=True, tmp_path=tmp_path)[1]
    assert "\x1b" not in line
    assert "forged" in line
    assert "<0>line" in line
    assert "x1b[31mred" in line


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines arrive in one datagram, at a path or in the abstract namespace."""
    name = f"@lark-test-{os.getpid()}" if abstract else f"{tmp_path}/n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert systemd.notify("READY=1", "STATUS=well")
        assert manager.recv(100) == b"READY=1\nSTATUS=well"


@pytest.mark.parametrize("address", ["", "nonsense", "/nonexistent/socket"])
def test_nobody_to_tell_is_no_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a manager, or with one that is gone, a service goes on."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_is_fed_twice_an_interval(
    usec: str | None, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the time systemd waits; none if it waits for no one, or for another process."""
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value.replace("own", str(os.getpid())))
    assert systemd.watchdog_interval() == seconds
