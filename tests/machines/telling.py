"""A pytest plugin: tell the outcome of each test, as a line of JSON, to the file LARK_TELL names.

Inside a virtual machine that file is a port to the host, which shows progress and counts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


class Telling:
    """Tell each test's outcome once: that of its first phase that did not pass, or its call's."""

    def __init__(self, port: Path) -> None:
        self._port = port.open("w", buffering=1)

    def _tell(self, **said: object) -> None:
        print(json.dumps(said), file=self._port)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._tell(collected=len(session.items))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._tell(test=report.nodeid, outcome="failed", seconds=0.0, why=report.longreprtext)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed and report.when != "call":
            return
        why = ""
        if report.skipped:
            why = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        elif report.failed:
            why = report.longreprtext
        self._tell(test=report.nodeid, outcome=report.outcome, seconds=report.duration, why=why)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Telling(Path(os.environ["LARK_TELL"])))
