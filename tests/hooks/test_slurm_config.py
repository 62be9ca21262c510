"""What an admin puts into Slurm's files, and what Slurm keeps of a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from lark_agent.cli.agent import SLURM_FILES
from lark_agent.config import AgentSettings, Uplink
from lark_agent.hooks.slurm import summary
from lark_agent.hooks.slurm_config import text
from lark_agent.model import ClassUsage, Connectivity, Count, Job, Record, Scheduler, Usage

THERE = Path("/usr/libexec/lark")


def lines(file: str, rate: str) -> list[str]:
    """Return what is no comment."""
    settings = AgentSettings(uplink=Uplink(rate=rate))
    return [line for line in text(file, settings, THERE).splitlines() if not line.startswith("#")]


def test_the_plugin_is_required_and_told_which_gres_is_bandwidth() -> None:
    """Without an uplink rate there is no GRES, and slurmctld need not be asked for one."""
    plugin = "required /usr/libexec/lark/spank_lark.so"
    assert lines("plugstack.conf", "1 Gbit/s") == [f"{plugin} gres=bandwidth"]
    assert lines("plugstack.conf", "") == [plugin]


@pytest.mark.parametrize(
    ("rate", "count"), [("1 Gbit/s", 1000), ("2 Gbit/s sent, 10 Gbit/s received", 2000)]
)
def test_the_scheduler_counts_what_the_uplink_has_both_ways(rate: str, count: int) -> None:
    """A guarantee holds both ways, so the slower one is what can be given away."""
    assert lines("gres.conf", rate) == [f"Name=bandwidth Count={count} Flags=CountOnly"]
    assert lines("slurm.conf", rate) == ["GresTypes=bandwidth"]


def test_without_an_uplink_rate_there_is_nothing_to_count() -> None:
    """Every file says why, in a comment."""
    for file in SLURM_FILES[1:]:
        assert lines(file, "") == []
        assert "[uplink] rate" in text(file, AgentSettings(), THERE)


def test_the_summary_has_totals_and_classes() -> None:
    """Bytes as the record has them."""
    campus = ClassUsage("campus", Count(1, 100), Count(2, 2000))
    other = ClassUsage("other", Count(1, 1), Count(0, 0))
    job = Job(Scheduler.SLURM, "campus:1", "alice", 1001, "physics", verified=True)
    record = Record(
        "01a2", "worker1", 0, job, "nat", Connectivity.NAT, 1, usage=Usage((campus, other))
    )
    assert summary(record) == ("lark worker1: sent=101 received=2000 campus=100/2000 other=1/0")
