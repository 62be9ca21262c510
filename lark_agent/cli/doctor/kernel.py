"""Checks of the kernel: version, eBPF, namespaces, nftables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lark_agent.cli.doctor.findings import fail, ok, unchecked, warn
from lark_agent.errors import LarkError
from lark_agent.model import Connectivity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.cli.doctor.findings import Finding
    from lark_agent.cli.doctor.probe import Probe

OLDEST = (4, 18)
"""The kernel of Enterprise Linux 8, which has all that the datapath uses."""


def version(probe: Probe) -> Iterator[Finding]:
    """Check that the kernel is new enough."""
    numbers = re.match(r"(\d+)\.(\d+)", probe.release)
    if numbers is None:
        yield unchecked(f"'{probe.release}' is no kernel version", "compare it with 4.18 yourself")
    elif (int(numbers[1]), int(numbers[2])) < OLDEST:
        yield fail(
            f"Linux {probe.release} is older than {OLDEST[0]}.{OLDEST[1]}",
            "upgrade the kernel; Enterprise Linux 8 or later, Debian 11 or later have one",
        )
    else:
        yield ok(f"Linux {probe.release}")


def datapath(probe: Probe) -> Iterator[Finding]:
    """Check that the kernel takes the programs and maps of the datapath."""
    try:
        features = probe.features()
    except LarkError as error:
        yield fail(str(error), "the agent cannot load its datapath before this is repaired")
        return
    for name, works, detail in features:
        if works:
            yield ok(f"{name}: {detail}" if detail else name)
        else:
            yield fail(
                f"{name}: {detail}",
                "needs a kernel with CONFIG_BPF_SYSCALL, NET_CLS_BPF and NET_SCH_INGRESS; "
                "lockdown=confidentiality forbids it",
            )


def bpffs(probe: Probe) -> Iterator[Finding]:
    """Look for a place to pin maps, so that counters survive a restart of the agent."""
    wanted = probe.settings.paths.bpffs
    mount = probe.mount_of(wanted)
    if mount is not None and mount.kind == "bpf":
        yield ok(f"{wanted} lies on the bpffs mounted at {mount.point}")
    else:
        yield fail(
            f"{wanted} (paths.bpffs) does not lie on a bpffs",
            "mount one: mount -t bpf bpf /sys/fs/bpf (systemd does it at boot)",
        )


def cgroups(probe: Probe) -> Iterator[Finding]:
    """Look for control groups of version 2, by which jobs without a sandbox are told apart."""
    profiles = probe.settings.all_profiles.items()
    wanting = [name for name, profile in profiles if profile.connectivity is Connectivity.HOST]
    place = next((mount.point for mount in probe.mounts() if mount.kind == "cgroup2"), "")
    if place:
        yield ok(f"version 2 at {place}: connectivity host works")
    elif wanting:
        yield fail(
            f"no version 2, which profile {wanting[0]} needs (connectivity host)",
            "boot with systemd.unified_cgroup_hierarchy=1, or choose another connectivity",
        )
    else:
        yield ok("no version 2; only connectivity host needs it, and no profile has that")


def namespaces(probe: Probe) -> Iterator[Finding]:
    """Check that as many network namespaces may exist as there are slots."""
    text = probe.sysctl("user/max_net_namespaces")
    slots = probe.settings.pool.slots
    key = "user.max_net_namespaces"
    if not text:
        yield fail(f"no {key}", "use a kernel with CONFIG_NET_NS and CONFIG_USER_NS")
    elif int(text) == 0:
        yield fail(
            f"{key} = 0 forbids network namespaces, to root as well",
            f"sysctl -w {key}={max(slots * 2, 1024)}, and keep it in /etc/sysctl.d (Apptainer's "
            "guide recommends 0; kernel.unprivileged_userns_clone=0 is as strict and spares root)",
        )
    elif int(text) < slots:
        yield fail(
            f"{key} = {text} is fewer than the {slots} slots",
            f"sysctl -w {key}={slots * 2}, or lower pool.slots",
        )
    else:
        yield ok(f"{key} = {text}")


def nftables_library(probe: Probe) -> Iterator[Finding]:
    """Check that the agent can speak to nftables."""
    try:
        probe.load_library("libnftables.so.1")
    except OSError as error:
        yield fail(f"libnftables: {error}", "install libnftables1 (or nftables)")
    else:
        yield ok("libnftables.so.1 loads")


def sandbox_trial(probe: Probe) -> Iterator[Finding]:
    """Try it: make a network namespace with the agent's kind of table in it."""
    try:
        probe.try_namespace()
    except (LarkError, OSError) as error:
        yield fail(
            f"no network namespace with NAT can be made: {error}",
            "modprobe -a nf_tables nft_chain_nat nft_masq nft_connlimit, and see "
            "user.max_net_namespaces above",
        )
    else:
        yield ok("a namespace with NAT for IPv4 and IPv6 was made, and is gone again")


def other_firewalls(probe: Probe) -> Iterator[Finding]:
    """Look for another firewall that would drop what sandboxes send."""
    try:
        text = probe.nft("list chains")
    except LarkError as error:
        yield unchecked(f"the ruleset cannot be listed: {error}", "look with: nft list ruleset")
        return
    hostile = []
    for table in re.split(r"^table ", text, flags=re.MULTILINE)[1:]:
        name = table.partition("{")[0].strip()
        hostile += [
            f"{chain} in table {name}"
            for chain in re.findall(
                r"chain (\S+) \{[^{}]*hook forward[^{}]*policy drop", table, flags=re.DOTALL
            )
            if name != "inet lark"
        ]
    for chain in hostile:
        yield warn(
            f"chain {chain} drops forwarded packets by policy",
            'let it accept those from and to interfaces "lark*", before its other rules '
            "(iptables: -I FORWARD -i lark+ -j ACCEPT; -I FORWARD -o lark+ -j ACCEPT)",
        )
    for old in ("ip_tables_names", "ip6_tables_names"):
        if "filter" in probe.text(f"/proc/net/{old}").split():
            yield unchecked(
                f"an iptables-legacy filter table is loaded (/proc/net/{old})",
                "look with: iptables-legacy -S FORWARD; it must let interfaces lark+ pass",
            )
    if not hostile:
        yield ok("no nftables chain drops forwarded packets by policy")
