"""What the counters' words mean, and what to do about them: one entry for each the model knows.

Kept beside the commands instead of in the datapath because the readers differ: the datapath
tells a developer why it drops, this tells a user what their job did and an admin what to change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.model import DropReason, ExitReason

if TYPE_CHECKING:
    from lark_agent.model import Change, Record

DROPS: dict[DropReason, tuple[str, str]] = {
    DropReason.NO_PLAN: (
        "packets before the job had its sandbox or after it had ended",
        "nothing to do: late answers to a job that is gone",
    ),
    DropReason.LINK_LAYER: (
        "frames that are neither IP nor the job's own ARP, or carry a VLAN tag",
        "the job must use plain IP; sandboxes carry nothing else",
    ),
    DropReason.MALFORMED: (
        "packets whose headers do not parse",
        "look for a program in the job that builds packets itself",
    ),
    DropReason.SPOOFED_MAC: (
        "frames with a source link-layer address that is not the sandbox's",
        "the job must not change the address of eth0; look for bridges or virtual machines in it",
    ),
    DropReason.SPOOFED_ADDRESS: (
        "packets with an address that is not the sandbox's",
        "the job must use the address it was given; look for virtual machines or raw sockets in it",
    ),
    DropReason.CLASS_DENIED: (
        "packets of a destination class that the job does not reach (cut off: none)",
        "ask the site for another profile, or add the class to the profile's `reach`",
    ),
    DropReason.PEER_DENIED: (
        "packets to or from another job, of this worker or another",
        "the plans of both jobs must admit the other; ask for a profile with peers",
    ),
    DropReason.MARTIAN: (
        "packets with loopback or multicast addresses",
        "usually service discovery (mDNS, SSDP) of a library: harmless; switch it off in the job",
    ),
    DropReason.QUOTA: (
        "packets that a used-up quota no longer lets pass",
        "lark quota shows what is left; ask the site for more, or wait for the next period",
    ),
    DropReason.INBOUND_DENIED: (
        "packets that came in unasked, or at all where the profile's `inbound` is none",
        "ask the site for a profile with `inbound`, or open the connection from the job",
    ),
    DropReason.SERVICE_DENIED: (
        "packets to the worker itself that are for none of the services it lists for the job",
        "ask the site for the service under [services], or do not use the worker's own address",
    ),
    DropReason.FORGED_SERVICE: (
        "router advertisements, redirects or answers of a DHCP server that the job sent",
        "look for virtual machines, bridges or routing daemons in the job",
    ),
}

DECIDED_BY: dict[DropReason, tuple[str, ...]] = {
    DropReason.CLASS_DENIED: ("cut", "reach"),
    DropReason.PEER_DENIED: ("cut", "peers"),
    DropReason.INBOUND_DENIED: ("cut", "inbound", "ports"),
    DropReason.SERVICE_DENIED: ("cut", "services"),
}
"""The settings of the job's plan that make the datapath drop for a reason."""

EXITS: dict[ExitReason, str] = {
    ExitReason.EXITED: "the job exited with status {status}",
    ExitReason.SIGNALED: "the job was killed by signal {status}",
    ExitReason.ENDED: "the job ended; the kernel no longer said how",
    ExitReason.NOT_STARTED: "the wrapper had a sandbox but could not start the job in it",
    ExitReason.AGENT_ABSENT: (
        "the job ended while no agent was running: the end time is late, the totals are right"
    ),
    ExitReason.TRUNCATED: (
        "the kernel's counters were lost (reboot): totals are the last durable ones"
    ),
}


def drop(reason: str) -> tuple[str, str]:
    """Return meaning and remedy of a drop reason as records spell it; honest about unknown ones."""
    try:
        return DROPS[DropReason[reason.upper().replace("-", "_")]]
    except KeyError:
        return f"unknown to this version of lark ({reason})", "update lark"


def deciding(reason: str, record: Record) -> list[str]:
    """Say which settings of the plan in force decide about a drop reason, and who changed them."""
    try:
        names = DECIDED_BY[DropReason[reason.upper().replace("-", "_")]]
    except KeyError:
        return []
    changed = {change.setting: change.by for change in record.changes}
    return [
        f"here: {name} = {value}" + (f", changed by {changed[name]}" if name in changed else "")
        for name, value in record.plan
        if name in names
    ]


QUOTA = "quota "
"""How the name of a change's author begins if it is a quota and not a person."""


def quotas(record: Record) -> list[Change]:
    """Return what quotas changed about a job, the latest of each, oldest first."""
    latest = {change.by: change for change in record.changes if change.by.startswith(QUOTA)}
    return sorted(latest.values())


def ending(record: Record) -> str:
    """Say in a sentence how an attachment ended; empty while it runs."""
    if not record.ended_ns:
        return ""
    if record.exit_reason is None:
        return "the job ended"
    return EXITS[record.exit_reason].format(status=record.exit_status)
