"""A site's network beside a fresh host: a bridge or a bare interface, and what answers on it.

The site is a namespace of its own with 198.18.20.1/24 and 2001:db8:20::1/64 and, where a test asks
for them, dnsmasq as DHCP server and router. `Observer` stands where the datapath's `Guard` stands
and lets everything pass: these tests are about links and addresses.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.linux import namespaces, process
from lark_agent.sandbox import networks
from lark_agent.sandbox.connectivity import Kind
from tests.datapath.network import sh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lark_agent.config import Network
    from lark_agent.sandbox.connectivity import Sandbox
    from lark_agent.sandbox.inside import Upkeep
    from lark_agent.sandbox.layer2 import Layer2Driver

SITE4, SITE6 = "198.18.20.1", "2001:db8:20::1"
WORKER = "w1.example.org"

_BUILD = f"""
ip netns add site
ip link add up0 type veth peer name net0 netns site
ip link add br0 type bridge forward_delay 0
ip link set up0 master br0
ip link set up0 up
ip link set br0 up
ip -n site link set lo up
ip -n site link set net0 up
ip -n site addr add {SITE4}/24 dev net0
ip -n site addr add {SITE6}/64 dev net0 nodad
ip netns exec site ethtool -K net0 tx off
"""


class Observer:
    """Takes part in the building as the datapath's guard does, and writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int]] = []

    def hang(self, sandbox: Sandbox) -> None:
        self.said.append(("hang", sandbox.slot))

    def admit_upkeep(self, sandbox: Sandbox, upkeep: Upkeep) -> None:
        self.said.append(("admit", sandbox.slot))

    def forget(self, sandbox: Sandbox) -> None:
        self.said.append(("forget", sandbox.slot))


class Site:
    """The network, with the worker's bridge `br0` and its port `up0` on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.guard = Observer()
        (directory / "run").mkdir()
        for line in _BUILD.strip().splitlines():
            sh(line)

    def driver(self, network: Network, name: str = "lab") -> Layer2Driver:
        """Return the driver of a network, as an agent that has just started makes it."""
        made = networks.drivers(
            {name: network}, WORKER, "up0", self.guard,  # type: ignore[arg-type]  # stands in for it
            self.directory / "run", self.directory / "state",
        )  # fmt: skip
        return made[Kind(network.connectivity, name)]

    @contextmanager
    def dnsmasq(self, *options: str) -> Iterator[Path]:
        """Run dnsmasq on the site; gives its log."""
        log = self.directory / "dnsmasq.log"
        leases = self.directory / "dnsmasq.leases"
        command = [
            "ip", "netns", "exec", "site", "dnsmasq", "--no-daemon", "--conf-file=/dev/null",
            "--user=root", "--port=0", "--interface=net0", "--bind-interfaces", "--log-dhcp",
            "--no-ping", "--dhcp-authoritative", f"--dhcp-leasefile={leases}", *options,
        ]  # fmt: skip
        with log.open("ab") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            until(lambda: b"started" in log.read_bytes(), "dnsmasq to start")
            yield log
        finally:
            server.terminate()
            server.wait()
            log.unlink(missing_ok=True)


DHCP = "--dhcp-range=198.18.20.100,198.18.20.120,255.255.255.0,2m"
ROUTER = ("--enable-ra", "--dhcp-range=2001:db8:20::,ra-only,64,1h")


def until(true: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def pings(sandbox: Sandbox, address: str, patience: int = 10) -> bool:
    """Tell whether an address answers to the sandbox within some seconds."""
    command = ["ip", "netns", "exec", sandbox.name, "ping", "-c1", f"-w{patience}", address]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def addresses(sandbox: Sandbox) -> str:
    return sh(f"ip -n {sandbox.name} -br addr show eth0")


def processes_in(sandbox: Sandbox) -> list[int]:
    """Return the processes in a sandbox."""
    there = namespaces.identity(namespaces.path(sandbox.name))
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if process.network_identity(pid) == there]


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def links() -> set[str]:
    """Return the names of the worker's interfaces."""
    return {line.split()[0].split("@")[0] for line in sh("ip -br link").splitlines()}
