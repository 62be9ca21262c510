"""Checks of what only some sites use: networks of the site, and rates.

A network is looked at as the agent does before its first sandbox there (`sandbox.networks`), so
that both say the same. What needs a kernel's module is tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.cli.doctor.findings import fail, ok, unchecked, warn
from lark_agent.errors import LarkError
from lark_agent.model import Connectivity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.cli.doctor.findings import Finding
    from lark_agent.cli.doctor.probe import Probe


def networks(probe: Probe) -> Iterator[Finding]:
    """Check that each network is there, and what gives its addresses."""
    if not probe.settings.networks:
        yield ok("none configured")
    for name, network in probe.settings.networks.items():
        where = f"{network.connectivity} {name}"
        if network.connectivity is Connectivity.OVS and not probe.is_root:
            yield unchecked(f"{where}: only root can ask Open vSwitch", "sudo lark doctor")
            continue
        problems = probe.look_at_network(name, network, probe.uplink())
        for problem in problems:
            yield fail(f"{where}: {problem}", "jobs there are refused until it is repaired")
        if not problems:
            yield ok(f"{where}: there, addresses {network.addresses}")


def vlans(probe: Probe) -> Iterator[Finding]:
    """Check that the kernel has 802.1Q, where a network needs it."""
    kinds = {name: network.connectivity for name, network in probe.settings.networks.items()}
    wanting = [name for name, kind in kinds.items() if kind is Connectivity.VLAN]
    if not wanting:
        yield ok("no network needs 802.1Q")
        return
    try:
        probe.try_vlan()
    except (LarkError, OSError) as error:
        yield fail(
            f"network {wanting[0]} needs 802.1Q, and no such interface can be made: {error}",
            "modprobe 8021q, or a kernel with CONFIG_VLAN_8021Q",
        )
    else:
        yield ok("an 802.1Q interface was made, and is gone again")


def queues(probe: Probe) -> Iterator[Finding]:
    """Try what rates and guarantees are made of."""
    remedy = "modprobe -a ifb sch_htb sch_tbf cls_u32 act_mirred, or a kernel that has them"
    try:
        probe.try_queues()
    except (LarkError, OSError) as error:
        if probe.settings.uplink.rate:
            yield fail(f"[uplink] rate holds for every job, and cannot be held: {error}", remedy)
        else:
            yield warn(f"jobs with a rate will be refused: {error}", remedy)
    else:
        yield ok("a queue of each kind was made, and is gone again")
