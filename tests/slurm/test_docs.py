"""docs/slurm.md is followed to the letter, from a node without any configuration of Slurm.

Its commands are taken from the page and run by a shell, files are written as they stand there.
Played here are only `apt` (the packages must be installed, or the test skips) and `systemctl`:
there is no systemd in a laboratory, so its services are started as their units do.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import until
from tests.lab.filesystem import STATE
from tests.lab.world import Lab
from tests.slurm.cluster import munge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.process import Process

pytestmark = [pytest.mark.root, pytest.mark.slurm]
PAGE = Path(__file__).parents[2] / "docs/slurm.md"
BLOCK = re.compile(r"(?:^`(/[^`]+)`:\n\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
UNITS = {"slurmctld": ["slurmctld", "-D"], "slurmd": ["slurmd", "-D"]}


class Node:
    """A machine as it is after Debian's installer, and its admin."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.said: dict[str, str] = {}
        """What each command of a user printed."""
        self._units: dict[str, Process] = {}
        # what is the machine's and not the lab's: an admin writes there
        for place in ("/usr/libexec", "/etc/slurm", "/etc/lark"):
            lab.path(place).mkdir(exist_ok=True)
            lab.run(["mount", "-t", "tmpfs", "none", place])
        lab.path("/etc/slurm/plugstack.conf.d").mkdir()
        lab.path("/etc/slurm/plugstack.conf").write_text(
            "include /etc/slurm/plugstack.conf.d/*.conf\n"
        )
        # this machine's control groups are of both versions, which slurmd does not guess
        lab.path("/etc/slurm/cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def follow(self, page: str) -> None:
        """Do what the page's blocks say, every one of them."""
        assert page.count("\n```") == 2 * len(BLOCK.findall(page)), "a block would be skipped"
        for file, language, text in BLOCK.findall(page):
            if file:
                self.lab.path(file).write_text(text)
            elif language == "console":
                for line in text.splitlines():
                    self._type(line)
            elif language == "toml":
                self._agree(text)
            else:
                raise AssertionError(f"nobody says what to do with\n{text}")

    def _agree(self, example: str) -> None:
        """Have the agent read an example for its settings, in the place of the page's own rules."""
        self.lab.path("/etc/lark/example.toml").write_text(example)
        self.lab.run(["lark-agent", "check", "--config", "/etc/lark/example.toml"])

    def _type(self, line: str) -> None:
        prompt, command = line.split(" ", 1)
        if command.startswith("systemctl "):
            self._service(command.split()[-1])
        elif command.startswith("apt "):
            # the machine's list of packages, which the laboratory hides
            subprocess.run(["dpkg", "-s", *command.split()[2:]], check=True, capture_output=True)
        elif prompt == "#":
            self.lab.run(["sh", "-c", command])
        else:
            until(self._idle, f"a node that takes jobs before `{command}`")
            done = self.lab.run(["sh", "-c", command], user="alice", cwd=f"{STATE}/home/alice")
            self.said[command] = done.stdout

    def _service(self, name: str) -> None:
        if name in self._units:
            old = self._units.pop(name)
            old.signal(15)
            old.wait()
        if name == "munge":
            munge(self.lab)
        elif name == "lark-agent":
            self.lab.agent(self.lab.path("/etc/lark/agent.toml").read_text())
        else:
            self._units[name] = self.lab.start(UNITS[name])

    def _idle(self) -> bool:
        return self.lab.run(["sinfo", "-h", "-o", "%t"], check=False).stdout.strip() == "idle"


@pytest.fixture
def node(slurm_installed: None) -> Iterator[Node]:
    """Give the test a machine with packages and nothing else."""
    with Lab() as lab:
        lab.path(STATE / "slurm").mkdir()
        yield Node(lab)


def test_the_page_leads_from_an_empty_node_to_jobs_in_sandboxes(node: Node) -> None:
    """Every command succeeds, and what users then see is a sandbox."""
    node.follow(PAGE.read_text())
    links = node.said["srun ip -brief address"]
    assert "eth0" in links
    assert "uplink0" not in links
    listed = node.said["lark jobs"]
    assert [f"campus:{n}" in listed for n in (1, 2, 3)] == [True] * 3
    assert re.search(r"campus:2 .* none ", listed)
