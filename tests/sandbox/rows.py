"""Of each rule of the firewall, the probe that fails when the rule is gone.

The table is complete: a rule that is not in it, or is there and no longer in the firewall, fails
`test_firewall.py`. The rules are written out, for the addresses of `wall.py`, so that a rule which
changes breaks the table visibly.
"""

from __future__ import annotations

from lark_agent.datapath.layout import TO_LOOPBACK
from tests.sandbox.probes import LISTED, LOOPBACK, SHARE

_N4, _N6 = "100.98.0.0/16", "fd6c:6172:6b00::/64"
_R4, _R6 = "198.18.7.0/24", "2001:db8:7::/112"
_TO, _FROM = 'oifname "lark*"', 'iifname "lark*"'
_ASKED = f"{_FROM} ip daddr 100.98.0.1"
_LOCAL = 'iifname != { "lark*", "lo" } fib daddr type local'
_CLOSED = (
    'iifname != "lark*" ct state { new, invalid, untracked } ct status & dnat == 0 counter drop'
)
_LISTED = f"tcp . 53, udp . 53, udp . {LISTED}, udp . {LOOPBACK}"
ROWS: dict[tuple[str, str], str] = {
    ("lark0", "meta l4proto { tcp, udp } masquerade to :10240-10339"):
        "first-job-leaves-by-its-block4",
    ("lark1", "meta l4proto { tcp, udp } masquerade to :10340-10439"):
        "second-job-leaves-by-its-block4",
    ("lark0", "masquerade"): "first-job-pings-as-the-worker",
    ("lark1", "masquerade"): "second-job-pings-as-the-worker",
    ("share", f"add @count4 {{ ip saddr ct count over {SHARE} }} counter drop"):
        "more-connections-than-a-share4",
    ("share", f"add @count6 {{ ip6 saddr ct count over {SHARE} }} counter drop"):
        "more-connections-than-a-share6",
    ("postrouting", 'oifname != "lark*" ip saddr vmap @slots4'): "first-job-leaves-by-its-block4",
    ("postrouting", 'oifname != "lark*" ip6 saddr vmap @slots6'): "first-job-leaves-by-its-block6",
    ("prerouting", f"{_LOCAL} dnat ip to meta l4proto . th dport map @inward4"):
        "calls-to-a-port-of-the-worker-that-is-a-jobs4",
    ("prerouting", f"{_LOCAL} dnat ip6 to meta l4proto . th dport map @inward6"):
        "calls-to-a-port-of-the-worker-that-is-a-jobs6",
    ("prerouting", f"{_ASKED} meta mark {TO_LOOPBACK:#x} dnat ip to 127.0.0.1"):
        "the-port-of-a-launcher",
    ("prerouting", f"{_ASKED} udp dport {LOOPBACK} dnat ip to 127.0.0.1:{LOOPBACK}"):
        "a-service-of-the-loopback",
    ("prerouting", f"{_ASKED} udp dport 53 dnat ip to 127.0.0.53:53"): "the-resolver",
    ("prerouting", f"{_ASKED} tcp dport 53 dnat ip to 127.0.0.53:53"): "the-resolver-by-tcp",
    ("loopback", f"{_FROM} ip daddr 127.0.0.0/8 snat ip to 127.0.0.1"):
        "a-service-of-the-loopback",
    ("input", 'iifname "lkb*" drop'): "hosts-of-a-vlan-to-the-worker",
    ("input", 'iifname != "lark*" accept'): "others-call-the-worker4",
    ("input", "ct state established,related accept"): "answers-to-the-worker4",
    ("input", "jump share"): "more-calls-of-the-worker-than-a-share4",
    ("input", f"meta mark {TO_LOOPBACK:#x} ip daddr != 100.98.0.1 accept"):
        "the-port-of-a-launcher-elsewhere",
    ("input", f"meta l4proto . th dport {{ {_LISTED} }} accept"): "a-listed-service4",
    ("input", "counter drop"): "a-service-that-is-not-listed4",
    ("output", f"{_TO} ip daddr 224.0.0.0/4 drop"): "the-workers-own-multicast4",
    ("output", f"{_TO} ip6 daddr ff00::/8 drop"): "the-workers-own-multicast6",
    ("forward", 'iifname "lkb*" oifname != "lkb*" drop'): "hosts-of-a-vlan-through-the-worker",
    ("forward", f"{_FROM} ct state new jump share"): "more-connections-than-a-share4",
    ("forward", f"{_FROM} {_TO} accept"): "one-job-to-another4",
    ("forward", f"{_TO} ip saddr {_N4} counter drop"): "neighbour-in-the-name-of-a-job4",
    ("forward", f"{_TO} ip6 saddr {_N6} counter drop"): "neighbour-in-the-name-of-a-job6",
    ("forward", f"{_TO} ip saddr {_R4} counter drop"): "neighbour-in-the-name-of-a-routed-job4",
    ("forward", f"{_TO} ip6 saddr {_R6} counter drop"): "neighbour-in-the-name-of-a-routed-job6",
    ("forward", f"{_TO} ip saddr 198.18.9.0/24 accept"): "calls-of-the-pools-jobs4",
    ("forward", f"{_TO} ip6 saddr 2001:db8:9::/112 accept"): "calls-of-the-pools-jobs6",
    ("forward", f"{_FROM} ct state invalid counter drop"): "what-cannot-be-translated",
    ("forward", f"{_TO} ct state established,related accept"): "answers4",
    ("forward", f"{_TO} ct status dnat accept"): "calls-to-a-port-of-the-worker-that-is-a-jobs4",
    ("forward", f"{_TO} ip daddr @open4 accept"): "calls-to-an-open-job4",
    ("forward", f"{_TO} ip6 daddr @open6 accept"): "calls-to-an-open-job6",
    ("forward", f"{_TO} ip daddr . meta l4proto . th dport @ports4 accept"):
        "calls-to-an-open-port4",
    ("forward", f"{_TO} ip6 daddr . meta l4proto . th dport @ports6 accept"):
        "calls-to-an-open-port6",
    ("forward", f"{_TO} counter drop"): "calls-from-outside4",
    ("forward", f"ip daddr {_R4} counter drop"): "packets-in-circles4",
    ("forward", f"ip6 daddr {_R6} counter drop"): "packets-in-circles6",
    ("forward", 'meta iifkind "bridge" meta oifkind "bridge" accept'): "from-bridge-to-bridge",
    ("forward", f"meta nfproto ipv4 {_CLOSED}"): "hosts-of-others-through-the-worker4",
    ("forward", f"meta nfproto ipv6 {_CLOSED}"): "hosts-of-others-through-the-worker6",
}  # fmt: skip
"""(chain, rule) → the probe that fails without it."""
