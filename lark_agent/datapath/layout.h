// SPDX-License-Identifier: Apache-2.0
/*
 * What the maps hold, the numbers that the agent and the programs share, and the maps themselves.
 *
 * Read by lark_agent/datapath/layout.py: change both, and its VERSION. The agent creates and pins the
 * maps (sizes come from there); the loaders only connect them.
 *
 * For two compilers: clang for libbpf (BTF maps), and bcc, which declares and reads maps in its own
 * dialect. All of the difference is in the block "Maps". No kernel headers, no CO-RE.
 */
#ifndef LARK_LAYOUT_H
#define LARK_LAYOUT_H

#ifdef LARK_BCC
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#define SECTION(name)
#define SUBPROGRAM INLINE /* bcc knows no other */
#else
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#define SECTION(name) SEC(name)
#define SUBPROGRAM __attribute__((noinline))
#endif

#define INLINE static inline __attribute__((always_inline))

#define CLASSES 16
#define NON_IP CLASSES /* the row of `usage` after the classes */
#define QUOTAS 8       /* that one plan can refer to */
#define SHAPER 0x3fffff01 /* index of the ifb device that shapes what jobs receive */
#define TO_LOOPBACK 0x6c61726b /* mark ("lark") of what the firewall sends on to 127.0.0.1 */

/* struct plan, flags */
#define PLAN_ACTIVE 1
#define PLAN_LINK 2   /* on a layer-2 network of others: neighbours are found by ARP and ND */
#define PLAN_SETUP 4  /* no job yet: only what finds an address passes */
#define PLAN_ROUTER 8 /* takes addresses from router advertisements */
#define PLAN_DHCP 16  /* takes addresses from DHCP */

enum direction { SENT, RECEIVED };

/* model.Peers: which other jobs this one admits */
enum peers { PEERS_NONE, PEERS_OWNER, PEERS_GROUP, PEERS_ALL };

/* model.Inbound: what may begin from outside */
enum inbound { INBOUND_NONE, INBOUND_ESTABLISHED, INBOUND_PORTS, INBOUND_ALL };

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
	QUOTA_DENIED,
	INBOUND_DENIED,
	SERVICE_DENIED,
	FORGED_SERVICE,
	REASONS,
	PASS = REASONS,
};
#define DROPPED_HERE 8 /* reasons in a value of `dropped`; the others are in `dropped2` */
/* after four reasons `dropped2` has the packets of each class (32 bits) that the plan refused */
#define REFUSED 4
#define REFUSED_MOST 0xff0000 /* on a CPU: the sum of all fits */

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct usage {
	struct counter of[CLASSES + 1][2];
};

/* The same for both maps: what layout 1 counted stays where it was. */
struct dropped {
	struct counter of[DROPPED_HERE];
};

/* What happens when a quota is used up; the agent answers to the event. */
enum action { NOTIFY, THROTTLE, CUT_CLASS, CUT_ALL };

/* Written by the agent alone: a limit can change while packets are charged. */
struct quota {
	__u64 limit;
	__u32 action;
	__u32 round; /* grows with every change */
};

/* Written by the programs alone. */
struct quota_used {
	__u64 bytes;
	__u32 exceeded; /* the round in which it was used up */
	__u32 unused;
};

struct quota_use {
	__u32 quota;      /* index in `quota` and 1; zero: none, nor after it */
	__u32 classes;    /* bit n: counts what is exchanged with class n */
	__u32 directions; /* bit n: counts direction n */
};

/* What the agent is told at once: at least one for each thing that happened, unless none fits. */
enum event_kind { QUOTA_EXCEEDED = 1, FIRST_DROP = 2 };

