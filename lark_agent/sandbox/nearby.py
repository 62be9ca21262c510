"""How many hosts of a network a job may talk to at a time, so that it cannot deafen the worker.

The kernel keeps the neighbours of all network namespaces in one table for each family, with room
for 1024 (`gc_thresh3`). A job that sends one packet to each address of its network fills it, and
then nobody on the worker finds a neighbour, the worker its router included. So the sandbox's
firewall knows the next hops of the last minute, lets `MOST` of them be and drops what is for more;
and the worker's table gets room for all sandboxes that there may be. The job has no rights over
either. Multicast has no neighbours that last.
"""

from __future__ import annotations

from lark_agent.linux import nftables, sysctl
from lark_agent.sandbox.addressing import INSIDE

MOST = 512
"""Next hops of a sandbox, in each family: half of what the kernel has room for by itself."""
_ROOM = ("net/ipv4/neigh/default/gc_thresh3", "net/ipv6/neigh/default/gc_thresh3")
_RULESET = f"""
table inet nearby {{
  comment "LARK agent: neighbours of the job"
  set near4 {{ type ipv4_addr; size {MOST}; flags dynamic, timeout; timeout 1m; }}
  set near6 {{ type ipv6_addr; size {MOST}; flags dynamic, timeout; timeout 1m; }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname != {INSIDE} accept
    ip daddr 224.0.0.0/4 accept
    ip6 daddr ff00::/8 accept
    meta nfproto ipv4 update @near4 {{ rt ip nexthop }} accept
    meta nfproto ipv6 update @near6 {{ rt ip6 nexthop }} accept
    counter drop
  }}
}}
"""


def limit() -> None:
    """Limit the next hops of the calling thread's network namespace; raises KernelError."""
    nftables.run(_RULESET)


def make_room(slot: int) -> None:
    """Let the worker's tables hold what the sandboxes up to this slot may have, and as much again.

    Never lowers them; in a namespace of its own the worker cannot, and has what its host has.
    """
    for key in _ROOM:
        if 0 < int(sysctl.read(key) or 0) < MOST * (slot + 2):
            sysctl.write(key, MOST * (slot + 2))
