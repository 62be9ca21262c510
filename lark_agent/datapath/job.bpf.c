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
#include "mark.h"
#include "quota.h"
#include "worker.h"

INLINE int parse(struct __sk_buff *skb, struct link *link, struct packet *p,
		 enum direction direction)
{
	p->packets = 1;
	p->bytes = skb->len > LINK_HEADER ? skb->len - LINK_HEADER : 0;
	if (bpf_skb_load_bytes(skb, 0, link, sizeof(*link)))
		return MALFORMED;
	p->type = bpf_ntohs(link->type);
	/* a packet socket in the sandbox can give a frame a type that it does not have */
	if (skb->vlan_present || link->type != (__u16)skb->protocol)
		return LINK_LAYER;
	if (p->type == TYPE_ARP)
		return PASS;
	if (p->type != TYPE_IPV4 && p->type != TYPE_IPV6)
		return LINK_LAYER;
	return parse_ip(skb, p, direction);
}

/* The rules for the other side of a packet; `row` becomes the class to count under. */
INLINE int admit_remote(struct __sk_buff *skb, __u32 slot, const struct plan *own, struct packet *p,
			enum direction direction, __u32 *row)
{
	const __u32 *local = direction == SENT ? p->source : p->destination;
	const __u32 *remote = direction == SENT ? p->destination : p->source;
	struct destination *found = find_destination(p, remote);
	__u32 first = found ? found->first : 0;

	*row = found ? found->class % CLASSES : 0;
	if (direction == RECEIVED && own->inbound == INBOUND_NONE)
		return INBOUND_DENIED;
	if (first == FIRST_WORKER) {
		if (parse_transport(skb, p) != PASS)
			return MALFORMED;
		return admit_worker(skb, slot, own, p, direction);
	}
	if (is_local_address(own, p, local))
		return CLASS_DENIED;
	if (first == FIRST_REMOTE)
		return admit_remote_job(own, p, remote);
	if (first)
		return admit_peer(own, p, remote, first);
	if (!(own->classes >> *row & 1))
		return CLASS_DENIED;
	if (direction == RECEIVED && (own->flags & PLAN_LINK))
		return admit_inbound(skb, slot, own, p);
	return PASS;
}

/* The rules for IP, first match wins. */
INLINE int admit_ip(struct __sk_buff *skb, __u32 slot, const struct plan *own,
		    const struct link *link, struct packet *p, enum direction direction, __u32 *row)
{
	const __u32 *local = direction == SENT ? p->source : p->destination;
	const __u32 *remote = direction == SENT ? p->destination : p->source;
	int layer2 = own->flags & PLAN_LINK, verdict;

	if (direction == SENT && !same_mac(link->source, own->mac))
		return SPOOFED_MAC;
	if (direction == RECEIVED && layer2 && !is_group(link->destination) &&
	    !same_mac(link->destination, own->mac))
		return LINK_LAYER;
	if (layer2 || (direction == SENT && (p->protocol == PROTOCOL_UDP || is_icmp(p))))
		if (parse_transport(skb, p) != PASS)
			return MALFORMED;
	if (direction == SENT && is_forged(p))
		return FORGED_SERVICE;
	if (layer2) {
		verdict = admit_upkeep(skb, own, p, direction);
		if (verdict != NOT_UPKEEP)
			return verdict;
	}
	/* before the source: a kernel's own multicast (MLD) comes from ::, and is not spoofing */
	if (is_martian(p, p->destination))
		return MARTIAN;
	if (!is_own_address(own, p, local) && !is_local_address(own, p, local))
		return SPOOFED_ADDRESS;
	if (is_martian(p, remote))
		return MARTIAN;
	/* whose class nobody can look up: routers on the way would change the address */
	if (direction == SENT && p->detour)
		return CLASS_DENIED;
	if (layer2 ? is_group(link->destination)
		   : direction == SENT && skb->pkt_type != TO_THIS_HOST)
		return LINK_LAYER;
	return admit_remote(skb, slot, own, p, direction, row);
}

/* What is left to do with a packet that may pass. */
INLINE int finish(struct __sk_buff *skb, __u32 slot, const struct plan *own,
		  const struct packet *p, enum direction direction, __u32 row)
{
	if (direction == SENT && p->type != TYPE_ARP && mark(skb, own, p) != PASS)
		return MALFORMED;
	if (own->quotas[0].quota && charge(slot, direction, row, p->bytes) != PASS)
		return QUOTA_DENIED;
	if (direction == SENT && row != NON_IP && (own->flags & PLAN_LINK))
		note_sent(slot, own, p);
	skb->priority = own->queue[direction];
	return PASS;
}

INLINE int decide(struct __sk_buff *skb, enum direction direction)
{
	__u32 ifindex = skb->ifindex, row = NON_IP, *found, slot;
	struct link link = {};
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
	/*
	 * Shaping sent it by way of an ifb device, which puts packets back where they were taken: it has
	 * been counted. (At ingress the kernel itself asks no program twice.)
	 */
	if (direction == RECEIVED && skb->ingress_ifindex == SHAPER)
		return own->flags & PLAN_ACTIVE ? TC_ACT_UNSPEC : TC_ACT_SHOT;

	/* parsed even without a plan, so that what is dropped has its true size */
	verdict = parse(skb, &link, &p, direction);
	if (!(own->flags & (PLAN_ACTIVE | PLAN_SETUP)))
		verdict = NO_PLAN;
	else if (verdict == PASS && p.type == TYPE_ARP)
		verdict = admit_arp(skb, own, &link, direction);
	else if (verdict == PASS)
		verdict = admit_ip(skb, slot, own, &link, &p, direction, &row);

	if (verdict == PASS && (own->flags & PLAN_SETUP))
		return TC_ACT_UNSPEC; /* nobody's yet */
	row = row < NON_IP ? row : NON_IP;
	if (verdict == PASS)
		verdict = finish(skb, slot, own, &p, direction, row);
	if (verdict == PASS) {
		add(&usage_here->of[row][direction], &p);
		return TC_ACT_UNSPEC;
	}
	if (verdict >= 0 && verdict < REASONS)
		count_drop(slot, verdict, row, p.packets, p.bytes);
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
