// SPDX-License-Identifier: Apache-2.0
/*
 * The two programs on the host side of a job's veth, where the job has no rights.
 *
 *   from_job   tc ingress: what the job sends
 *   to_job     tc egress:  what the job receives
 *
 * Theory of operation. The interface index names the slot (`slots`), the slot its plan (`plan`).
 * A packet is parsed once into addresses and its size on the wire, then the plan and what the
 * remote address is (`classes4`, `classes6`: longest prefix) decide. It is counted exactly once:
 * in `usage` if it passes, in `dropped` under the first reason that holds if it does not. An
 * interface without a slot passes nothing, so a half-built sandbox is closed.
 *
 * Size on the wire. A packet counts the length in its IP header, because the stack trims what
 * comes after it (Ethernet padding). A GSO super-packet leaves as several packets that repeat its
 * headers; it is cut by gso_size alone (skb_segment()), so that and not gso_segs says how many:
 * gso_segs is 0 in packets from AF_PACKET and tap. A length of 0 marks a super-packet over 64 KiB
 * (BIG TCP): then skb->len holds; IPv6 carries 8 bytes of jumbo option that never reach the wire.
 *
 * Jobs of this worker. The tries give the sandboxes' ranges the class `jobs` and the address of
 * slot 0, so the other job's slot is a subtraction, and its plan says who it is: both plans must
 * admit the other job. Both programs ask, the sender's and the receiver's, and read the same two
 * plans, so what one job is counted to have sent to another is what that one has received. The slot
 * is only where to look: the plan there must have the very address, so no arithmetic can admit.
 *
 * What the IP layer would refuse right after from_job has passed it (a frame for another MAC, a
 * header with a wrong checksum) is refused here, or it would count as sent without being sent.
 *
 * One file for two compilers: clang for libbpf (BTF maps), and bcc, which declares and reads maps
 * in its own dialect. All of the difference is in the block "Maps". No kernel headers, no CO-RE.
 * The layouts below are read by lark_agent/datapath/layout.py: change both and its VERSION.
 */
#ifdef LARK_BCC
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#define SECTION(name)
#else
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#define SECTION(name) SEC(name)
#endif

#define INLINE static inline __attribute__((always_inline))

#define CLASSES 16
#define NON_IP CLASSES /* the row of `usage` after the classes */
#define PLAN_ACTIVE 1

#define LINK_HEADER 14
#define SOURCE_MAC 6 /* offset in the link header */
#define TYPE_IPV4 0x0800
#define TYPE_ARP 0x0806
#define TYPE_IPV6 0x86dd
#define TO_THIS_HOST 0 /* PACKET_HOST: the frame was addressed to the veth's MAC */

#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_SCTP 132
#define HEADER_HOP_BY_HOP 0
#define HEADER_ROUTING 43
#define HEADER_NONE 59
#define HEADER_DESTINATION 60
#define MOST_EXTENSIONS 8
#define IPV4_FRAGMENT 0x3fff /* more fragments, or an offset */
#define GSO_BY_FRAGS 0xffff  /* SCTP: one segment per element of the fragment list */

enum direction { SENT, RECEIVED };

/* model.Peers: which other jobs this one admits */
enum peers { PEERS_NONE, PEERS_OWNER, PEERS_GROUP, PEERS_ALL };

