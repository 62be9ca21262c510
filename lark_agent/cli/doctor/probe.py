"""The view of the machine that checks look through.

Files are read below `root`, so a test paints a machine as a directory tree; what is not a file is
a callable. Routes come from /proc/net instead of netlink for the same reason, and because the
text is read without privilege and without loading a netlink library.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.linux.mounts import mounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lark_agent.config import AgentSettings, Network
    from lark_agent.errors import LarkError
    from lark_agent.linux.mounts import Mount
    from lark_agent.rpc.lark.v1.agent_pb2 import GetStatusResponse

# include/uapi/linux/{,ipv6_}route.h
RTF_UP, RTF_GATEWAY, RTF_REJECT, RTF_ADDRCONF = 0x0001, 0x0002, 0x0200, 0x00040000


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the main table."""

    network: IPv4Network | IPv6Network
    interface: str
    metric: int
    advertised: bool = False
    """Learned from an IPv6 router advertisement."""
    by_router: bool = False
    """The network is behind a router, not on the link itself."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Doors to the machine; `lark_agent.cli.doctor.system` opens the real ones."""

    settings: AgentSettings
    problem: str
    """Why the configuration cannot be used (the settings are the defaults then); "" if it can."""
    root: Path
    """Where /proc, /sys, /etc and /run are read."""
    is_root: bool
    release: str
    """Of the kernel, as uname says."""
    features: Callable[[], Sequence[tuple[str, bool, str]]]
    """(name, works, detail) of what the datapath needs."""
    load_library: Callable[[str], object]
    """Raises OSError."""
    nft: Callable[[str], str]
    """Run nft commands; raises LarkError."""
    try_namespace: Callable[[], object]
    """Make a throw-away namespace with the agent's kind of NAT; raises LarkError or OSError."""
    try_vlan: Callable[[], object]
    """Make an 802.1Q interface in such a namespace; raises LarkError or OSError."""
    try_queues: Callable[[], object]
    """Make what holds packets back in such a namespace; raises LarkError or OSError."""
    look_at_network: Callable[[str, Network, str], Sequence[LarkError]]
    """Find out what a network (name, settings, the uplink) lacks here."""
    connect: Callable[[str], None]
    """Connect to a SOCK_SEQPACKET socket; raises OSError."""
    agents: Callable[[], Sequence[int]]
    """Process ids of the agents that run in this network namespace."""
    status: Callable[[], GetStatusResponse]
    """Ask the agent; raises RemoteError."""
    wrapper: Callable[[], Path | None]
    """Where lark-run is installed."""
    capability: Callable[[Path], bytes]
    """The security.capability attribute of a file; raises OSError."""
    free_bytes: Callable[[Path], int]
    """Of the file system of a directory; raises OSError."""
    group_exists: Callable[[str], bool]

    def path(self, name: str | Path) -> Path:
        """Place an absolute path below `root`."""
        return self.root / str(name).lstrip("/")

    def text(self, name: str) -> str:
        """Read a file; "" if it does not exist. Raises OSError for other reasons."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return ""

    def sysctl(self, key: str) -> str:
        """Read a setting such as net/ipv4/ip_forward; "" if this kernel has none of that name."""
        return self.text(f"/proc/sys/{key}")

    def routes(self) -> list[Route]:
        """List the routes of both families."""
        return [
            *routes4(self.text("/proc/net/route")),
            *routes6(self.text("/proc/net/ipv6_route")),
        ]

    def uplink(self) -> str:
        """Name the interface that sandboxes will use; "" if there is none."""
        if self.settings.uplink.interface:
            return self.settings.uplink.interface
        defaults = [route for route in self.routes() if route.network.prefixlen == 0]
        defaults.sort(key=lambda route: (route.network.version, route.metric))
        return defaults[0].interface if defaults else ""

    def mounts(self) -> list[Mount]:
        """List what is mounted, as this process sees it."""
        return list(mounts(self.text("/proc/self/mountinfo")))

    def mount_of(self, name: str | Path) -> Mount | None:
        """Find the mount that a path lies on: the longest mount point that leads to it."""
        best = None
        for mount in self.mounts():
            inside = Path(name).is_relative_to(mount.point)
            # of two mounts on one point the later one covers the earlier
            if inside and (best is None or len(mount.point) >= len(best.point)):
                best = mount
        return best


def routes4(text: str) -> Iterator[Route]:
    """Read /proc/net/route: addresses are hexadecimal in the machine's byte order."""
    for line in text.splitlines()[1:]:
        words = line.split()
        flags = int(words[3], 16) if len(words) >= 8 else 0
        if not flags & RTF_UP or flags & RTF_REJECT:
            continue
        address, mask = (IPv4Address(struct.pack("=I", int(words[i], 16))) for i in (1, 7))
        network = ip_network(f"{address}/{mask}", strict=False)
        yield Route(network, words[0], int(words[6]), by_router=bool(flags & RTF_GATEWAY))


def routes6(text: str) -> Iterator[Route]:
    """Read /proc/net/ipv6_route; local, multicast and rejecting routes are nobody's network."""
    for line in text.splitlines():
        words = line.split()
        if len(words) < 10 or words[9] == "lo":
            continue
        flags = int(words[8], 16)
        network = IPv6Network((IPv6Address(int(words[0], 16)), int(words[1], 16)), strict=False)
        link_only = network.network_address.is_link_local or network.network_address.is_multicast
        if flags & RTF_UP and not flags & RTF_REJECT and not link_only:
            yield Route(
                network, words[9], int(words[5], 16), bool(flags & RTF_ADDRCONF),
                bool(flags & RTF_GATEWAY),
            )  # fmt: skip
