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

#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_DCCP 33
#define PROTOCOL_ICMPV6 58
#define PROTOCOL_SCTP 132
#define PROTOCOL_UDPLITE 136
#define HEADER_HOP_BY_HOP 0
#define HEADER_ROUTING 43
#define HEADER_FRAGMENT 44
#define HEADER_NONE 59
#define HEADER_DESTINATION 60
#define MOST_EXTENSIONS 8
#define MOST_OPTIONS 8
#define OPTIONS_END 0
#define OPTION_PADDING 1
#define LOOSE_SOURCE_ROUTE 131
#define STRICT_SOURCE_ROUTE 137
#define IPV4_FRAGMENT 0x3fff /* more fragments, or an offset */
#define IPV4_OFFSET 0x1fff
#define IPV6_FRAGMENT 0xfff9
#define IPV6_OFFSET 0xfff8

#define ECHO 8 /* types of ICMP, and of ICMPv6 */
#define ECHO_REPLY 0
#define ECHO6 128
#define ECHO6_REPLY 129
#define LAST_ERROR6 127
#define GSO_BY_FRAGS 0xffff  /* SCTP: one segment per element of the fragment list */

/* What the verdict needs to know of a packet. IPv4 addresses use the first word. */
struct packet {
	__u32 type;
	__u32 packets;
	__u32 bytes;
	__u32 source[4];
	__u32 destination[4];
	__u32 mark;           /* first word of the header, with DSCP and flow label; network order */
	__u32 transport;      /* where the transport header is */
	__u32 end;            /* and where the packet ends */
	__u32 protocol;       /* of the transport; only a first fragment has its header */
	__u32 fragment;       /* enum fragment */
	__u32 identification; /* of a packet in fragments */
	__u32 detour;         /* it goes on from the address that it is for: a source route */
	/* since parse_transport, host order; an echo has its identifier in both; zero without any */
	__u32 source_port;
	__u32 destination_port;
	__u32 icmp; /* type */
};

enum fragment { WHOLE, FIRST, LATER };

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

/* Look for a source route in IPv4 options; with more options than any honest stack sends, fail. */
INLINE int find_source_route(struct __sk_buff *skb, __u32 size, struct packet *p)
{
	__u32 at = 0;

#pragma clang loop unroll(full)
	for (int i = 0; i < MOST_OPTIONS; i++) {
		struct {
			__u8 type, size;
		} option = {};

		if (at >= size)
			return PASS;
		if (bpf_skb_load_bytes(skb, LINK_HEADER + 20 + at, &option.type, 1))
			return MALFORMED;
		if (option.type == OPTIONS_END)
			return PASS;
		if (option.type == OPTION_PADDING) {
			at++;
			continue;
		}
		if (option.type == LOOSE_SOURCE_ROUTE || option.type == STRICT_SOURCE_ROUTE)
			p->detour = 1;
		if (bpf_skb_load_bytes(skb, LINK_HEADER + 21 + at, &option.size, 1))
			return MALFORMED;
		if (option.size < 2)
			return MALFORMED;
		at += option.size;
	}
	return at >= size ? PASS : MALFORMED;
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
	p->mark = u.word[0];
	p->transport = h.end;
	p->end = LINK_HEADER + h.total;
	p->protocol = h.protocol;
	if (u.ip.fragment & bpf_htons(IPV4_FRAGMENT)) {
		p->fragment = u.ip.fragment & bpf_htons(IPV4_OFFSET) ? LATER : FIRST;
		p->identification = u.ip.id;
	}

	if (direction == SENT) {
		__u64 sum = 0;

		/* the mask says to the verifier what the checks above said to us, and the addition that
		 * the size is not 0: Linux 5.10 and 6.1 forget that of what was put on the stack meanwhile */
		options = (h.repeated - sizeof(u.ip)) & 63;
		if (options && bpf_skb_load_bytes(skb, LINK_HEADER, &u, sizeof(u.ip) + options))
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
		if (options && find_source_route(skb, options, p) != PASS)
			return MALFORMED;
	}
	return measure(skb, &h, p);
}

INLINE int is_extension(__u8 protocol)
{
	return protocol == HEADER_HOP_BY_HOP || protocol == HEADER_ROUTING ||
	       protocol == HEADER_DESTINATION || protocol == HEADER_FRAGMENT;
}

/*
 * Find the transport header, behind headers that each fragment or segment repeats. All of them are
 * in a first fragment (RFC 7112), and no more than we look at, or something could hide behind.
 */
