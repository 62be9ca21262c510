"""What goes into Slurm's own files, written from the agent's settings.

Three files of Slurm are concerned. plugstack.conf loads the plugin on every node, also where jobs
are only submitted (the options). gres.conf and slurm.conf make the worker's bandwidth something
that the scheduler counts; they are left out where `[uplink] rate` says nothing that could be
counted. The text is comments and lines to append; nothing of it has to be edited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.hooks.install import SPANK_PLUGIN
from lark_agent.quantities import rates

if TYPE_CHECKING:
    from pathlib import Path

    from lark_agent.config import AgentSettings

GRES = "bandwidth"


def text(file: str, settings: AgentSettings, directory: Path) -> str:
    """Return what one of Slurm's files needs; `directory` is where the plugin was installed."""
    uplink = rates(settings.uplink.rate or 0)
    megabits = min(uplink.sent, uplink.received) // 10**6
    if file == "plugstack.conf":
        return _plugstack(directory, counted=megabits > 0)
    if not megabits:
        return f"# LARK: no [uplink] rate in agent.toml, so no bandwidth to count in {file}\n"
    if file == "gres.conf":
        return (
            "# LARK: bandwidth of the uplink in Mbit/s ([uplink] rate in agent.toml)\n"
            f"Name={GRES} Count={megabits} Flags=CountOnly\n"
        )
    return (
        "# LARK: lets jobs ask for bandwidth, `sbatch --gres=bandwidth:100` (Mbit/s a node).\n"
        f"# The NodeName lines of nodes that have it need Gres={GRES}:{megabits} as well.\n"
        f"GresTypes={GRES}\n"
    )


def _plugstack(directory: Path, *, counted: bool) -> str:
    argument = f" gres={GRES}" if counted else ""
    return (
        '# LARK: every task of a job in the job\'s network sandbox. "required" also makes slurmd\n'
        "# drain a node without an agent. Restart slurmd after a change here.\n"
        f"required {directory / SPANK_PLUGIN}{argument}\n"
    )
