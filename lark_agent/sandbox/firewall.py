"""The nftables table of the agent: written once, never touched by a job's start or end.

Two verdict maps send each sandbox's connections to the chain of its slot, whose one rule
masquerades into the slot's port block; so a port on the outside names the slot for good, and a job
start costs no firewall change (rewriting rules per job is quadratic: moby #53466). A chain per slot
rather than `snat ... map` because masquerade follows the uplink's address by itself, and because
nft 1.0.6 cannot load interval maps for IPv6.

The output chain keeps the worker's own multicast (membership reports, mDNS) off the sandboxes'
links, where the datapath would count it as dropped for a job that has nothing to do with it.

The forward chain lets only answers in, and lets jobs have each other: which of them, the datapath
has decided on the link of the one and will again on the link of the other, and no state of a
connection comes between. That a packet is from a job shows in where it comes from: from elsewhere,
a source in the sandboxes' ranges is forged. Everything else that a job must not do is already
decided by the datapath on its own link; the rules here keep neighbours of the worker out, and keep
untranslated packets (which connection tracking found invalid) from leaving with a private address.
What comes for an address of a delegated prefix that no sandbox has is dropped too: it would go back
to the router, and come again. Where the worker forwards at all only because the agent needs it,
neighbours cannot use it as a router: connections from beyond the uplink are dropped unless somebody
translated them on purpose (DNAT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.errors import KernelError
from lark_agent.linux import nftables
from lark_agent.sandbox.addressing import PREFIX, Addressing, name

if TYPE_CHECKING:
    from collections.abc import Collection
    from ipaddress import IPv4Address

TABLE = "lark"


def ruleset(
    addressing: Addressing,
    stub: IPv4Address | None,
    uplink: str = "",
    opened: Collection[str] = (),
) -> str:
    """Return the whole table as one transaction that replaces an earlier one.

    `stub` is the loopback address of the worker's DNS resolver if sandboxes must reach it through
    their gateway, else None. `opened` are the families (ipv4, ipv6) for which this worker forwards
    only because of us: there, nobody beyond `uplink` may use it as a router.
    """
    closed = "\n".join(
        f'    meta nfproto {family} iifname "{uplink}" ct state new ct status & dnat == 0 drop'
        for family in sorted(opened)
    )
    slots = range(addressing.slots)
    chains = "\n".join(_block(addressing, slot) for slot in slots)
    jumps4 = ", ".join(f"{addressing.ipv4(slot)} : goto {name(slot)}" for slot in slots)
    jumps6 = ", ".join(f"{addressing.ipv6(slot)} : goto {name(slot)}" for slot in slots)
    return f"""
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  comment "LARK agent: job networks"
{chains}
  map slots4 {{ type ipv4_addr : verdict; elements = {{ {jumps4} }}; }}
  map slots6 {{ type ipv6_addr : verdict; elements = {{ {jumps6} }}; }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname != "{PREFIX}*" ip saddr vmap @slots4
    oifname != "{PREFIX}*" ip6 saddr vmap @slots6
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{PREFIX}*" ip daddr 224.0.0.0/4 drop
    oifname "{PREFIX}*" ip6 daddr ff00::/8 drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{PREFIX}*" oifname "{PREFIX}*" accept
{_forged(addressing)}
    iifname "{PREFIX}*" ct state invalid counter drop
    oifname "{PREFIX}*" ct state established,related accept
    oifname "{PREFIX}*" counter drop
{_unused(addressing)}
{closed}
  }}
{_dns(addressing, stub) if stub else ""}
}}
"""


def stands() -> bool:
    """Tell whether the table is still as it was written: others may flush the whole ruleset."""
    try:
        chains = [
            nftables.run(f"list chain inet {TABLE} {chain}") for chain in ("postrouting", "forward")
        ]
    except KernelError:
        return False
    return "vmap @slots4" in chains[0] and "ct state established,related accept" in chains[1]


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


def _dns(addressing: Addressing, stub: IPv4Address) -> str:
    return f"""  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "{PREFIX}*" ip daddr {addressing.gateway4} \\
      meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {stub}:53
  }}"""
