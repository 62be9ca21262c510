"""The table of checks, and their findings as text and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lark_agent.cli.doctor import agent, beside, enrollment, install, kernel, network, networks
from lark_agent.cli.doctor.findings import Check, Level, unchecked
from lark_agent.cli.units import visible
from lark_agent.errors import LarkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from lark_agent.cli.doctor.findings import Finding
    from lark_agent.cli.doctor.probe import Probe

CHECKS = (
    Check("configuration", install.configuration),
    Check("kernel", kernel.version),
    Check("eBPF", kernel.datapath, needs_root=True),
    Check("bpffs", kernel.bpffs),
    Check("control groups", kernel.cgroups),
    Check("namespaces", kernel.namespaces),
    Check("nftables", kernel.nftables_library),
    Check("sandbox trial", kernel.sandbox_trial, needs_root=True),
    Check("other firewalls", kernel.other_firewalls, needs_root=True),
    Check("uplink", network.uplink),
    Check("forwarding", network.forwarding),
    Check("router advertisements", network.router_advertisements),
    Check("ports", network.ports),
    Check("addresses", network.addresses),
    Check("resolver", network.names),
    Check("networks", networks.networks),
    Check("802.1Q", networks.vlans, needs_root=True),
    Check("rates", networks.queues, needs_root=True),
    Check("wrapper", install.wrapper),
    Check("tracing", beside.tracing),
    Check("cron and at", beside.schedules),
    Check("lingering", beside.lingering, needs_root=True),
    Check("user namespaces", beside.user_namespaces),
    Check("admin group", install.admin_group),
    Check("journal", install.journal),
    Check("damage", install.damage, needs_root=True),
    Check("one agent", agent.one_agent),
    Check("run socket", agent.run_socket),
    Check("agent", agent.status),
    Check("certificate", enrollment.certificate, needs_root=True),
    Check("collector", agent.collector),
)

STYLES = {
    Level.OK: "green",
    Level.WARN: "yellow",
    Level.FAIL: "bold red",
    Level.UNCHECKED: "magenta",
}

FAILED, NOT_TRIED = 8, 9
"""Exit statuses of `--live`."""
Findings = list[tuple[str, "Finding"]]


def examine(probe: Probe, checks: Sequence[Check] = CHECKS) -> Findings:
    """Make every check; one that breaks is a finding of its own."""
    return [(check.name, finding) for check in checks for finding in _look(check, probe)]


def _look(check: Check, probe: Probe) -> list[Finding]:
    if check.needs_root and not probe.is_root:
        return [unchecked("not checked: only root can look", "sudo lark doctor")]
    try:
        return list(check.look(probe))
    except PermissionError as error:
        return [unchecked(f"not checked: {error}", "sudo lark doctor")]
    except (LarkError, OSError, ValueError) as error:
        return [unchecked(f"not checked: {error}", "look at what the message names")]


def failed(findings: Findings) -> bool:
    """Say whether anything must be repaired."""
    return any(finding.level is Level.FAIL for _, finding in findings)


def tried(findings: Findings) -> int:
    """Return the exit status of `--live`."""
    if failed(findings):
        return FAILED
    return NOT_TRIED if any(f.level is Level.UNCHECKED for _, f in findings) else 0


def as_json(findings: Findings) -> str:
    """Write the findings for programs; see docs/cli.md."""
    rows = [
        {"check": name, "level": f.level.value, "found": f.found, "remedy": f.remedy}
        for name, f in findings
    ]
    return json.dumps({"findings": rows, "failed": failed(findings)}, indent=2)


def text(findings: Findings) -> RenderableType:
    """Draw the findings for people, each remedy under its finding, then how many of each level."""
    from rich.console import Group  # noqa: PLC0415  50 ms that --json does not need
    from rich.table import Table  # noqa: PLC0415  as above
    from rich.text import Text  # noqa: PLC0415  as above

    drawn = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    drawn.add_column(no_wrap=True)
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, finding in findings:
        words = Text(visible(finding.found))
        if finding.remedy:
            words.append(f"\n-> {visible(finding.remedy)}", style="bold")
        drawn.add_row(Text(finding.level.value, style=STYLES[finding.level]), Text(name), words)
    levels = [finding.level for _, finding in findings]
    counts = ", ".join(f"{levels.count(level)} {level}" for level in Level if level in levels)
    return Group(drawn, Text(""), Text(counts))
