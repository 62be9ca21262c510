"""The real machine, as a `Probe`.

Every door is opened only when a check goes through it, so that a missing library or a stopped
agent is a finding instead of the end of the command.
"""

from __future__ import annotations

import ctypes
import grp
import os
import platform
import shutil
import socket
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.cli import asking
from lark_agent.cli.doctor.probe import Probe
from lark_agent.config import AGENT_FILE, AgentSettings, load
from lark_agent.errors import ConfigurationError
from lark_agent.hooks import install
from lark_agent.linux import libc, namespaces, nftables
from lark_agent.linux.traffic import MAJOR, HtbClass, Traffic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.cli.doctor.report import Findings
    from lark_agent.config import Network
    from lark_agent.errors import LarkError
    from lark_agent.rpc.lark.v1.agent_pb2 import GetStatusResponse

TRIAL = """
table inet lark_doctor {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr 192.0.2.1 meta l4proto tcp masquerade to :1024-2047
    ip6 saddr 2001:db8::1 meta l4proto tcp masquerade to :1024-2047
  }
  set count4 { type ipv4_addr; size 4; flags dynamic; }
  chain share {
    add @count4 { ip saddr ct count over 1 } drop
  }
}
"""
NOBODY = "nobody"
"""Whose the trial job is unless somebody else is named."""
_TRIED = 0x3FFFFFFF
"""Index of a device that lives in a namespace for as long as it is tried."""


def probe(config: Path | None, agent: str | None) -> Probe:
    """Open this machine; `agent` is the agent's socket if the caller named one."""
    settings, problem = AgentSettings(), ""
    try:
        settings = load(AgentSettings, config, AGENT_FILE)
    except ConfigurationError as error:
        problem = str(error)
    where = agent or f"{settings.paths.run}/agent.sock"

    @cache
    def status() -> GetStatusResponse:
        with asking.connect(where) as asker:
            return asker.status()

    return Probe(
        settings=settings,
        problem=problem,
        root=Path("/"),
        is_root=os.geteuid() == 0,
        release=platform.release(),
        features=lambda: _features(settings),
        load_library=ctypes.CDLL,
        nft=nftables.run,
        try_namespace=lambda: namespaces.in_thread(_trial),
        try_vlan=lambda: namespaces.in_thread(_vlan_trial),
        try_queues=lambda: namespaces.in_thread(_queue_trial),
        look_at_network=_look_at_network,
        connect=_connect,
        agents=_agents,
        status=status,
        wrapper=partial(install.find, install.BUILT),
        capability=lambda path: os.getxattr(path, "security.capability"),
        free_bytes=lambda path: shutil.disk_usage(path).free,
        group_exists=_group_exists,
    )


def live(opened: Probe, agent: str | None, user: str | None) -> Findings:
    """Run a job through the agent and compare; see `lark_agent.cli.doctor.live`."""
    from lark_agent.cli.doctor import live  # noqa: PLC0415  imports netlink, which takes 90 ms

    where = agent or f"{opened.settings.paths.run}/agent.sock"
    return live.examine(opened, where, user or NOBODY)


def _features(settings: AgentSettings) -> Sequence[tuple[str, bool, str]]:
    from lark_agent.datapath.features import features  # noqa: PLC0415  250 ms; only root gets here

    datapath = settings.datapath
    found = features(Path(settings.paths.bpffs), datapath.loader, datapath.python)
    # the mount has a check of its own, which works without root
    return [(f.name, f.ok, f.detail) for f in found if f.name != "bpffs"]


def _trial() -> None:
    # privilege: CAP_SYS_ADMIN for the namespace, which ends with this thread
    libc.unshare_network()
    nftables.run(TRIAL)


def _vlan_trial() -> None:
    from lark_agent.linux.links import Links  # noqa: PLC0415  90 ms; few sites have such networks

    libc.unshare_network()  # privilege: as above
    with Links() as links:
        links.add_bridge("tried")
        links.add_vlan("tried.1", links.index("tried"), 1)


def _queue_trial() -> None:
    libc.unshare_network()  # privilege: as above
    with Traffic() as traffic:
        traffic.add_ifb("tried", _TRIED)
        traffic.put_htb(_TRIED)
        mbit = 125_000
        traffic.put_class(_TRIED, HtbClass(8, 0, mbit, mbit, 10**6, 0, 1 << 16))
        traffic.put_queue(_TRIED, 8, 1 << 16, 1514)
        traffic.redirect(_TRIED, MAJOR, _TRIED)


def _look_at_network(name: str, network: Network, uplink: str) -> Sequence[LarkError]:
    from lark_agent.sandbox import networks  # noqa: PLC0415  90 ms; few sites have such networks

    return networks.lacking(name, network, uplink)


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking_agent:
        asking_agent.settimeout(5)
        asking_agent.connect(path)


def _agents() -> list[int]:
    import psutil  # noqa: PLC0415  30 ms that only this check needs

    here = namespaces.identity("/proc/thread-self/ns/net")
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        # the interpreter may come first: "python /usr/bin/lark-agent run"
        if "run" in words[1:3] and any(Path(w).name == "lark-agent" for w in words[:2]):
            try:
                same = namespaces.identity(f"/proc/{process.pid}/ns/net") == here
            except PermissionError:
                same = True  # not root: better one too many than none
            except FileNotFoundError:
                continue
            if same:
                found.append(process.pid)
    return found


def _group_exists(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True