/* model.DropReason */
enum verdict {
	NO_PLAN,
	LINK_LAYER,
	MALFORMED,
	SPOOFED_MAC,
	SPOOFED_ADDRESS,
	CLASS_DENIED,
	PEER_DENIED,
	MARTIAN,
	REASONS,
	PASS = REASONS,
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct usage {
	struct counter of[CLASSES + 1][2];
};

struct dropped {
	struct counter of[REASONS];
};

struct plan {
	__u32 flags;
	__u32 classes; /* bit n: class n is allowed */
	__u32 addr4;
	__u16 mac[3];
	__u16 unused;
	__u32 addr6[4]; /* zero: the job has no IPv6 */
	__u32 peers;
	__u64 owner; /* hash of a name; zero: of nobody */
	__u64 group;
};

/* What an address is, by the longest prefix that covers it. */
struct destination {
	__u32 class;
	__u32 first; /* in the sandboxes' ranges: the last 32 bits of slot 0's address; else zero */
};

struct prefix4 {
	__u32 bits;
	__u32 address;
};

struct prefix6 {
	__u32 bits;
	__u32 address[4];
};

/* Maps. The agent creates and pins them (sizes come from there); the loaders only connect them. */
#ifdef LARK_BCC
BPF_TABLE_PINNED("hash", __u32, __u32, slots, 1, LARK_PINS "/slots");
BPF_TABLE_PINNED("array", __u32, struct plan, plan, 1, LARK_PINS "/plan");
BPF_TABLE_PINNED("percpu_array", __u32, struct usage, usage, 1, LARK_PINS "/usage");
BPF_TABLE_PINNED("percpu_array", __u32, struct dropped, dropped, 1, LARK_PINS "/dropped");
BPF_TABLE_PINNED("lpm_trie", struct prefix4, struct destination, classes4, 1,
		 LARK_PINS "/classes4", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct prefix6, struct destination, classes6, 1,
		 LARK_PINS "/classes6", BPF_F_NO_PREALLOC);
INLINE __u32 *find_slot(__u32 *ifindex) { return slots.lookup(ifindex); }
INLINE struct plan *find_plan(__u32 *slot) { return plan.lookup(slot); }
INLINE struct usage *find_usage(__u32 *slot) { return usage.lookup(slot); }
INLINE struct dropped *find_dropped(__u32 *slot) { return dropped.lookup(slot); }
INLINE struct destination *find4(struct prefix4 *key) { return classes4.lookup(key); }
INLINE struct destination *find6(struct prefix6 *key) { return classes6.lookup(key); }
#else
#define MAP(name, kind, key_type, value_type, map_flag)                                            \
	struct {                                                                                   \
		__uint(type, kind);                                                                \
		__uint(max_entries, 1);                                                            \
		__uint(map_flags, map_flag);                                                       \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
	} name SEC(".maps")
MAP(slots, BPF_MAP_TYPE_HASH, __u32, __u32, 0);
MAP(plan, BPF_MAP_TYPE_ARRAY, __u32, struct plan, 0);
MAP(usage, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct usage, 0);
MAP(dropped, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct dropped, 0);
MAP(classes4, BPF_MAP_TYPE_LPM_TRIE, struct prefix4, struct destination, BPF_F_NO_PREALLOC);
MAP(classes6, BPF_MAP_TYPE_LPM_TRIE, struct prefix6, struct destination, BPF_F_NO_PREALLOC);
INLINE __u32 *find_slot(__u32 *ifindex) { return bpf_map_lookup_elem(&slots, ifindex); }
INLINE struct plan *find_plan(__u32 *slot) { return bpf_map_lookup_elem(&plan, slot); }
INLINE struct usage *find_usage(__u32 *slot) { return bpf_map_lookup_elem(&usage, slot); }
INLINE struct dropped *find_dropped(__u32 *slot) { return bpf_map_lookup_elem(&dropped, slot); }
INLINE struct destination *find4(struct prefix4 *key) { return bpf_map_lookup_elem(&classes4, key); }
INLINE struct destination *find6(struct prefix6 *key) { return bpf_map_lookup_elem(&classes6, key); }
#endif

/* What the verdict needs to know of a packet. IPv4 addresses use the first word. */
struct packet {
	__u32 type;
	__u32 packets;
	__u32 bytes;
	__u32 source[4];
	__u32 destination[4];
};

struct arp {
	__u16 hardware_type;
	__u16 protocol_type;
	__u8 hardware_size;
	__u8 protocol_size;
	__u16 operation;
	__u16 sender_mac[3];
	__u16 sender_address[2]; /* lies on no 4-byte boundary */
	__u16 target_mac[3];
	__u16 target_address[2];
};

struct ipv4 {
	__u8 version_and_size;
	__u8 service;
	__u16 length;
	__u16 id;
	__u16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__u32 source;
	__u32 destination;
};

struct ipv6 {
	__u8 version_and_class;
	__u8 class_and_flow[3];
	__u16 length;
	__u8 next;
	__u8 hops;
	__u32 source[4];
	__u32 destination[4];
};

/* Headers of an IP packet: where they end, how much of them each segment repeats on the wire. */
struct headers {
	__u32 end;      /* of the network layer, from the start of the frame */
	__u32 repeated; /* bytes of the network layer */
	__u32 total;    /* bytes of the packet before it is cut */
	__u8 protocol;
};

INLINE int measure(struct __sk_buff *skb, const struct headers *h, struct packet *p)
{
	__u32 size = skb->gso_size, repeated = h->repeated, segments;

	p->bytes = h->total;
	if (!size)
		return PASS;
	if (h->protocol == PROTOCOL_TCP) {
		__u8 data_offset;

		if (bpf_skb_load_bytes(skb, h->end + 12, &data_offset, 1))
			return MALFORMED;
		if (data_offset >> 4 < 5)
			return MALFORMED;
		repeated += (data_offset >> 4) * 4;
	} else if (h->protocol == PROTOCOL_UDP) {
		repeated += 8;
	} else if (h->protocol == PROTOCOL_SCTP) {
		repeated += 12;
	} else {
		return MALFORMED;
	}
	if (repeated > h->total)
		return MALFORMED;
	if (size == GSO_BY_FRAGS)
		segments = skb->gso_segs;
	else
		segments = (h->total - repeated + size - 1) / size;
	if (segments > 1) {
		p->packets = segments;
		p->bytes += (segments - 1) * repeated;
	}
	return PASS;
}

INLINE int parse_ipv4(struct __sk_buff *skb, struct packet *p, enum direction direction)
{
	union {
		struct ipv4 ip;
		__u32 word[21]; /* 20 bytes, and options up to the mask below */
	} u = {};
	__u32 room = p->bytes, options;
	struct headers h;

	if (bpf_skb_load_bytes(skb, LINK_HEADER, &u, sizeof(u.ip)))
		return MALFORMED;
	h.repeated = (u.ip.version_and_size & 15) * 4;
	h.end = LINK_HEADER + h.repeated;
	h.protocol = u.ip.protocol;
	h.total = bpf_ntohs(u.ip.length);
	if (!h.total && skb->gso_size)
		h.total = room;
	if (u.ip.version_and_size >> 4 != 4 || h.repeated < sizeof(u.ip))
		return MALFORMED;
	if (h.total < h.repeated || h.total > room)
		return MALFORMED;
	if (skb->gso_size && (u.ip.fragment & bpf_htons(IPV4_FRAGMENT)))
		return MALFORMED;
	p->source[0] = u.ip.source;
	p->destination[0] = u.ip.destination;

	if (direction == SENT) {
		__u64 sum = 0;

		/* the mask says to the verifier what the checks above said to us */
		options = (h.repeated - sizeof(u.ip)) & 63;
		if (options && bpf_skb_load_bytes(skb, LINK_HEADER + 20, &u.word[5], options))
			return MALFORMED;
#pragma clang loop unroll(full)
		for (int i = 0; i < 15; i++)
			sum += u.word[i];
		sum = (sum & 0xffffffff) + (sum >> 32);
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		if (sum != 0xffff)
			return MALFORMED;
	}
	return measure(skb, &h, p);
}

/* Find the transport header of a super-packet; a single packet's is of no interest. */
INLINE int skip_extensions(struct __sk_buff *skb, struct headers *h, int jumbo)
{
#pragma clang loop unroll(full)
	for (int i = 0; i < MOST_EXTENSIONS; i++) {
		__u8 extension[2]; /* next header, size beyond 8 bytes in units of 8 */
		__u32 size;

		if (h->protocol != HEADER_HOP_BY_HOP && h->protocol != HEADER_ROUTING &&
		    h->protocol != HEADER_DESTINATION)
			return PASS;
		if (bpf_skb_load_bytes(skb, h->end, extension, sizeof(extension)))
			return MALFORMED;
		size = (extension[1] + 1) * 8;
		h->end += size;
		if (jumbo && h->protocol == HEADER_HOP_BY_HOP)
			h->total -= size; /* the kernel's own; taken out when it cuts */
		else
			h->repeated += size;
		h->protocol = extension[0];
	}
	return PASS;
}

INLINE int parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	__u32 room = p->bytes, payload;
	struct headers h;
	struct ipv6 ip;

