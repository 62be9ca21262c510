"""docs/htcondor.md, followed to the letter on a fresh Debian.

Everything that the page has in a block is done, in its order, or the test fails: files are written
where the line before says, commands are run by a shell. Played here is only what a laboratory does
not have: systemd.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import until
from tests.htcondor import programs
from tests.htcondor.conftest import AGENT
from tests.htcondor.machine import Machine
from tests.lab.filesystem import ROOT
from tests.lab.world import PROGRAMS, Lab

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.lab.process import Process

pytestmark = [pytest.mark.root, pytest.mark.htcondor]

GUIDE = ROOT / "docs/htcondor.md"
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`(/[^`]+)`:\n*$")
UNFENCED = re.compile(r"\n\n {4}")
RESTART = "systemctl restart lark-agent\n"
SETTINGS = "/etc/lark/agent.toml"
LAB = """
# that of kernels is the machine's, not the lab's
ENABLE_KERNEL_TUNING = false
# instead of a minute
PERIODIC_EXPR_INTERVAL = 2
"""
SYSTEMCTL = """#!/bin/sh
# there is no systemd: what its unit of HTCondor does
[ "$*" = "start condor" ] || { echo "unexpected: systemctl $*" >&2; exit 1; }
exec condor_master
"""
LARK = f"""#!/bin/sh
exec chroot /machine {PROGRAMS}/lark "$@"
"""


class Admin:
    """A machine as it is after Debian's installer, with an agent, and its admin."""

    def __init__(self, lab: Lab, root: Path) -> None:
        programs.install(lab)
        self._lab = lab
        self._settings = f'observers = ["{programs.observer(lab, root)}"]\n{AGENT}'
        self._agent: Process = lab.agent(self._settings)
        self.machine = Machine(lab, root)
        self.said: dict[str, str] = {}
        """What each block of commands printed."""
        self._write("/etc/condor/config.d/40-lab", LAB)
        for name, text in (("systemctl", SYSTEMCTL), ("lark", LARK)):
            self._write(f"/usr/local/bin/{name}", text)
            self.machine.path(f"/usr/local/bin/{name}").chmod(0o755)
        for program in (programs.AGENT, programs.COLLECTOR):
            name = program.rpartition("/")[2]
            self.machine.path(f"/usr/local/bin/{name}").symlink_to(program)

    def follow(self, page: str) -> None:
        """Do what the page's blocks say."""
        assert not UNFENCED.search(page), "a block that is not fenced would be skipped"
        for block in BLOCK.finditer(page):
            (indent, language, text), file = block.groups(), FILE.search(page[: block.start()])
            text = re.sub(f"^{indent}", "", text, flags=re.MULTILINE)
            if language == "sh":
                self.type(text)
            elif file is None:
                raise AssertionError(f"nobody says what to do with\n{text}")
            elif file[1] == SETTINGS:
                self._settings += text
                # the agent is the lab's, and what reads its settings on the machine sees the lab's
                self._lab.path("/etc/lark").mkdir(exist_ok=True)
                self._lab.path(SETTINGS).write_text(self._settings)
                self._write(SETTINGS, self._settings)
            else:
                self._write(file[1], text)

    def type(self, block: str) -> None:
        """Run commands as root, as they stand."""
        parts = block.split(RESTART)
        for count, part in enumerate(parts):
            if count:
                self._restart()
            if part:
                self.said[block] = self.machine.run(["sh", "-e", "-c", part], timeout=120).stdout

    def _restart(self) -> None:
        self._agent.signal(15)
        self._agent.wait()
        self._agent = self._lab.agent(self._settings)

    def _write(self, file: str, text: str) -> None:
        self.machine.path(file).parent.mkdir(parents=True, exist_ok=True)
        self.machine.path(file).write_text(text)


def test_the_guide_leads_from_an_empty_pool_to_a_job_with_a_record(condor_root: Path) -> None:
    """Every command of the page works in its order, and shows what the page says that it shows.

    The job that it submits is accounted; a second one, after its last step, with its transfer.
    """
    with Lab() as lab:
        admin = Admin(lab, condor_root)
        admin.follow(GUIDE.read_text())
        ready = next(block for block in admin.said if "LarkReady" in block)
        attempt = next(block for block in admin.said if "condor_submit" in block)
        account = next(block for block in admin.said if "condor_history" in block)
        assert "slot1@" in admin.said[ready]
        assert "alice" in admin.said[attempt]
        _, owner, incoming, _ = admin.said[account].splitlines()[-1].split()
        (first,) = jobs(lab)
        assert (first["owner"], first["scheduler"]) == ("alice", "htcondor")
        assert owner == "alice"
        assert int(incoming) == first["received"]["bytes"] > 100_000

        ask = ["condor_config_val", "-startd", "STARTER"]
        until(
            lambda: "lark-starter" in admin.machine.run(ask, check=False).stdout,
            "a startd that was restarted",
        )
        admin.type(ready)
        admin.type(attempt)
        second = jobs(lab)[0]
        assert second["transfer"]["received"]["bytes"] > 0


def jobs(lab: Lab) -> list[dict[str, Any]]:
    """Return the agent's records, the newest first."""
    found: list[dict[str, Any]] = json.loads(lab.run(["lark", "jobs", "--json"]).stdout)["jobs"]
    return found
