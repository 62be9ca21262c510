"""The nftables table of the agent: written once, never touched by a job's start or end.

Two verdict maps send each sandbox's connections to the chain of its slot, whose one rule
masquerades into the slot's port block; so a port on the outside names the slot for good, and a job
start costs no firewall change (rewriting rules per job is quadratic: moby #53466). A chain per slot
rather than `snat ... map` because masquerade follows the uplink's address by itself, and because
nft 1.0.6 cannot load interval maps for IPv6.

The input chain is the second look at what jobs send to the worker itself. The datapath has decided
by address and service already; here the address does not matter, so that one which the worker got
this very moment, or its broadcast, opens nothing. Services on the worker's loopback, and its stub
resolver, are translated to 127.0.0.1 on the way in, the services' clients too: to them, jobs are
local. What the datapath has marked is for the loopback too, on whatever port: where a job's
launcher listens is one job's alone, so the datapath decides it and no rule is written for it. The
mark is also on what a starter's sandbox may ask of the worker's own address; that stays as it is.

Connection tracking has room for so many connections of the whole worker, and a job needs but one
port to open any number. So each sandbox has an equal share (`ct count`), and what it begins beyond
that is dropped: jobs together cannot shut others out, nor the worker.

The bridges of 802.1Q networks (`lark_agent.sandbox.vlan`) have a link-layer address like all
bridges, ports of Open vSwitch (`lark_agent.sandbox.ovs`) have one too, and the worker forwards; so
what anybody sends to these is dropped, or it would lead them to the worker and beyond.

The output chain keeps the worker's own multicast (membership reports, mDNS) off the sandboxes'
links, where the datapath would count it as dropped for a job that has nothing to do with it.

The forward chain lets only answers in, and what `lark_agent.sandbox.openings` lists; the sets for
that are part of the table, and all that changes while jobs come and go. It lets jobs have each
other: which of them, the datapath
has decided on the link of the one and will again on the link of the other, and no state of a
connection comes between. That a packet is from a job shows in where it comes from: from elsewhere,
a source in the sandboxes' ranges is forged. Everything else that a job must not do is already
decided by the datapath on its own link; the rules here keep neighbours of the worker out, and keep
untranslated packets (which connection tracking found invalid) from leaving with a private address.
What comes for an address of a delegated prefix that no sandbox has is dropped too: it would go back
to the router, and come again. Where the worker forwards at all only because the agent needs it,
nobody else can use it as a router: what neither comes from a sandbox nor goes to one is dropped,
whatever interfaces it would pass between, unless it is an answer or somebody translated it on
purpose (DNAT). A worker that forwarded before goes on as its site wants. From bridge to bridge
everything passes: with `br_netfilter` the frames within one bridge are shown here too, and nothing
tells them from packets between two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lark_agent.datapath.layout import TO_LOOPBACK
from lark_agent.errors import KernelError
from lark_agent.linux import nftables
from lark_agent.sandbox.addressing import PREFIX, Addressing, name
from lark_agent.sandbox.openings import SETS, TABLE
from lark_agent.sandbox.services import DNS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from ipaddress import IPv4Address

    from lark_agent.model import Port
    from lark_agent.sandbox.services import Services


VLAN_BRIDGES = "lkb"
"""Start of the names of the bridges that 802.1Q networks are made of, and of ports of switches."""
_OUTSIDE = f'iifname != {{ "{PREFIX}*", "lo" }}'
_TELLING = {
    "postrouting": "vmap @slots4",
    "prerouting": "map @inward4",
    "input": "ct state established,related accept",
    "forward": "ct state established,related accept",
}
"""A rule of each chain without which the table is not as it was written."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What the table is written from, besides the arithmetic."""

    services: Services
    stub: IPv4Address | None = None
    """Loopback address of the worker's DNS resolver, if sandboxes reach it by their gateway."""
    closed: Collection[str] = ()
    """Families (ipv4, ipv6) for which this worker forwards only because of us: there, nobody but
    sandboxes may use it as a router."""
    connections: int = 262_144
    """Room in the kernel's table; each sandbox may take an equal share, and the worker one."""
    pool: Collection[str] = ()
    """Networks of the pool's jobs: which of them may reach which, the datapath decides."""


