"""The log in a journal of systemd's own program, which runs alone for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

JOURNALD = Path("/lib/systemd/systemd-journald")
SPEAK = """
import structlog
from lark_agent.linux import log
log.setup()
structlog.get_logger().info("ours", job="7.0", attachment="0190-a")
structlog.get_logger().info("another", attachment="0190-b")
"""
ALONE = f"""
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log || exit 3
mkdir -p /run/systemd/journal /run/log/journal
{JOURNALD} 2>/dev/null &
for _ in $(seq 100); do [ -S /run/systemd/journal/socket ] && break; sleep 0.1; done
export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)
"$1" -c "$2"
for _ in $(seq 100); do
    journalctl -q -D /run/log/journal --no-pager -o cat LARK_ATTACHMENT=0190-a | grep . && break
    sleep 0.1
done
journalctl -q -D /run/log/journal --no-pager -o cat LARK_JOB=7.0
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces")
@pytest.mark.skipif(not JOURNALD.exists(), reason="needs systemd-journald (package systemd)")
def test_the_journal_finds_an_attachment() -> None:
    """`journalctl LARK_ATTACHMENT=…` and `LARK_JOB=…` show the lines about it and no others."""
    isolated = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    done = subprocess.run(
        [*isolated, "sh", "-c", ALONE, "sh", sys.executable, SPEAK],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    line = "level=info event=ours job=7.0 attachment=0190-a"
    assert done.stdout.splitlines() == [line, line], done.stderr
    assert "event=" not in done.stderr
