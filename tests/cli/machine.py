"""A healthy worker, painted as a directory tree and callables; tests spoil one thing at a time."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lark_agent.cli.doctor.probe import Probe
from lark_agent.cli.doctor.report import CHECKS, examine
from lark_agent.config import AgentSettings
from lark_agent.errors import RemoteError
from lark_agent.hooks.install import MODE, PROGRAMS
from lark_agent.rpc.lark.v1.agent_pb2 import GetStatusResponse

if TYPE_CHECKING:
    from pathlib import Path

    from lark_agent.cli.doctor.findings import Finding

FILES = {
    "/proc/sys/user/max_net_namespaces": "63000",
    "/proc/sys/kernel/yama/ptrace_scope": "1",
    "/proc/sys/net/ipv4/ip_forward": "1",
    "/proc/sys/net/ipv6/conf/all/forwarding": "1",
    "/proc/sys/net/ipv6/conf/eth0/accept_ra": "2",
    "/proc/sys/net/ipv4/ip_local_port_range": "32768\t60999",
    "/proc/sys/net/ipv4/ip_local_reserved_ports": "10240-32767",
    "/proc/net/route": """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
lark3\t05006264\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0
""",
    "/proc/net/ipv6_route": """\
00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
fe800000000000000000000000000001 00000400 00000002 00000000 00450003     eth0
20010db8000100000000000000000000 40 00000000000000000000000000000000 00 \
00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
""",
    "/proc/self/mountinfo": """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
25 21 0:22 / /sys rw,nosuid,nodev shared:7 - sysfs sysfs rw
30 25 0:27 / /sys/fs/bpf rw,nosuid,nodev shared:9 - bpf bpf rw,mode=700
31 25 0:28 / /sys/fs/cgroup rw,nosuid,nodev shared:10 - cgroup2 cgroup2 rw
""",
    "/sys/class/net/eth0/mtu": "1500",
    "/usr/bin/crontab": "",
    "/etc/cron.allow": "operator\n",
    "/run/systemd/system/README": "",
    "/etc/resolv.conf": "nameserver 192.0.2.53\n",
    "/usr/libexec/lark/lark-run": "",
    "/usr/libexec/lark/lark-enter": "",
    "/usr/libexec/lark/lark-prepare": "",
    "/usr/libexec/lark/lark-beside": "",
    "/usr/libexec/lark/lark-sshd-setup": "",
    "/usr/libexec/lark/lark-starter": "",
    "/var/lib/lark/journal.sqlite": "",
}
CHAINS = """\
table inet lark {
\tchain forward {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
table ip filter {
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy accept;
\t}
\tchain INPUT {
\t\ttype filter hook input priority filter; policy drop;
\t}
}
"""
STATUS = GetStatusResponse(
    worker="worker1", version="0.1.0", loader="libbpf", uplink="eth0", mtu=1500, slots=64, ready=8,
    attached=3, collector="c.example.org:9620", collector_state="connected", unacknowledged=2,
    ready_by_kind={"nat": 6, "bridge lab": 2},
)  # fmt: skip


def capability(*, bits: int = 1 << 21, flags: int = 1, revision: int = 0x02000000) -> bytes:
    """Make a security.capability attribute; by default cap_sys_admin+ep."""
    return struct.pack("<5I", revision | flags, bits & 0xFFFFFFFF, 0, bits >> 32, 0)


@dataclass
class Machine:
    """A worker in a directory; attributes replace what its probe answers."""

    root: Path
    answers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, text in FILES.items():
            self.write(name, text)
        for name in PROGRAMS:
            (self.root / "usr/libexec/lark" / name).chmod(MODE)

    def write(self, name: str, text: str) -> None:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def remove(self, name: str) -> None:
        (self.root / name.lstrip("/")).unlink()

    def fail(self, door: str, error: Exception) -> None:
        """Let a door of the probe raise."""

        def broken(*_: object) -> object:
            raise error

        self.answers[door] = broken

    def no_agent(self) -> None:
        self.fail("status", RemoteError("/run/lark/agent.sock: no answer"))

    def probe(self) -> Probe:
        wrapper = type(self.root)("/usr/libexec/lark/lark-run")
        healthy = Probe(
            settings=AgentSettings(worker="worker1"),
            problem="",
            root=self.root,
            is_root=True,
            release="6.1.0-18-amd64",
            features=lambda: [("tc programs", True, "attach")],
            load_library=lambda _: None,
            nft=lambda _: CHAINS,
            try_namespace=lambda: None,
            try_vlan=lambda: None,
            try_queues=lambda: None,
            look_at_network=lambda *_: (),
            connect=lambda _: None,
            agents=lambda: [123],
            status=lambda: STATUS,
            wrapper=lambda: wrapper,
            capability=lambda _: capability(),
            free_bytes=lambda _: 10**10,
            group_exists=lambda _: True,
        )
        return replace(healthy, **self.answers)

    def look(self, check: str) -> list[Finding]:
        """Make one check."""
        chosen = [c for c in CHECKS if c.name == check]
        return [finding for _, finding in examine(self.probe(), chosen)]