INLINE int skip_extensions(struct __sk_buff *skb, struct packet *p, struct headers *h, int jumbo)
{
#pragma clang loop unroll(full)
	for (int i = 0; i < MOST_EXTENSIONS; i++) {
		struct {
			__u8 next, size; /* beyond 8 bytes, in units of 8 */
			__u16 fragment;  /* of a routing header: type, and segments left */
			__u32 identification;
		} extension;
		__u32 size;

		if (!is_extension(h->protocol))
			return PASS;
		if (h->end + 8 > LINK_HEADER + h->total)
			return MALFORMED;
		if (bpf_skb_load_bytes(skb, h->end, &extension, sizeof(extension)))
			return MALFORMED;
		if (h->protocol == HEADER_FRAGMENT) {
			size = 8;
			p->identification = extension.identification;
			if (extension.fragment & bpf_htons(IPV6_FRAGMENT))
				p->fragment = extension.fragment & bpf_htons(IPV6_OFFSET) ? LATER : FIRST;
			if (skb->gso_size)
				return MALFORMED;
		} else {
			size = (extension.size + 1) * 8;
		}
		if (h->protocol == HEADER_ROUTING && (extension.fragment & bpf_htons(0xff)))
			p->detour = 1;
		h->end += size;
		if (jumbo && h->protocol == HEADER_HOP_BY_HOP)
			h->total -= size; /* the kernel's own; taken out when it cuts */
		else
			h->repeated += size;
		h->protocol = extension.next;
		if (p->fragment == LATER)
			return PASS;
	}
	return is_extension(h->protocol) ? MALFORMED : PASS;
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
	__builtin_memcpy(&p->mark, &ip, sizeof(p->mark));
	if (skip_extensions(skb, p, &h, !payload) != PASS)
		return MALFORMED;
	p->transport = h.end;
	p->end = LINK_HEADER + sizeof(ip) + payload;
	p->protocol = h.protocol;
	return measure(skb, &h, p);
}

INLINE int is_icmp(const struct packet *p)
{
	return p->protocol == (p->type == TYPE_IPV4 ? PROTOCOL_ICMP : PROTOCOL_ICMPV6);
}

INLINE int is_echo(const struct packet *p)
{
	return is_icmp(p) && p->icmp == (p->type == TYPE_IPV4 ? ECHO : ECHO6);
}

INLINE int is_echo_reply(const struct packet *p)
{
	return is_icmp(p) && p->icmp == (p->type == TYPE_IPV4 ? ECHO_REPLY : ECHO6_REPLY);
}

/* Destination unreachable, time exceeded and their like: they quote a packet. */
INLINE int is_icmp_error(const struct packet *p)
{
	if (!is_icmp(p))
		return 0;
	if (p->type == TYPE_IPV6)
		return p->icmp <= LAST_ERROR6;
	return p->icmp == 3 || p->icmp == 4 || p->icmp == 11 || p->icmp == 12;
}

INLINE int has_ports(__u32 protocol)
{
	return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP ||
	       protocol == PROTOCOL_DCCP || protocol == PROTOCOL_UDPLITE;
}

/*
 * Read ports, or type and identifier of ICMP. A first fragment that ends before them is malformed:
 * it hides them, and no honest stack cuts so short. A whole packet that ends before them has none;
 * what comes after its end in the frame is not the packet's.
 */
INLINE int parse_transport(struct __sk_buff *skb, struct packet *p)
{
	union {
		struct {
			__u16 source, destination;
		};
		struct {
			__u8 type, code;
			__u16 checksum, identifier, sequence;
		};
	} u = {};

	if (p->fragment == LATER)
		return PASS;
	if (p->transport + (is_icmp(p) ? 8 : 4) > p->end && !skb->gso_size)
		return p->fragment == FIRST ? MALFORMED : PASS;
	if (has_ports(p->protocol)) {
		if (bpf_skb_load_bytes(skb, p->transport, &u, 4))
			return MALFORMED;
		p->source_port = bpf_ntohs(u.source);
		p->destination_port = bpf_ntohs(u.destination);
	} else if (is_icmp(p)) {
		if (bpf_skb_load_bytes(skb, p->transport, &u, 8))
			return MALFORMED;
		p->icmp = u.type;
		if (is_echo(p) || is_echo_reply(p))
			p->source_port = p->destination_port = bpf_ntohs(u.identifier);
	}
	return PASS;
}

/* Take an IP packet apart; `p->type` and `p->bytes`, what there is of it, are known. */
INLINE int parse_ip(struct __sk_buff *skb, struct packet *p, enum direction direction)
{
	return p->type == TYPE_IPV4 ? parse_ipv4(skb, p, direction) : parse_ipv6(skb, p);
}

#endif