def ruleset(addressing: Addressing, worker: Worker, openings: Mapping[str, Iterable[str]]) -> str:
    """Return the whole table as one transaction that replaces an earlier one.

    `openings` are the elements of the sets in `SETS`.
    """
    closed = "\n".join(
        f'    meta nfproto {family} iifname != "{PREFIX}*" '
        "ct state { new, invalid, untracked } ct status & dnat == 0 counter drop"
        for family in sorted(worker.closed)
    )
    sets = "\n".join(f"  {text}{_listed(openings.get(key, ()))} }}" for key, text in SETS.items())
    slots = range(addressing.slots)
    share = max(1, worker.connections // (addressing.slots + 1))
    chains = "\n".join(_block(addressing, slot) for slot in slots)
    jumps4 = ", ".join(f"{addressing.ipv4(slot)} : goto {name(slot)}" for slot in slots)
    jumps6 = ", ".join(f"{addressing.ipv6(slot)} : goto {name(slot)}" for slot in slots)
    return f"""
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  comment "LARK agent: job networks"
{chains}
{sets}
  map slots4 {{ type ipv4_addr : verdict; elements = {{ {jumps4} }}; }}
  map slots6 {{ type ipv6_addr : verdict; elements = {{ {jumps6} }}; }}
  set count4 {{ type ipv4_addr; size {addressing.slots * 2}; flags dynamic; }}
  set count6 {{ type ipv6_addr; size {addressing.slots * 2}; flags dynamic; }}
  chain share {{
    add @count4 {{ ip saddr ct count over {share} }} counter drop
    add @count6 {{ ip6 saddr ct count over {share} }} counter drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname != "{PREFIX}*" ip saddr vmap @slots4
    oifname != "{PREFIX}*" ip6 saddr vmap @slots6
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    {_OUTSIDE} fib daddr type local dnat ip to meta l4proto . th dport map @inward4
    {_OUTSIDE} fib daddr type local dnat ip6 to meta l4proto . th dport map @inward6
{_to_loopback(addressing, worker)}
  }}
  chain loopback {{
    type nat hook input priority 100; policy accept;
    iifname "{PREFIX}*" ip daddr 127.0.0.0/8 snat ip to 127.0.0.1
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{VLAN_BRIDGES}*" drop
    iifname != "{PREFIX}*" accept
    ct state established,related accept
    jump share
    meta mark {TO_LOOPBACK:#x} ip daddr != {addressing.gateway4} accept
    meta l4proto . th dport {{ {_ports(worker.services.ports)} }} accept
    counter drop
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{PREFIX}*" ip daddr 224.0.0.0/4 drop
    oifname "{PREFIX}*" ip6 daddr ff00::/8 drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{VLAN_BRIDGES}*" oifname != "{VLAN_BRIDGES}*" drop
    iifname "{PREFIX}*" ct state new jump share
    iifname "{PREFIX}*" oifname "{PREFIX}*" accept
{_forged(addressing)}
{_pool(worker)}
    iifname "{PREFIX}*" ct state invalid counter drop
    oifname "{PREFIX}*" ct state established,related accept
    oifname "{PREFIX}*" ct status dnat accept
    oifname "{PREFIX}*" ip daddr @open4 accept
    oifname "{PREFIX}*" ip6 daddr @open6 accept
    oifname "{PREFIX}*" ip daddr . meta l4proto . th dport @ports4 accept
    oifname "{PREFIX}*" ip6 daddr . meta l4proto . th dport @ports6 accept
    oifname "{PREFIX}*" counter drop
{_unused(addressing)}
    meta iifkind "bridge" meta oifkind "bridge" accept
{closed}
  }}
}}
"""


def stands() -> bool:
    """Tell whether the table is still as it was written: others may flush the whole ruleset."""
    try:
        return all(
            rule in nftables.run(f"list chain inet {TABLE} {chain}")
            for chain, rule in _TELLING.items()
        )
    except KernelError:
        return False


def removal() -> str:
    """Return the transaction that removes the table."""
    return f"table inet {TABLE}\ndelete table inet {TABLE}\n"


def _block(addressing: Addressing, slot: int) -> str:
    first, last = addressing.block(slot)
    return f"""  chain {name(slot)} {{
    meta l4proto {{ tcp, udp }} masquerade to :{first}-{last}
    masquerade
  }}"""


def _unused(addressing: Addressing) -> str:
    return "\n".join(
        f"    {'ip' if network.version == 4 else 'ip6'} daddr {network} counter drop"
        for network in addressing.routed.networks
    )


def _forged(addressing: Addressing) -> str:
    return "\n".join(
        f'    oifname "{PREFIX}*" {"ip" if network.version == 4 else "ip6"} saddr {network} '
        "counter drop"
        for network in addressing.networks
    )


def _pool(worker: Worker) -> str:
    return "\n".join(
        f'    oifname "{PREFIX}*" {"ip6" if ":" in network else "ip"} saddr {network} accept'
        for network in worker.pool
    )


def _to_loopback(addressing: Addressing, worker: Worker) -> str:
    """Translate what jobs ask of a gateway to what listens on the worker's loopback."""
    targets = [(port, "127.0.0.1") for port in sorted(worker.services.loopback)]
    if worker.stub:
        targets += [(port, str(worker.stub)) for port in DNS]
    asked = f'    iifname "{PREFIX}*" ip daddr {addressing.gateway4}'
    listed = [
        f"{asked} {port.protocol} dport {port.number} dnat ip to {target}:{port.number}"
        for port, target in targets
    ]
    return "\n".join([f"{asked} meta mark {TO_LOOPBACK:#x} dnat ip to 127.0.0.1", *listed])


def _ports(ports: Iterable[Port]) -> str:
    return ", ".join(f"{port.protocol} . {port.number}" for port in sorted(set(ports)))


def _listed(elements: Iterable[str]) -> str:
    text = ", ".join(elements)
    return f" elements = {{ {text} }};" if text else ""
