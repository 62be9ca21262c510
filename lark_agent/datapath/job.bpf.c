// SPDX-License-Identifier: Apache-2.0
/*
 * The two programs on a job's link, where the job has no rights.
 *
 *   from_job   what the job sends
 *   to_job     what the job receives
 *
 * They hang at the host's end of the veth (tc ingress and egress), or, where the device has no host's
 * end or frames would be seen before it, on the device in the sandbox (egress and ingress): the
 * sandbox's namespace belongs to the initial user namespace, so the job has no rights there either.
 *
 * Theory of operation. The interface index names the slot (`slots`), the slot its plan (`plan`).
 * A packet is parsed once into addresses and its size on the wire (packet.h), then the plan and what
 * the remote address is (`classes4`, `classes6`: longest prefix) decide (link.h, rules.h). It is
 * counted exactly once: in `usage` if it passes, in `dropped` under the first reason that holds if it
 * does not. An interface without a slot passes nothing, so a half-built sandbox is closed.
 *
 * What passes gets the plan's queue as its priority and goes on to the next filter (TC_ACT_UNSPEC),
 * where shaping may take it; without one it is passed.
 *
 * What the IP layer would refuse right after from_job has passed it (a frame for another MAC, a
 * header with a wrong checksum) is refused here, or it would count as sent without being sent.
 */
#include "link.h"
#include "quota.h"

INLINE int parse(struct __sk_buff *skb, struct packet *p, enum direction direction)
{
	p->type = bpf_ntohs((__u16)skb->protocol);
	p->packets = 1;
	p->bytes = skb->len > LINK_HEADER ? skb->len - LINK_HEADER : 0;
	if (skb->vlan_present)
		return LINK_LAYER;
	if (p->type == TYPE_ARP)
		return PASS;
	if (p->type != TYPE_IPV4 && p->type != TYPE_IPV6)
		return LINK_LAYER;
	return parse_ip(skb, p, direction);
}

/* The rules for IP, first match wins; `row` becomes the class to count under. */
INLINE int admit_ip(struct __sk_buff *skb, const struct plan *own, const struct packet *p,
		    enum direction direction, __u32 *row)
{
	const __u32 *local = direction == SENT ? p->source : p->destination;
	const __u32 *remote = direction == SENT ? p->destination : p->source;

	if (direction == SENT) {
		__u16 source[3];

		if (bpf_skb_load_bytes(skb, SOURCE_MAC, source, sizeof(source)))
			return MALFORMED;
		if (!same_mac(source, own->mac))
			return SPOOFED_MAC;
	}
	/* before the source: a kernel's own multicast (MLD) comes from ::, and is not spoofing */
	if (is_martian(p, p->destination))
		return MARTIAN;
	if (!is_own_address(own, p, local))
		return SPOOFED_ADDRESS;
	if (is_martian(p, remote))
		return MARTIAN;
	if (direction == SENT && skb->pkt_type != TO_THIS_HOST)
		return LINK_LAYER;
	return admit_remote(own, p, direction, row);
}

INLINE int decide(struct __sk_buff *skb, enum direction direction)
{
	__u32 ifindex = skb->ifindex, row = NON_IP, *found, slot;
	struct packet p = {};
	struct usage *usage_here;
	struct plan *own;
	int verdict;

	found = find_slot(&ifindex);
	if (!found)
		return TC_ACT_SHOT;
	slot = *found;
	own = find_plan(&slot);
	usage_here = find_usage(&slot);
	if (!own || !usage_here)
		return TC_ACT_SHOT;

	/* parsed even without a plan, so that what is dropped has its true size */
	verdict = parse(skb, &p, direction);
	if (!(own->flags & PLAN_ACTIVE))
		verdict = NO_PLAN;
	else if (verdict == PASS && p.type == TYPE_ARP)
		verdict = admit_arp(skb, own, direction);
	else if (verdict == PASS)
		verdict = admit_ip(skb, own, &p, direction, &row);
	row = row < NON_IP ? row : NON_IP;
	if (verdict == PASS)
		verdict = charge(slot, own, &p, direction, row);

	if (verdict == PASS) {
		add(&usage_here->of[row][direction], &p);
		skb->priority = own->queue[direction];
		return TC_ACT_UNSPEC;
	}
	if (verdict >= 0 && verdict < REASONS)
		count_drop(slot, verdict, &p);
	return TC_ACT_SHOT;
}

SECTION("tc")
int from_job(struct __sk_buff *skb)
{
	return decide(skb, SENT);
}

SECTION("tc")
int to_job(struct __sk_buff *skb)
{
	return decide(skb, RECEIVED);
}

#ifndef LARK_BCC
char LICENSE[] SEC("license") = "Apache-2.0"; /* no helper used here is for the GPL only */
#endif
