"""docs/htcondor.md, followed to the letter on a fresh Debian."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.htcondor import programs
from tests.htcondor.conftest import AGENT
from tests.htcondor.machine import Machine
from tests.lab.filesystem import ROOT
from tests.lab.world import PROGRAMS, Lab

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.htcondor]

GUIDE = ROOT / "docs/htcondor.md"
SYSTEMCTL = """#!/bin/sh
# there is no systemd: what its unit of HTCondor does
[ "$*" = "start condor" ] || { echo "unexpected: systemctl $*" >&2; exit 1; }
exec condor_master
"""
LARK = f"""#!/bin/sh
exec chroot /machine {PROGRAMS}/lark "$@"
"""


def test_the_guide_leads_from_an_empty_pool_to_a_job_with_a_record(condor_root: Path) -> None:
    """Every command of the page works in its order, and the job that it submits is accounted."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    with Lab() as lab:
        programs.install(lab)
        lab.agent(f'observers = ["{programs.observer(lab, condor_root)}"]\n{AGENT}')
        machine = Machine(lab, condor_root)
        # the tuning of kernels is the machine's, not the lab's
        here = machine.path("/etc/condor/config.d/40-lab")
        here.write_text("ENABLE_KERNEL_TUNING = false\n")
        for name, text in (("systemctl", SYSTEMCTL), ("lark", LARK)):
            machine.path(f"/usr/local/bin/{name}").write_text(text)
            machine.path(f"/usr/local/bin/{name}").chmod(0o755)
        machine.path("/usr/local/bin/lark-agent").symlink_to(programs.AGENT)
        for block in blocks:
            machine.run(["sh", "-e", "-c", block], timeout=120)
        jobs = json.loads(lab.run(["lark", "jobs", "--json"]).stdout)["jobs"]
        assert [(job["owner"], job["scheduler"]) for job in jobs] == [("alice", "htcondor")]
        assert jobs[0]["received"]["bytes"] > 100_000