struct event {
	__u32 kind;
	__u32 slot;
	__u32 number; /* index of the quota, or reason */
	__u32 unused;
	__u64 at; /* ns since boot */
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
	__u32 link6[4];   /* its link-local address, for neighbour discovery */
	__u32 dscp;       /* of every packet that the job sends */
	__u32 flow_label; /* the same, IPv6 */
	__u32 queue[2];   /* by direction: HTB class; zero: not shaped */
	__u32 inbound;
	__u32 services; /* bit n: service n of the worker is allowed */
	__u32 epoch;    /* tells this job's flows from those of the slot's earlier jobs */
	__u32 local4;   /* its IPv4 address where that is for the worker's services alone */
	struct quota_use quotas[QUOTAS];
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

/* What `first` says of ranges that are not this worker's sandboxes; odd, as no slot 0 is. */
#define FIRST_NOBODY 0xffffffff /* of sandboxes, but no address is a job's */
#define FIRST_WORKER 0xfffffffd /* the worker itself */
#define FIRST_REMOTE 0xfffffffb /* of jobs that only `remote_jobs` tells */

/* Transport protocol and port (host order; 0 where there are none) of what the worker offers. */
struct service {
	__u32 protocol;
	__u32 port;
};

/* A job that has no slot here: of another worker, or on a network where slots give no address. */
struct remote_job {
	__u64 owner;
	__u64 group;
	__u32 peers;
	__u32 unused;
};

struct address {
	__u32 word[4]; /* IPv4 is mapped (::ffff:0:0/96) */
};

/* A conversation of a job, by the job that began it and the ends. */
struct flow {
	__u32 slot; /* whose flows it is one of */
	__u32 epoch;
	__u32 protocol; /* and the bits below */
	__u32 remote_port;
	__u32 local_port;
	__u32 remote[4];
};
#define FLOW_IPV6 (1 << 8)
#define FLOW_FRAGMENT (1 << 9) /* remote_port is the identification of a packet in fragments */
#define FLOW_WORKER (1 << 10)  /* begun by the worker */

/* A port that a job listens on, for others; or one of the worker that is this job's alone. */
struct open_port {
	__u32 slot;
	__u32 protocol; /* and the bit below */
	__u32 port;
};
#define PORT_OF_LAUNCHER (1 << 8) /* its launcher's, on the worker's loopback; value: by which address */

/* Maps */
#ifdef LARK_BCC
BPF_TABLE_PINNED("hash", __u32, __u32, slots, 1, LARK_PINS "/slots");
BPF_TABLE_PINNED("array", __u32, struct plan, plan, 1, LARK_PINS "/plan");
BPF_TABLE_PINNED("percpu_array", __u32, struct usage, usage, 1, LARK_PINS "/usage");
BPF_TABLE_PINNED("percpu_array", __u32, struct dropped, dropped, 1, LARK_PINS "/dropped");
BPF_TABLE_PINNED("percpu_array", __u32, struct dropped, dropped2, 1, LARK_PINS "/dropped2");
BPF_TABLE_PINNED("array", __u32, struct quota, quota, 1, LARK_PINS "/quota");
BPF_TABLE_PINNED("array", __u32, struct quota_used, quota_used, 1, LARK_PINS "/quota_used");
struct events_table {
	int key;
	__u32 leaf;
	int (*ringbuf_output)(void *, __u64, __u64);
	__u32 max_entries;
};
__attribute__((section("maps/ringbuf:" LARK_PINS "/events"))) struct events_table events = {
	.max_entries = 1};
BPF_TABLE_PINNED("hash", struct service, __u32, services, 1, LARK_PINS "/services");
BPF_TABLE_PINNED("hash", struct address, struct remote_job, remote_jobs, 1,
		 LARK_PINS "/remote_jobs", BPF_F_NO_PREALLOC);
BPF_TABLE("lru_hash", struct flow, __u64, flows_of_slot, 1); /* shows what those in `flows` are */
BPF_TABLE_PINNED("array_of_maps$flows_of_slot", __u32, __u32, flows, 1, LARK_PINS "/flows");
BPF_TABLE_PINNED("hash", struct open_port, __u32, open_ports, 1, LARK_PINS "/open_ports",
		 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct prefix4, struct destination, classes4, 1,
		 LARK_PINS "/classes4", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct prefix6, struct destination, classes6, 1,
		 LARK_PINS "/classes6", BPF_F_NO_PREALLOC);
INLINE __u32 *find_slot(__u32 *ifindex) { return slots.lookup(ifindex); }
INLINE struct plan *find_plan(__u32 *slot) { return plan.lookup(slot); }
INLINE struct usage *find_usage(__u32 *slot) { return usage.lookup(slot); }
INLINE struct dropped *find_dropped(__u32 *slot) { return dropped.lookup(slot); }
INLINE struct dropped *find_dropped2(__u32 *slot) { return dropped2.lookup(slot); }
INLINE struct quota *find_quota(__u32 *index) { return quota.lookup(index); }
INLINE struct quota_used *find_quota_used(__u32 *index) { return quota_used.lookup(index); }
INLINE void tell(struct event *event) { events.ringbuf_output(event, sizeof(*event), 0); }
INLINE __u32 *find_service(struct service *key) { return services.lookup(key); }
INLINE struct remote_job *find_remote_job(struct address *key) { return remote_jobs.lookup(key); }
INLINE void *find_flows(__u32 *slot) { return flows.lookup(slot); }
INLINE __u32 *find_open_port(struct open_port *key) { return open_ports.lookup(key); }
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
MAP(dropped2, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct dropped, 0);
MAP(quota, BPF_MAP_TYPE_ARRAY, __u32, struct quota, 0);
MAP(quota_used, BPF_MAP_TYPE_ARRAY, __u32, struct quota_used, 0);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1);
} events SEC(".maps");
MAP(services, BPF_MAP_TYPE_HASH, struct service, __u32, 0);
MAP(remote_jobs, BPF_MAP_TYPE_HASH, struct address, struct remote_job, BPF_F_NO_PREALLOC);
struct flows_of_slot {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct flow)); /* clang 14 describes no types this far in */
	__uint(value_size, sizeof(__u64));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct flows_of_slot);
} flows SEC(".maps");
MAP(open_ports, BPF_MAP_TYPE_HASH, struct open_port, __u32, BPF_F_NO_PREALLOC);
MAP(classes4, BPF_MAP_TYPE_LPM_TRIE, struct prefix4, struct destination, BPF_F_NO_PREALLOC);
MAP(classes6, BPF_MAP_TYPE_LPM_TRIE, struct prefix6, struct destination, BPF_F_NO_PREALLOC);
INLINE __u32 *find_slot(__u32 *ifindex) { return bpf_map_lookup_elem(&slots, ifindex); }
INLINE struct plan *find_plan(__u32 *slot) { return bpf_map_lookup_elem(&plan, slot); }
INLINE struct usage *find_usage(__u32 *slot) { return bpf_map_lookup_elem(&usage, slot); }
INLINE struct dropped *find_dropped(__u32 *slot) { return bpf_map_lookup_elem(&dropped, slot); }
INLINE struct dropped *find_dropped2(__u32 *slot) { return bpf_map_lookup_elem(&dropped2, slot); }
INLINE struct quota *find_quota(__u32 *index) { return bpf_map_lookup_elem(&quota, index); }
INLINE struct quota_used *find_quota_used(__u32 *index)
{
	return bpf_map_lookup_elem(&quota_used, index);
}
INLINE void tell(struct event *event) { bpf_ringbuf_output(&events, event, sizeof(*event), 0); }
INLINE __u32 *find_service(struct service *key) { return bpf_map_lookup_elem(&services, key); }
INLINE struct remote_job *find_remote_job(struct address *key)
{
	return bpf_map_lookup_elem(&remote_jobs, key);
}
INLINE void *find_flows(__u32 *slot) { return bpf_map_lookup_elem(&flows, slot); }
INLINE __u32 *find_open_port(struct open_port *key) { return bpf_map_lookup_elem(&open_ports, key); }
INLINE struct destination *find4(struct prefix4 *key) { return bpf_map_lookup_elem(&classes4, key); }
INLINE struct destination *find6(struct prefix6 *key) { return bpf_map_lookup_elem(&classes6, key); }
#endif

#endif
