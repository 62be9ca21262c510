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

INLINE int same_address(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

INLINE int is_own_address(const struct plan *own, const struct packet *p, const __u32 *address)
{
	if (p->type == TYPE_IPV4)
		return own->addr4 && address[0] == own->addr4;
	/* a job without IPv6 has the address ::, which is nobody's */
	if (!(own->addr6[0] | own->addr6[1] | own->addr6[2] | own->addr6[3]))
		return 0;
	return same_address(address, own->addr6);
}

/* An address by which a job without IPv4 has the worker's services, and nothing else. */
INLINE int is_local_address(const struct plan *own, const struct packet *p, const __u32 *address)
{
	return p->type == TYPE_IPV4 && own->local4 && address[0] == own->local4;
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

/* Whether a job with these settings admits the other one. */
INLINE int agrees(__u32 peers, __u64 owner, __u64 group, __u64 other_owner, __u64 other_group)
{
	if (peers == PEERS_OWNER)
		return owner && owner == other_owner;
	if (peers == PEERS_GROUP)
		return group && group == other_group;
	return peers == PEERS_ALL;
}

INLINE int admit_each_other(const struct plan *own, __u32 peers, __u64 owner, __u64 group)
{
	return agrees(own->peers, own->owner, own->group, owner, group) &&
			       agrees(peers, owner, group, own->owner, own->group)
		       ? PASS
		       : PEER_DENIED;
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
	return admit_each_other(own, peer->peers, peer->owner, peer->group);
}

/* The rule for jobs that only the agent's list tells. */
INLINE int admit_remote_job(const struct plan *own, const struct packet *p, const __u32 *address)
{
	struct address key = {};
	struct remote_job *peer;

	if (p->type == TYPE_IPV4) {
		key.word[2] = bpf_htonl(0xffff);
		key.word[3] = address[0];
	} else {
		__builtin_memcpy(key.word, address, sizeof(key.word));
	}
	peer = find_remote_job(&key);
	if (!peer || is_own_address(own, p, address))
		return PEER_DENIED;
	return admit_each_other(own, peer->peers, peer->owner, peer->group);
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

/* Which class a plan refused, so that a job can be told; NON_IP if nobody knows. */
INLINE void note_refused(__u32 slot, __u32 row, __u32 packets)
{
	struct dropped *there = find_dropped2(&slot);
	__u32 *refused;

	if (!there || row == NON_IP)
		return;
	refused = (__u32 *)&there->of[REFUSED] + row % CLASSES;
	if (*refused < REFUSED_MOST)
		*refused += packets;
}

/*
 * The first drop of a reason is told, once a CPU: a job cannot flood the agent with events. A function
 * of its own, because the programs' stack has no room for more.
 */
SUBPROGRAM int count_drop(__u32 slot, __u32 reason, __u32 row, __u64 packets, __u64 bytes)
{
	struct dropped *here = reason < DROPPED_HERE ? find_dropped(&slot) : find_dropped2(&slot);
	struct counter *counter;

	if (!here)
		return 0;
	counter = &here->of[reason % DROPPED_HERE];
	if (reason == CLASS_DENIED)
		note_refused(slot, row, packets);
	if (!counter->packets && reason != NO_PLAN)
		report(FIRST_DROP, slot, reason);
	counter->packets += packets;
	counter->bytes += bytes;
	return 0;
}

#endif
