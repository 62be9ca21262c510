// SPDX-License-Identifier: Apache-2.0
/*
 * The two programs of jobs without a sandbox, on the control group that such a job is kept in.
 *
 *   host_sent       cgroup_skb egress:  what the job's sockets send
 *   host_received   cgroup_skb ingress: what they receive
 *
 * Theory of operation. A socket belongs to the control group of the process that made it, and the
 * kernel runs these programs for it, in between the IP layer and the link: there is no link header.
 * The group names the slot (`cgroups`); a group that others made below the job's belongs to the same
 * job, and is found by its ancestors. From there all is as on a sandbox's link: the same maps, the
 * same sizes on the wire (packet.h), the same classes (rules.h) and quotas (quota.h).
 *
 * What is different. The job has the worker's addresses and those of nobody else in particular, so
 * there are no addresses to forge and no peers: sandboxes are not reached from here. The plan's
 * addresses only say which families it may use. What goes by the loopback does not leave the worker;
 * it passes, and counts for nobody. The kernel hands over datagrams before it cuts them into fragments
 * and after it has put them together: each counts as the one packet it was.
 *
 * Counters need atomics here, per CPU though they are: a process that sends may be interrupted, or
 * preempted, by another packet of the same slot.
 *
 * A job may make network namespaces (rootless containers do). What leaves those for the worker's
 * network goes by sockets of the job there (slirp4netns, pasta), which count; inside it is no traffic
 * of the worker's, and passes. Programs may ask for the namespace since Linux 6.15: for older kernels
 * this is compiled without LARK_NETWORKS, and such traffic counts inside and outside.
 *
 * A group that is not in the map passes nothing: it is of a job that has ended.
 */
#define LINK_HEADER 0
#include "quota.h"

#define LOOPBACK 1        /* the loopback's interface index, in every network namespace */
#define DEEPEST_GROUP 24  /* levels below the root at which a job's group is looked for */
#define ALLOW 1
#define DENY 0

struct group {
	__u32 slot;
	__u32 unused;
	__u64 network; /* cookie of the worker's network namespace */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct group);
} cgroups SEC(".maps");

/* Find what is known of a socket's control group, or of the nearest group around it. */
INLINE struct group *find_group(struct __sk_buff *skb)
{
	__u64 number = bpf_skb_cgroup_id(skb);
	struct group *group = bpf_map_lookup_elem(&cgroups, &number);

	if (group)
		return group;
#pragma clang loop unroll(full)
	for (int level = 1; level <= DEEPEST_GROUP; level++) {
		number = bpf_skb_ancestor_cgroup_id(skb, level);
		if (!number)
			return 0;
		group = bpf_map_lookup_elem(&cgroups, &number);
		if (group)
			return group;
	}
	return 0;
}

/* Whether a packet is in a network that the job has made for itself, whose packets go nowhere. */
INLINE int is_elsewhere(struct __sk_buff *skb, const struct group *group)
{
#ifdef LARK_NETWORKS
	return bpf_get_netns_cookie(skb) != group->network;
#else
	(void)skb, (void)group;
	return 0;
#endif
}

INLINE void add_atomically(struct counter *counter, const struct packet *p)
{
	__sync_fetch_and_add(&counter->packets, p->packets);
	__sync_fetch_and_add(&counter->bytes, p->bytes);
}

INLINE void drop_atomically(__u32 slot, int reason, __u32 row, const struct packet *p)
{
	struct dropped *here = reason < DROPPED_HERE ? find_dropped(&slot) : find_dropped2(&slot);
	struct counter *counter;

	if (!here)
		return;
	counter = &here->of[reason % DROPPED_HERE];
	if (reason == CLASS_DENIED)
		note_refused(slot, row, p->packets); /* how many is a hint, and may lack what came between */
	if (!counter->packets && reason != NO_PLAN)
		report(FIRST_DROP, slot, reason);
	add_atomically(counter, p);
}

INLINE int parse_bare(struct __sk_buff *skb, struct packet *p, enum direction direction)
{
	p->type = bpf_ntohs((__u16)skb->protocol);
	p->packets = 1;
	p->bytes = skb->len;
	if (p->type != TYPE_IPV4 && p->type != TYPE_IPV6)
		return LINK_LAYER;
	return parse_ip(skb, p, direction);
}

/* The rules for a job with the worker's addresses; `row` becomes the class to count under. */
INLINE int admit_bare(const struct plan *own, const struct packet *p, enum direction direction,
		      __u32 *row)
{
	const __u32 *remote = direction == SENT ? p->destination : p->source;
	struct destination *found = find_destination(p, remote);

	if (p->type == TYPE_IPV4 ? !own->addr4 : !own->addr6[3])
		return SPOOFED_ADDRESS;
	*row = found ? found->class % CLASSES : 0;
	if (direction == SENT && p->detour)
		return CLASS_DENIED;
	if (found && found->first)
		return PEER_DENIED;
	return own->classes >> *row & 1 ? PASS : CLASS_DENIED;
}

INLINE int decide(struct __sk_buff *skb, enum direction direction)
{
	__u32 row = 0, slot;
	struct usage *usage_here;
	struct group *group;
	struct packet p = {};
	struct plan *own;
	int verdict;

	if (skb->ifindex == LOOPBACK)
		return ALLOW;
	group = find_group(skb);
	if (!group)
		return DENY;
	if (is_elsewhere(skb, group))
		return ALLOW;
	slot = group->slot;
	own = find_plan(&slot);
	usage_here = find_usage(&slot);
	if (!own || !usage_here)
		return DENY;

	verdict = parse_bare(skb, &p, direction);
	if (!(own->flags & PLAN_ACTIVE))
		verdict = NO_PLAN;
	else if (verdict == PASS)
		verdict = admit_bare(own, &p, direction, &row);
	row = row < CLASSES ? row : 0; /* for the verifier */
	if (verdict == PASS && own->quotas[0].quota && charge(slot, direction, row, p.bytes) != PASS)
		verdict = QUOTA_DENIED;
	if (verdict == PASS) {
		add_atomically(&usage_here->of[row][direction], &p);
		return ALLOW;
	}
	if (verdict >= 0 && verdict < REASONS)
		/* a source route hides the class */
		drop_atomically(slot, verdict, direction == SENT && p.detour ? NON_IP : row, &p);
	return DENY;
}

SEC("cgroup_skb/egress")
int host_sent(struct __sk_buff *skb)
{
	return decide(skb, SENT);
}

SEC("cgroup_skb/ingress")
int host_received(struct __sk_buff *skb)
{
	return decide(skb, RECEIVED);
}

char LICENSE[] SEC("license") = "Apache-2.0"; /* no helper used here is for the GPL only */
