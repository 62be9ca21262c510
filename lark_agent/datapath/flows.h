// SPDX-License-Identifier: Apache-2.0
/*
 * What may begin from outside, where no firewall sees the packets: on layer-2 links, and for what
 * the worker itself sends to a job.
 *
 * A flow is noted when the job sends (or when the worker was let in), and is known for as long as
 * packets of it come; its name has the job's epoch, so nothing of an earlier job of the slot is known.
 * ICMP errors pass if they quote a packet of a known flow. Later fragments have no ports: they
 * pass if the first of the same packet has. Every slot has a map of its own, which forgets its longest
 * unused flow when it is full: a job that begins flows without end makes nobody forget but itself.
 */
#ifndef LARK_FLOWS_H
#define LARK_FLOWS_H

#include "rules.h"

#define SECOND 1000000000ULL
#define FORGET_TCP (432000 * SECOND) /* as connection tracking does (nf_conntrack_tcp_timeout_established) */
#define FORGET_OTHER (180 * SECOND)  /* and nf_conntrack_udp_timeout_stream, rounded up */

INLINE __u64 *find_flow(struct flow *flow)
{
	void *own = find_flows(&flow->slot);

	return own ? bpf_map_lookup_elem(own, flow) : 0;
}

INLINE void set_flow(struct flow *flow, __u64 *seen)
{
	void *own = find_flows(&flow->slot);

	if (own)
		bpf_map_update_elem(own, flow, seen, BPF_ANY);
}

INLINE void name_flow(struct flow *flow, __u32 slot, const struct plan *own, const struct packet *p,
		      enum direction direction)
{
	const __u32 *remote = direction == SENT ? p->destination : p->source;

	flow->slot = slot;
	flow->epoch = own->epoch;
	flow->protocol = p->protocol | (p->type == TYPE_IPV6 ? FLOW_IPV6 : 0);
	flow->remote_port = direction == SENT ? p->destination_port : p->source_port;
	flow->local_port = direction == SENT ? p->source_port : p->destination_port;
	__builtin_memcpy(flow->remote, remote, sizeof(flow->remote));
}

INLINE void name_fragment(struct flow *flow, const struct packet *p)
{
	flow->protocol |= FLOW_FRAGMENT;
	flow->remote_port = p->identification;
	flow->local_port = 0;
}

/* Whether a flow is known; seen now, it goes on to be. */
INLINE int know_flow(struct flow *flow, int used)
{
	__u64 *seen = find_flow(flow), now;

	if (!seen)
		return 0;
	now = bpf_ktime_get_boot_ns();
	if (now - *seen > ((flow->protocol & 0xff) == PROTOCOL_TCP ? FORGET_TCP : FORGET_OTHER))
		return 0;
	if (used && now - *seen > SECOND)
		*seen = now; /* seldom: other CPUs share the cache line */
	return 1;
}

INLINE void note_flow(struct flow *flow)
{
	__u64 now;

	if (know_flow(flow, 1))
		return;
	now = bpf_ktime_get_boot_ns();
	set_flow(flow, &now);
}

/* Remember what a job sends, so that answers are known. */
INLINE void note_sent(__u32 slot, const struct plan *own, const struct packet *p)
{
	struct flow flow = {};

	if (own->inbound != INBOUND_ESTABLISHED && own->inbound != INBOUND_PORTS)
		return;
	/* an answer, or an error about a packet, is not the beginning of anything */
	if (p->fragment == LATER || (is_icmp(p) && !is_echo(p)))
		return;
	name_flow(&flow, slot, own, p, SENT);
	note_flow(&flow);
}

INLINE int is_open(__u32 slot, const struct plan *own, const struct packet *p)
{
	struct open_port key = {.slot = slot, .protocol = p->protocol, .port = p->destination_port};

	if (own->inbound == INBOUND_ALL)
		return 1;
	if (own->inbound != INBOUND_PORTS || p->fragment == LATER)
		return 0;
	return find_open_port(&key) != 0;
}

/* Whether an ICMP error quotes a packet that the job has sent, in a flow that is known. */
INLINE int quotes_flow(struct __sk_buff *skb, __u32 slot, const struct plan *own,
		       const struct packet *p)
{
	struct packet quoted = {.type = p->type};
	union {
		struct ipv4 ip4;
		struct ipv6 ip6;
	} u;
	__u32 at = p->transport + 8;
	struct flow flow = {};
	__u16 ports[4] = {}; /* or, of an echo, its identifier in the third */

	if (p->type == TYPE_IPV4) {
		if (bpf_skb_load_bytes(skb, at, &u.ip4, sizeof(u.ip4)))
			return 0;
		quoted.source[0] = u.ip4.source;
		quoted.destination[0] = u.ip4.destination;
		quoted.protocol = u.ip4.protocol;
		at += (u.ip4.version_and_size & 15) * 4;
	} else {
		if (bpf_skb_load_bytes(skb, at, &u.ip6, sizeof(u.ip6)))
			return 0;
		__builtin_memcpy(quoted.source, u.ip6.source, sizeof(quoted.source));
		__builtin_memcpy(quoted.destination, u.ip6.destination, sizeof(quoted.destination));
		quoted.protocol = u.ip6.next;
		at += sizeof(u.ip6);
	}
	if (!is_own_address(own, &quoted, quoted.source))
		return 0;
	if (has_ports(quoted.protocol) || is_icmp(&quoted)) {
		if (bpf_skb_load_bytes(skb, at, ports, sizeof(ports)))
			return 0;
		quoted.source_port = bpf_ntohs(is_icmp(&quoted) ? ports[2] : ports[0]);
		quoted.destination_port = bpf_ntohs(is_icmp(&quoted) ? ports[2] : ports[1]);
	}
	name_flow(&flow, slot, own, &quoted, SENT);
	return know_flow(&flow, 0);
}

/* What may come in to a job on a layer-2 link; after parse_transport. */
INLINE int admit_inbound(struct __sk_buff *skb, __u32 slot, const struct plan *own,
			 const struct packet *p)
{
	struct flow flow = {};

	if (own->inbound == INBOUND_ALL)
		return PASS;
	name_flow(&flow, slot, own, p, RECEIVED);
	if (p->fragment == LATER) {
		name_fragment(&flow, p);
		return know_flow(&flow, 0) ? PASS : INBOUND_DENIED;
	}
	if (is_icmp_error(p))
		return quotes_flow(skb, slot, own, p) ? PASS : INBOUND_DENIED;
	if (is_icmp(p) && !is_echo_reply(p))
		return INBOUND_DENIED;
	if (!know_flow(&flow, 1) && !is_open(slot, own, p))
		return INBOUND_DENIED;
	if (p->fragment == FIRST) {
		name_fragment(&flow, p);
		note_flow(&flow);
	}
	return PASS;
}

#endif
