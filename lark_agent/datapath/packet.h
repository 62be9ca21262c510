// SPDX-License-Identifier: Apache-2.0
/*
 * One pass over an IP packet: addresses, and its size on the wire.
 *
 * A packet counts the length in its IP header, because the stack trims what comes after it (Ethernet
 * padding). A GSO super-packet leaves as several packets that repeat its headers; it is cut by
 * gso_size alone (skb_segment()), so that and not gso_segs says how many: gso_segs is 0 in packets
 * from AF_PACKET and tap. A length of 0 marks a super-packet over 64 KiB (BIG TCP): then skb->len
 * holds; IPv6 carries 8 bytes of jumbo option that never reach the wire.
 *
 * LINK_HEADER is where the network layer begins: 14, or 0 in programs that see no link layer.
 */
#ifndef LARK_PACKET_H
#define LARK_PACKET_H

#include "layout.h"

#ifndef LINK_HEADER
#define LINK_HEADER 14
#endif
#define TYPE_IPV4 0x0800
#define TYPE_ARP 0x0806
#define TYPE_IPV6 0x86dd

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

/* What the verdict needs to know of a packet. IPv4 addresses use the first word. */
struct packet {
	__u32 type;
	__u32 packets;
	__u32 bytes;
	__u32 source[4];
	__u32 destination[4];
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

/* Take an IP packet apart; `p->type` and `p->bytes`, what there is of it, are known. */
INLINE int parse_ip(struct __sk_buff *skb, struct packet *p, enum direction direction)
{
	return p->type == TYPE_IPV4 ? parse_ipv4(skb, p, direction) : parse_ipv6(skb, p);
}

#endif
