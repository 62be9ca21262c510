"""The guards of the programs, each with the ordinary test that must fail without it.

A mutant is the source with one expression taken for another. Its `test` is a function of this
directory's tests, run as ever but with the mutant's programs, or names of cases of the tables in
`cases.py`. The text must occur exactly once in its file, so that a guard which is renamed or goes
away breaks this table and not only its meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.datapath import (
    test_hostile,
    test_links,
    test_marks,
    test_peers,
    test_quotas,
    test_verdicts,
    test_worker,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Mutant(NamedTuple):
    """A guard removed."""

    attack: str
    """What it is there against; names the test."""
    file: str
    guard: str
    """The expression, as it is written."""
    instead: str
    """The expression that takes its place."""
    test: Callable[..., None] | tuple[str, ...]
    """What must fail: a test, or these cases of the tables."""
    given: tuple[tuple[str, object], ...] = ()
    """Arguments of a parametrized test."""
    before: str = ""
    """What stands before the guard, where the guard alone is not unique."""


def never(
    attack: str, file: str, guard: str, test: Callable[..., None] | tuple[str, ...],
    **given: object,
) -> Mutant:  # fmt: skip
    """Take a condition for false."""
    return Mutant(attack, file, guard, "0", test, tuple(given.items()))


def always(
    attack: str, file: str, guard: str, test: Callable[..., None] | tuple[str, ...],
    **given: object,
) -> Mutant:  # fmt: skip
    """Take a condition for true."""
    return Mutant(attack, file, guard, "1", test, tuple(given.items()))


FRAMES = (
    never("forged MAC", "job.bpf.c", "direction == SENT && !same_mac(link->source, own->mac)",
          ("mac4", "mac6")),
    never("frames for others", "job.bpf.c",
          "layer2 ? is_group(link->destination)\n\t\t   "
          ": direction == SENT && skb->pkt_type != TO_THIS_HOST",
          ("for another mac", "broadcast mac")),
    never("frames of others", "job.bpf.c",
          "direction == RECEIVED && layer2 && !is_group(link->destination) &&\n\t    "
          "!same_mac(link->destination, own->mac)", test_links.test_frames_of_the_link),
    never("VLAN tag", "job.bpf.c", "skb->vlan_present", test_hostile.test_vlan_tags_do_not_pass,
          tag=0x8100),
    never("lie about a frame's type", "job.bpf.c", "link->type != (__u16)skb->protocol",
          test_hostile.test_a_frame_is_what_it_says),
    never("neither IP nor ARP", "job.bpf.c", "p->type != TYPE_IPV4 && p->type != TYPE_IPV6",
          ("lldp", "mpls")),
    Mutant("unknown interface", "job.bpf.c", "TC_ACT_SHOT", "TC_ACT_UNSPEC",
           test_verdicts.test_no_slot_passes_nothing, before="if (!found)\n\t\treturn "),
    never("ended plan", "job.bpf.c", "!(own->flags & (PLAN_ACTIVE | PLAN_SETUP))",
          test_verdicts.test_no_plan_passes_nothing),
    never("before the job", "link.h", "verdict == NOT_UPKEEP && (own->flags & PLAN_SETUP)",
          test_links.test_before_a_job_only_addresses_are_found),
)  # fmt: skip

ADDRESSES = (
    Mutant("the world by an address for the worker", "job.bpf.c",
           "is_local_address(own, p, local)", "0",
           test_worker.test_an_address_for_the_worker_alone, before="\t}\n\tif ("),
    never("forged address", "job.bpf.c", "!is_own_address(own, p, local)",
          ("neighbour4", "far4", "far6", "misled")),
    always("forged IPv4 address", "rules.h", "own->addr4 && address[0] == own->addr4",
           ("neighbour4", "far4")),
    always("forged IPv6 address", "rules.h", "same_address(address, own->addr6)",
           ("far6", "link-local")),
    never("IPv6 of a job without", "rules.h",
          "!(own->addr6[0] | own->addr6[1] | own->addr6[2] | own->addr6[3])",
          test_verdicts.test_a_job_without_ipv6_has_no_ipv6),
    never("martian source", "job.bpf.c", "is_martian(p, remote)", ("from loopback",)),
    never("martian of the local side", "job.bpf.c", "is_martian(p, p->destination)",
          ("host mld",)),
    never("loopback", "rules.h", "high >> 24 == 127", ("to 127.0.0.1",)),
    never("this network", "rules.h", "high >> 24 == 0 ", ("to 0.1.2.3",)),
    never("multicast and broadcast", "rules.h", "high >> 24 >= 224",
          ("to 224.0.0.251", "to 255.255.255.255")),
    never("IPv4 in IPv6 addresses", "rules.h", "!address[0] && !address[1]",
          ("to ::1", "to ::ffff:198.51.100.2")),
    never("IPv6 multicast", "rules.h", "high >> 24 == 0xff", ("to ff02::1", "to ff0e::1")),
    never("link-local", "rules.h", "high >> 22 == 0xfe80 >> 6", ("to fe80::1",)),
    never("ARP with another MAC", "link.h", "!same_mac(arp.sender_mac, own->mac)", ("arp mac",)),
    never("ARP in another's frame", "link.h", "!same_mac(link->source, own->mac)",
          ("arp frame mac",)),
    always("ARP with another address", "link.h", "own->addr4 && sender == own->addr4",
           ("arp gateway",)),
)  # fmt: skip

PARSING = (
    never("wrong checksum", "packet.h", "sum != 0xffff", ("checksum",)),
    never("bytes that ride along", "packet.h", "!payload && ip.next != HEADER_NONE",
          ("rider without options",)),
    never("length beyond the frame", "packet.h", "h.total < h.repeated || h.total > room",
          ("total over frame",)),
    never("wrong version", "packet.h", "ip.version_and_class >> 4 != 6", ("version 4 in 6",)),
    never("first fragment without its port", "packet.h",
          "p->transport + (is_icmp(p) ? 8 : 4) > p->end && !skb->gso_size",
          test_worker.test_fragments_hide_no_port),
    Mutant("later fragment with a port", "packet.h",
           "p->fragment == LATER", "0", test_worker.test_fragments_hide_no_port,
           before="} u = {};\n\n\tif (" ),
)  # fmt: skip

_DISCOVERY = test_links.test_forged_discovery_does_not
_WORDS = test_links.test_words_of_the_network_are_not_a_jobs
DISCOVERY = (
    never("advertisement for another", "link.h",
          "(!asks || is_unspecified(p->source)) && !is_own6(own, p, said.target)", _DISCOVERY),
    never("discovery from another", "link.h",
          "!is_own6(own, p, p->source) && !(asks && is_unspecified(p->source))", _DISCOVERY),
    Mutant("discovery with another MAC", "link.h",
           "same_mac(option->mac, own->mac) ? PASS : SPOOFED_MAC",
           "PASS", _DISCOVERY),
    never("advertisement of a router", "link.h",
          "!asks && (said.flags & bpf_htonl(IS_ROUTER))", _DISCOVERY),
    never("discovery from afar", "link.h", "hops != 255", _DISCOVERY),
    never("discovery that hides", "link.h",
          "p->fragment != WHOLE || p->transport != LINK_HEADER + sizeof(struct ipv6)", _DISCOVERY),
    never("option of a wrong size", "link.h", "option->size != 1", _DISCOVERY),
    Mutant("unknown option", "link.h", "option->type == OPTION_NONCE ? PASS : MALFORMED", "PASS",
           _DISCOVERY),
    Mutant("advertisement to everywhere", "link.h",
           "asks ? IS_SOLICITED(p->destination) : IS_ALL_NODES(p->destination)", "1",
           _DISCOVERY),
    always("data in a solicitation", "link.h",
           "!asks || same_address(said.target, p->destination)", _DISCOVERY),
    never("words of the network", "job.bpf.c", "direction == SENT && is_forged(p)", _WORDS),
    never("router advertisement, redirect", "link.h",
          "p->icmp == ROUTER_ADVERTISEMENT || p->icmp == REDIRECT", _WORDS),
    never("IPv4 redirect", "link.h", "p->icmp == REDIRECT4 || p->icmp == ROUTER_ADVERTISEMENT4",
          _WORDS),
    never("DHCP server", "link.h",
          "p->source_port == (p->type == TYPE_IPV4 ? DHCP_SERVER : DHCP6_SERVER)", _WORDS),
    always("router that nobody asked", "link.h",
           "p->icmp == ROUTER_ADVERTISEMENT && (own->flags & PLAN_ROUTER)",
           test_links.test_routers_are_heard_where_addresses_come_from_them),
    never("solicitation of a router", "link.h",
          "!(own->flags & PLAN_ROUTER) || !IS_ALL_ROUTERS(p->destination)",
          test_links.test_routers_are_heard_where_addresses_come_from_them),
    never("DHCP where there is none", "link.h", "!(own->flags & PLAN_DHCP)",
          test_links.test_dhcp_where_addresses_come_from_it),
)  # fmt: skip

_AGREE = test_peers.test_both_must_agree
_LIVING = test_peers.test_only_a_living_job_at_that_very_address_is_a_peer
_NOBODY = test_peers.test_addresses_of_no_slot_are_nobody
_ELSEWHERE = test_links.test_jobs_elsewhere_are_peers_by_their_address
REACH = (
    never("source route", "job.bpf.c", "direction == SENT && p->detour",
          ("loose route", "strict route", "segment route", "segment route in a fragment")),
    never("IPv4 source route", "packet.h",
          "option.type == LOOSE_SOURCE_ROUTE || option.type == STRICT_SOURCE_ROUTE",
          ("loose route", "strict route", "route behind padding", "route behind an option")),
    never("routing header", "packet.h",
          "h->protocol == HEADER_ROUTING && (extension.fragment & bpf_htons(0xff))",
          ("segment route", "type 0", "segment route behind options")),
    Mutant("extensions that go on in the next fragment", "packet.h",
           "h->end + 8 > LINK_HEADER + h->total", "0", ("segment route in the next fragment",)),
    Mutant("more extensions than are looked at", "packet.h",
           "is_extension(h->protocol) ? MALFORMED : PASS", "PASS",
           ("segment route behind too much",)),
    Mutant("more options than are looked at", "packet.h", "at >= size ? PASS : MALFORMED", "PASS",
           ("much padding",)),
    never("denied class", "job.bpf.c", "!(own->classes >> *row & 1)",
          ("to 203.0.113.7", "denied4")),
    Mutant("other jobs", "job.bpf.c", "first", "0", ("to 100.98.0.9", "from peer6"),
           before="remote);\n\tif ("),
    always("peer that this job does not admit", "rules.h",
           "agrees(own->peers, own->owner, own->group, owner, group)", _AGREE, loader="libbpf"),
    always("peer that does not admit this job", "rules.h",
           "agrees(peers, owner, group, own->owner, own->group)", _AGREE, loader="libbpf"),
    always("peer of another owner", "rules.h", "owner && owner == other_owner", _AGREE,
           loader="libbpf"),
    always("peer of another group", "rules.h", "group && group == other_group", _AGREE,
           loader="libbpf"),
    never("peer that has ended", "rules.h", "!(peer->flags & PLAN_ACTIVE)", _LIVING,
          program="from_job"),
    never("address of no job", "rules.h", "!is_own_address(peer, p, address)", _LIVING,
          program="from_job"),
    Mutant("itself as a peer", "rules.h", "is_own_address(own, p, address)", "0", _NOBODY,
           before="PEER_DENIED;\n\tif ("),
    Mutant("job elsewhere", "job.bpf.c", "first == FIRST_REMOTE", "0", _ELSEWHERE),
    Mutant("job elsewhere that does not agree", "rules.h",
           "admit_each_other(own, peer->peers, peer->owner, peer->group)", "PASS", _ELSEWHERE,
           before="!peer || is_own_address(own, p, address))\n\t\treturn PEER_DENIED;\n\treturn "),
)  # fmt: skip

WORKER = (
    Mutant("the worker as anybody else", "job.bpf.c", "first == FIRST_WORKER", "0",
           test_worker.test_dns_and_nothing_else_without_a_list),
    Mutant("service that is not listed", "worker.h", "know_flow(&flow, 1) ? PASS : SERVICE_DENIED",
           "PASS", test_worker.test_dns_and_nothing_else_without_a_list),
    always("service that the plan lacks", "worker.h", "(own->services >> *number & 1)",
           test_worker.test_listed_services_by_plan),
    always("errors to the worker", "worker.h", "!is_icmp(p) || is_echo(p)",
           test_worker.test_ping_and_errors),
    never("errors to the worker as answers", "worker.h", "is_icmp(p) && !is_echo_reply(p)",
          test_worker.test_a_call_that_has_no_ports_is_no_leave_for_errors),
    always("redirect as an answer", "worker.h", "!is_icmp(p) || is_echo_reply(p)",
           test_worker.test_ping_and_errors),
    never("call of the worker", "worker.h", "!is_open(slot, own, p)",
          test_worker.test_the_worker_as_a_client_of_the_job),
    always("launcher's port of another address", "worker.h", "*gateway == address",
           test_worker.test_the_launcher_has_one_address),
    Mutant("launcher's port of another protocol", "worker.h", "protocol | PORT_OF_LAUNCHER",
           "PROTOCOL_TCP | PORT_OF_LAUNCHER", test_worker.test_a_port_of_the_launcher_is_the_jobs),
    Mutant("port opened by the job as its launcher's", "worker.h", "protocol | PORT_OF_LAUNCHER",
           "protocol", test_worker.test_a_port_of_the_launcher_is_no_other_jobs),
    Mutant("tunnel to the worker", "job.bpf.c", "first == FIRST_WORKER", "0",
           test_worker.test_tunnels_are_no_service),
)  # fmt: skip

INBOUND = (
    never("anything where nothing comes in", "job.bpf.c",
          "direction == RECEIVED && own->inbound == INBOUND_NONE",
          test_worker.test_inbound_none_lets_nothing_in),
    never("call on layer 2", "job.bpf.c", "direction == RECEIVED && (own->flags & PLAN_LINK)",
          test_links.test_only_answers_come_in),
    never("call of a stranger", "flows.h", "!know_flow(&flow, 1) && !is_open(slot, own, p)",
          test_links.test_only_answers_come_in),
    always("port that is not open", "flows.h", "find_open_port(&key) != 0",
           test_links.test_open_ports_let_others_begin),
    never("port that was open", "flows.h", "own->inbound != INBOUND_PORTS || p->fragment == LATER",
          test_links.test_ports_of_a_plan_that_opens_none_are_closed),
    always("error about nothing", "flows.h", "quotes_flow(skb, slot, own, p)",
           test_links.test_errors_about_known_flows_come_in),
    never("error about another's packet", "flows.h",
          "!is_own_address(own, &quoted, quoted.source)",
          test_links.test_errors_about_known_flows_come_in),
    never("question in the guise of an answer", "flows.h", "is_icmp(p) && !is_echo_reply(p)",
          test_links.test_only_answers_come_in),
    Mutant("later fragment alone", "flows.h", "know_flow(&flow, 0) ? PASS : INBOUND_DENIED",
           "PASS", test_links.test_fragments_follow_their_first),
    Mutant("flows of others forgotten", "flows.h", "slot", "3",
           test_links.test_a_flood_of_flows_makes_only_its_own_job_forget,
           before="\tflow->slot = "),
    Mutant("flow of an earlier job", "flows.h", "own->epoch", "0",
           test_links.test_only_answers_come_in),
    never("flow of long ago", "flows.h",
          "now - *seen > ((flow->protocol & 0xff) == PROTOCOL_TCP ? FORGET_TCP : FORGET_OTHER)",
          test_links.test_flows_are_forgotten),
)  # fmt: skip

LIMITS = (
    never("forged DSCP", "job.bpf.c",
          "direction == SENT && p->type != TYPE_ARP && mark(skb, own, p) != PASS",
          test_marks.test_dscp_of_ipv4),
    Mutant("forged flow label", "mark.h", "word & 0xf0300000", "word & 0xf03fffff",
           test_marks.test_dscp_and_flow_label_of_ipv6),
    never("quota", "job.bpf.c", "charge(slot, direction, row, p->bytes) != PASS",
          test_quotas.test_the_packet_that_would_pass_the_limit_is_dropped, loader="libbpf"),
    never("cut all", "quota.h", "quota->action == CUT_ALL && used->exceeded == quota->round",
          test_quotas.test_cutting_all_cuts_every_class_and_every_job_of_the_quota),
    Mutant("small packets past a quota", "quota.h", "used->exceeded == quota->round", "0",
           test_quotas.test_the_packet_that_would_pass_the_limit_is_dropped,
           (("loader", "libbpf"),), before="continue;\n\t\tif ("),
    Mutant("quota that the map lacks", "quota.h", "QUOTA_DENIED", "PASS",
           test_quotas.test_a_quota_that_nobody_set_lets_nothing_pass,
           before="if (!quota || !used)\n\t\t\treturn "),
)  # fmt: skip

MUTANTS = (*FRAMES, *ADDRESSES, *PARSING, *DISCOVERY, *REACH, *WORKER, *INBOUND, *LIMITS)