	if (bpf_skb_load_bytes(skb, LINK_HEADER, &ip, sizeof(ip)))
		return MALFORMED;
	payload = bpf_ntohs(ip.length);
	h.repeated = sizeof(ip);
	h.end = LINK_HEADER + sizeof(ip);
	h.protocol = ip.next;
	h.total = sizeof(ip) + payload;
	if (!payload && skb->gso_size)
		h.total = room;
	/* the stack does not trim a packet of length 0 that has options: bytes would ride along */
	else if (!payload && ip.next != HEADER_NONE)
		return MALFORMED;
	if (ip.version_and_class >> 4 != 6 || h.total > room)
		return MALFORMED;
	__builtin_memcpy(p->source, ip.source, sizeof(ip.source));
	__builtin_memcpy(p->destination, ip.destination, sizeof(ip.destination));
	if (skb->gso_size && skip_extensions(skb, &h, !payload) != PASS)
		return MALFORMED;
	return measure(skb, &h, p);
}

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
	return p->type == TYPE_IPV4 ? parse_ipv4(skb, p, direction) : parse_ipv6(skb, p);
}

INLINE int same_mac(const __u16 *a, const __u16 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

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

INLINE int admit_arp(struct __sk_buff *skb, const struct plan *own, enum direction direction)
{
	__u16 source[3];
	struct arp arp;
	__u32 sender;

	if (direction == RECEIVED)
		return PASS;
	if (bpf_skb_load_bytes(skb, SOURCE_MAC, source, sizeof(source)) ||
	    bpf_skb_load_bytes(skb, LINK_HEADER, &arp, sizeof(arp)))
		return MALFORMED;
	if (arp.hardware_type != bpf_htons(1) || arp.protocol_type != bpf_htons(TYPE_IPV4) ||
	    arp.hardware_size != 6 || arp.protocol_size != 4)
		return MALFORMED;
	if (!same_mac(source, own->mac) || !same_mac(arp.sender_mac, own->mac))
		return SPOOFED_MAC;
	__builtin_memcpy(&sender, arp.sender_address, sizeof(sender));
	return own->addr4 && sender == own->addr4 ? PASS : SPOOFED_ADDRESS;
}

/* The rules for IP, first match wins; `row` becomes the class to count under. */
INLINE int admit_ip(struct __sk_buff *skb, const struct plan *own, const struct packet *p,
		    enum direction direction, __u32 *row)
{
	const __u32 *local = direction == SENT ? p->source : p->destination;
	const __u32 *remote = direction == SENT ? p->destination : p->source;
	struct destination *found;

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
	found = find_destination(p, remote);
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

INLINE int decide(struct __sk_buff *skb, enum direction direction)
{
	__u32 ifindex = skb->ifindex, row = NON_IP, *found, slot;
	struct packet p = {};
	struct dropped *dropped_here;
	struct usage *usage_here;
	struct plan *own;
	int verdict;

	found = find_slot(&ifindex);
	if (!found)
		return TC_ACT_SHOT;
	slot = *found;
	own = find_plan(&slot);
	usage_here = find_usage(&slot);
	dropped_here = find_dropped(&slot);
	if (!own || !usage_here || !dropped_here)
		return TC_ACT_SHOT;

	/* parsed even without a plan, so that what is dropped has its true size */
	verdict = parse(skb, &p, direction);
	if (!(own->flags & PLAN_ACTIVE))
		verdict = NO_PLAN;
	else if (verdict == PASS && p.type == TYPE_ARP)
		verdict = admit_arp(skb, own, direction);
	else if (verdict == PASS)
		verdict = admit_ip(skb, own, &p, direction, &row);

	if (verdict == PASS && row <= NON_IP) {
		add(&usage_here->of[row][direction], &p);
		return TC_ACT_OK;
	}
	if (verdict >= 0 && verdict < REASONS)
		add(&dropped_here->of[verdict], &p);
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
