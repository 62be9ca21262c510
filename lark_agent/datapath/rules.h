// SPDX-License-Identifier: Apache-2.0
/*
 * What the plan says about an IP packet, whatever link it came by.
 *
 * Jobs of this worker. The tries give the sandboxes' ranges the class `jobs` and the address of
 * slot 0, so the other job's slot is a subtraction, and its plan says who it is: both plans must
 * admit the other job. Both programs ask, the sender's and the receiver's, and read the same two
 * plans, so what one job is counted to have sent to another is what that one has received. The slot
 * is only where to look: the plan there must have the very address, so no arithmetic can admit.
 */
#ifndef LARK_RULES_H
#define LARK_RULES_H

#include "packet.h"

INLINE int is_own_address(const struct plan *own, const struct packet *p, const __u32 *address)
{
	if (p->type == TYPE_IPV4)
		return own->addr4 && address[0] == own->addr4;
	/* a job without IPv6 has the address ::, which is nobody's */
	if (!(own->addr6[0] | own->addr6[1] | own->addr6[2] | own->addr6[3]))
		return 0;
	return address[0] == own->addr6[0] && address[1] == own->addr6[1] &&
	       address[2] == own->addr6[2] && address[3] == own->addr6[3];
}

/* Addresses that mean something only on one host or one link. */
INLINE int is_martian(const struct packet *p, const __u32 *address)
{
	__u32 high = bpf_ntohl(address[0]);

	if (p->type == TYPE_IPV4) /* 0/8, 127/8, multicast, reserved and broadcast */
		return high >> 24 == 0 || high >> 24 == 127 || high >> 24 >= 224;
	/* ::, ::1, IPv4-mapped and -compatible; multicast; link-local */
	return (!address[0] && !address[1]) || high >> 24 == 0xff || high >> 22 == 0xfe80 >> 6;
}

INLINE struct destination *find_destination(const struct packet *p, const __u32 *address)
{
	if (p->type == TYPE_IPV4) {
		struct prefix4 key = {.bits = 32, .address = address[0]};

		return find4(&key);
	} else {
		struct prefix6 key = {.bits = 128};

		__builtin_memcpy(key.address, address, sizeof(key.address));
		return find6(&key);
	}
}

INLINE int admits(const struct plan *one, const struct plan *other)
{
	if (one->peers == PEERS_OWNER)
		return one->owner && one->owner == other->owner;
	if (one->peers == PEERS_GROUP)
		return one->group && one->group == other->group;
	return one->peers == PEERS_ALL;
}

/* The rule for other jobs of this worker; `first` is where their range of addresses begins. */
INLINE int admit_peer(const struct plan *own, const struct packet *p, const __u32 *address,
		      __u32 first)
{
	__u32 last_word = p->type == TYPE_IPV4 ? address[0] : address[3];
	__u32 slot = bpf_ntohl(last_word) - first;
	struct plan *peer = find_plan(&slot);

	if (!peer || !(peer->flags & PLAN_ACTIVE) || !is_own_address(peer, p, address))
		return PEER_DENIED;
	if (is_own_address(own, p, address))
		return PEER_DENIED;
	return admits(own, peer) && admits(peer, own) ? PASS : PEER_DENIED;
}

/* The rules for the other side of a packet; `row` becomes the class to count under. */
INLINE int admit_remote(const struct plan *own, const struct packet *p, enum direction direction,
			__u32 *row)
{
	const __u32 *remote = direction == SENT ? p->destination : p->source;
	struct destination *found = find_destination(p, remote);

	*row = found ? found->class % CLASSES : 0;
	if (found && found->first)
		return admit_peer(own, p, remote, found->first);
	return own->classes >> *row & 1 ? PASS : CLASS_DENIED;
}

/*
 * Counters need no atomics: programs of tc run with bottom halves off, so that nothing else of this
 * program runs on the same CPU in between, and every CPU has its own counters.
 */
INLINE void add(struct counter *counter, const struct packet *p)
{
	counter->packets += p->packets;
	counter->bytes += p->bytes;
}

INLINE void report(__u32 kind, __u32 slot, __u32 number)
{
	struct event event = {.kind = kind, .slot = slot, .number = number};

	event.at = bpf_ktime_get_boot_ns();
	tell(&event);
}

/* The first drop of a reason is told, once a CPU: a job cannot flood the agent with events. */
INLINE void count_drop(__u32 slot, int reason, const struct packet *p)
{
	struct dropped *here = reason < DROPPED_HERE ? find_dropped(&slot) : find_dropped2(&slot);
	struct counter *counter;

	if (!here)
		return;
	counter = &here->of[reason % DROPPED_HERE];
	if (!counter->packets && reason != NO_PLAN)
		report(FIRST_DROP, slot, reason);
	add(counter, p);
}

#endif
