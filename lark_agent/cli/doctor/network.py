"""Checks of the worker's network: uplink, forwarding, addresses, ports, resolver."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network
from typing import TYPE_CHECKING

from lark_agent.cli.doctor.findings import fail, ok, warn
from lark_agent.errors import RemoteError
from lark_agent.sandbox import resolver
from lark_agent.sandbox.addressing import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.cli.doctor.findings import Finding
    from lark_agent.cli.doctor.probe import Probe

IPV6_MINIMUM = 1280
"""Bytes that every IPv6 link must carry (RFC 8200, 5)."""


def uplink(probe: Probe) -> Iterator[Finding]:
    """Look for a way out, and what it carries."""
    name = probe.uplink()
    if not name:
        yield fail(
            "no default route, so no uplink",
            "add a default route, or name the interface as [uplink] interface",
        )
        return
    mtu = probe.text(f"/sys/class/net/{name}/mtu")
    if not mtu:
        yield fail(
            f"there is no interface {name}",
            "name one that `ip -br link` shows as [uplink] interface, or leave the key out",
        )
        return
    families = {r.network.version for r in probe.routes() if r.network.prefixlen == 0}
    spoken = " and ".join(f"IPv{v}" for v in sorted(families)) or "no"
    if not families:
        yield warn(
            f"{name}, MTU {mtu}, but the worker has no default route",
            "jobs will reach only what the worker has routes to",
        )
    elif int(mtu) < IPV6_MINIMUM:
        yield warn(
            f"{name} has an MTU of {mtu}, too small for IPv6",
            f"raise it to at least {IPV6_MINIMUM} bytes; jobs get the MTU of the uplink",
        )
    else:
        yield ok(f"{name}, MTU {mtu}, {spoken} default route")


def forwarding(probe: Probe) -> Iterator[Finding]:
    """Check that the kernel forwards; the agent turns it on when it starts."""
    running = _agent_answers(probe)
    versions = {4: "net/ipv4/ip_forward"}
    has_ipv6 = any(r.network.version == 6 and r.network.prefixlen == 0 for r in probe.routes())
    if has_ipv6 or probe.settings.addresses.routed6:
        versions[6] = "net/ipv6/conf/all/forwarding"
    for version, key in versions.items():
        name = key.replace("/", ".")
        if probe.sysctl(key) == "1":
            yield ok(f"IPv{version}: {name} = 1")
        elif running:
            yield fail(
                f"{name} is off though the agent runs: jobs have no IPv{version}",
                f"something turned it off: sysctl -w {name}=1, and look in /etc/sysctl.d",
            )
        else:
            yield ok(f"IPv{version}: {name} is off; lark-agent turns it on when it starts")


def _agent_answers(probe: Probe) -> bool:
    try:
        probe.status()
    except RemoteError:
        return False
    return True


def router_advertisements(probe: Probe) -> Iterator[Finding]:
    """Check that the worker keeps its IPv6 default route while it forwards (ip-sysctl.rst)."""
    learned = [r for r in probe.routes() if r.advertised and r.network.prefixlen == 0]
    if not learned:
        yield ok("the worker's IPv6 route, if any, does not come from router advertisements")
        return
    name = learned[0].interface
    key = f"net/ipv6/conf/{name}/accept_ra"
    forwards = probe.sysctl("net/ipv6/conf/all/forwarding") == "1"
    if probe.sysctl(key) == "1" and forwards:
        yield fail(
            f"{name} forwards and has accept_ra = 1: its IPv6 default route will expire",
            f"sysctl -w net.ipv6.conf.{name}.accept_ra=2",
        )
    else:
        yield ok(f"{name} keeps the IPv6 route it learned from its router")


def ports(probe: Probe) -> Iterator[Finding]:
    """Check that the worker's own connections cannot collide with a job's NAT block."""
    nat = probe.settings.nat
    block = f"{nat.first_port}-{nat.last_port}"
    words = probe.sysctl("net/ipv4/ip_local_port_range").split()
    if len(words) == 2 and nat.first_port <= int(words[0]) and int(words[1]) <= nat.last_port:
        yield fail(
            f"the NAT blocks ({block}) leave none of the worker's ephemeral ports"
            f" ({'-'.join(words)})",
            "move [nat] first_port and last_port, or net.ipv4.ip_local_port_range",
        )
        return
    yield ok(f"NAT blocks {block} leave the worker ephemeral ports of {'-'.join(words)}")
    reserved = probe.sysctl("net/ipv4/ip_local_reserved_ports")
    if covered(nat.first_port, nat.last_port, reserved):
        yield ok("net.ipv4.ip_local_reserved_ports keeps the worker's programs off them")
    elif _agent_answers(probe):
        yield warn(
            f"net.ipv4.ip_local_reserved_ports does not cover {block} though the agent runs",
            f"something changed it; restart lark-agent, or sysctl -w with {block} added",
        )
    else:
        yield ok("lark-agent reserves them (net.ipv4.ip_local_reserved_ports) when it starts")


def covered(first: int, last: int, reserved: str) -> bool:
    """Say whether a list such as "80,10240-32767" contains every port from first to last."""
    spans = sorted(
        (int(low), int(high or low))
        for low, _, high in (part.partition("-") for part in reserved.split(",") if part)
    )
    free = first
    for low, high in spans:
        if low <= free <= high:
            free = high + 1
    return free > last


def addresses(probe: Probe) -> Iterator[Finding]:
    """Check that the sandboxes' addresses are nobody else's."""
    ranges = probe.settings.addresses
    for key in ("ipv4", "ipv6", "routed4", "routed6"):
        text = getattr(ranges, key)
        if not text:
            continue
        network, delegated = ip_network(text), key.startswith("routed")
        clash = [
            route
            for route in probe.routes()
            if route.network.version == network.version
            and route.network.prefixlen > 0
            and route.network.overlaps(network)
            and not route.interface.startswith(PREFIX)
            # a delegated prefix may be a part of what lies behind the router
            and not (delegated and route.by_router and route.network.prefixlen < network.prefixlen)
        ]
        for route in clash:
            yield fail(
                f"{text} overlaps this worker's route to {route.network} by {route.interface}",
                f"choose another range as [addresses] {key}",
            )
        if not clash and delegated:
            yield ok(f"{text} is free; the site's router has to route it to this worker")
        elif not clash:
            yield ok(f"{text} is free")


def names(probe: Probe) -> Iterator[Finding]:
    """Check that names will resolve inside a sandbox."""
    gateway = IPv4Network(probe.settings.addresses.ipv4)[1]
    found = resolver.decide(
        probe.text(str(resolver.RESOLV_CONF)), probe.text(str(resolver.SYSTEMD_UPLINKS)), gateway
    )
    servers = [
        line.split()[1] for line in found.text.splitlines() if line.startswith("nameserver ")
    ]
    if found.problem:
        yield fail(found.problem, "see resolv.conf(5); `lark doctor` again afterwards")
    elif found.stub:
        yield ok(f"the worker's stub resolver {found.stub}, reached by way of the gateway")
    else:
        yield ok(f"sandboxes ask {', '.join(servers)}")
    ranges = probe.settings.addresses
    if ranges.routed6 and not ranges.routed4 and not any(":" in server for server in servers):
        yield warn(
            "routed sandboxes have IPv6 only, and no name server has an IPv6 address",
            f"name one with an IPv6 address in {resolver.RESOLV_CONF}, or give [addresses] routed4",
        )
