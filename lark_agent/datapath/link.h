// SPDX-License-Identifier: Apache-2.0
/*
 * The link layer: frames, and who may say what about link-layer addresses.
 *
 * A job says nothing but the truth about itself: ARP with its own MAC and address. On a layer-2
 * network (PLAN_LINK) neighbours find each other by themselves, so there also its neighbour discovery
 * passes (RFC 4861), checked to the last option, and, if its plan says so, what keeps its address:
 * DHCP's questions, router advertisements coming in. This link upkeep belongs to no class.
 *
 * Discovery behind extension headers or in fragments is refused (RFC 6980), so nothing hides. What
 * only the network may say is refused on every link (`is_forged`). A link-local address is good for
 * discovery alone: whatever else comes from one is spoofed, which is why no router advertisement can
 * leave, however it is wrapped.
 */
#ifndef LARK_LINK_H
#define LARK_LINK_H

#include "rules.h"

#define TO_THIS_HOST 0 /* PACKET_HOST: the frame was addressed to the veth's MAC */
#define NOT_UPKEEP (REASONS + 1)

#define IPV6_HOPS (LINK_HEADER + 7)
#define ROUTER_SOLICITATION 133
#define ROUTER_ADVERTISEMENT 134
#define NEIGHBOUR_SOLICITATION 135
#define NEIGHBOUR_ADVERTISEMENT 136
#define REDIRECT 137
#define REDIRECT4 5
#define ROUTER_ADVERTISEMENT4 9
#define IS_ROUTER 0x80000000 /* in the flags of a neighbour advertisement */
#define OPTION_SOURCE 1
#define OPTION_TARGET 2
#define OPTION_NONCE 14 /* RFC 7527 */

#define DHCP_SERVER 67
#define DHCP_CLIENT 68
#define DHCP6_CLIENT 546
#define DHCP6_SERVER 547

struct link {
	__u16 destination[3];
	__u16 source[3];
	__u16 type;
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

struct option {
	__u8 type;
	__u8 size; /* in units of 8 bytes */
	__u16 mac[3];
};

struct discovery {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u32 flags;
	__u32 target[4];
	struct option option;
};

INLINE int same_mac(const __u16 *a, const __u16 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

/* Broadcast or multicast. */
INLINE int is_group(const __u16 *mac)
{
	return *(const __u8 *)mac & 1;
}

INLINE int admit_arp(struct __sk_buff *skb, const struct plan *own, const struct link *link,
		     enum direction direction)
{
	struct arp arp;
	__u32 sender;

	if (direction == RECEIVED)
		return PASS;
	if (bpf_skb_load_bytes(skb, LINK_HEADER, &arp, sizeof(arp)))
		return MALFORMED;
	if (arp.hardware_type != bpf_htons(1) || arp.protocol_type != bpf_htons(TYPE_IPV4) ||
	    arp.hardware_size != 6 || arp.protocol_size != 4)
		return MALFORMED;
	if (!same_mac(link->source, own->mac) || !same_mac(arp.sender_mac, own->mac))
		return SPOOFED_MAC;
	if (own->flags & PLAN_SETUP)
		return PASS; /* the agent's DHCP client probes and announces what it was offered */
	__builtin_memcpy(&sender, arp.sender_address, sizeof(sender));
	return own->addr4 && sender == own->addr4 ? PASS : SPOOFED_ADDRESS;
}

/* What a job must not say on any link; after parse_transport. */
INLINE int is_forged(const struct packet *p)
{
	if (p->fragment == LATER)
		return 0;
	if (p->protocol == PROTOCOL_UDP)
		return p->source_port == (p->type == TYPE_IPV4 ? DHCP_SERVER : DHCP6_SERVER);
	if (!is_icmp(p))
		return 0;
	if (p->type == TYPE_IPV4)
		return p->icmp == REDIRECT4 || p->icmp == ROUTER_ADVERTISEMENT4;
	return p->icmp == ROUTER_ADVERTISEMENT || p->icmp == REDIRECT;
}

INLINE int is_link_multicast(const __u32 *address, __u32 third, __u32 mask, __u32 last)
{
	return address[0] == bpf_htonl(0xff020000) && !address[1] &&
	       address[2] == bpf_htonl(third) && (address[3] & bpf_htonl(mask)) == bpf_htonl(last);
}

#define IS_ALL_NODES(address) is_link_multicast(address, 0, 0xffffffff, 1)
#define IS_ALL_ROUTERS(address) is_link_multicast(address, 0, 0xffffffff, 2)
#define IS_SOLICITED(address) is_link_multicast(address, 1, 0xff000000, 0xff000000)
#define IS_DHCP6_SERVERS(address) is_link_multicast(address, 0, 0xffffffff, 0x10002)

INLINE int is_multicast6(const __u32 *address)
{
	return bpf_ntohl(address[0]) >> 24 == 0xff;
}

INLINE int is_unspecified(const __u32 *address)
{
	return !(address[0] | address[1] | address[2] | address[3]);
}

INLINE int is_own6(const struct plan *own, const struct packet *p, const __u32 *address)
{
	return is_own_address(own, p, address) ||
	       (own->link6[0] && same_address(address, own->link6));
}

INLINE int check_option(const struct plan *own, const struct option *option, __u8 wanted)
{
	if (option->size != 1)
		return MALFORMED;
	if (option->type == wanted)
		return same_mac(option->mac, own->mac) ? PASS : SPOOFED_MAC;
	return option->type == OPTION_NONCE ? PASS : MALFORMED;
}

INLINE int admit_router_solicitation(struct __sk_buff *skb, const struct plan *own,
				     const struct packet *p)
{
	struct option option;

	if (!(own->flags & PLAN_ROUTER) || !IS_ALL_ROUTERS(p->destination))
		return MARTIAN;
	if (!is_own6(own, p, p->source) && !is_unspecified(p->source))
		return SPOOFED_ADDRESS;
	if (p->end - p->transport == 8)
		return PASS;
	if (p->end - p->transport != 16 ||
	    bpf_skb_load_bytes(skb, p->transport + 8, &option, sizeof(option)))
		return MALFORMED;
	return check_option(own, &option, OPTION_SOURCE);
}

/* Solicitation or advertisement of a neighbour, from the job. */
INLINE int admit_neighbour(struct __sk_buff *skb, const struct plan *own, const struct packet *p)
{
	int asks = p->icmp == NEIGHBOUR_SOLICITATION, verdict;
	__u32 size = p->end - p->transport;
	struct discovery said;

	if (size == sizeof(said)) {
		if (bpf_skb_load_bytes(skb, p->transport, &said, sizeof(said)))
			return MALFORMED;
		verdict = check_option(own, &said.option, asks ? OPTION_SOURCE : OPTION_TARGET);
		if (verdict != PASS)
			return verdict;
	} else if (size != sizeof(said) - sizeof(said.option) ||
		   bpf_skb_load_bytes(skb, p->transport, &said, sizeof(said) - sizeof(said.option))) {
		return MALFORMED;
	}
	if (!asks && (said.flags & bpf_htonl(IS_ROUTER)))
		return FORGED_SERVICE;
	if (own->flags & PLAN_SETUP)
		return PASS; /* the kernel tries an address that the agent does not know yet */
	if (!is_own6(own, p, p->source) && !(asks && is_unspecified(p->source)))
		return SPOOFED_ADDRESS;
	/* what it says, and what it asks before it has an address, is about itself */
	if ((!asks || is_unspecified(p->source)) && !is_own6(own, p, said.target))
		return SPOOFED_ADDRESS;
	/* to one neighbour: only about that one, or it would carry data past the classes */
	if (is_multicast6(p->destination))
		return (asks ? IS_SOLICITED(p->destination) : IS_ALL_NODES(p->destination)) ? PASS
											   : MARTIAN;
	return !asks || same_address(said.target, p->destination) ? PASS : MARTIAN;
}

INLINE int hears_discovery(const struct plan *own, const struct packet *p)
{
	if (!is_own6(own, p, p->destination) && !IS_ALL_NODES(p->destination) &&
	    !IS_SOLICITED(p->destination) && !(own->flags & PLAN_SETUP))
		return MARTIAN;
	if (p->icmp == NEIGHBOUR_SOLICITATION || p->icmp == NEIGHBOUR_ADVERTISEMENT)
		return PASS;
	return p->icmp == ROUTER_ADVERTISEMENT && (own->flags & PLAN_ROUTER) ? PASS : MARTIAN;
}

INLINE int admit_discovery(struct __sk_buff *skb, const struct plan *own, const struct packet *p,
			   enum direction direction)
{
	__u8 hops;

	if (p->icmp < ROUTER_SOLICITATION || p->icmp > REDIRECT)
		return NOT_UPKEEP;
	if (p->fragment != WHOLE || p->transport != LINK_HEADER + sizeof(struct ipv6))
		return MALFORMED;
	if (bpf_skb_load_bytes(skb, IPV6_HOPS, &hops, sizeof(hops)) || hops != 255)
		return MALFORMED;
	if (direction == RECEIVED)
		return hears_discovery(own, p);
	return p->icmp == ROUTER_SOLICITATION ? admit_router_solicitation(skb, own, p)
					      : admit_neighbour(skb, own, p);
}

/* DHCP by broadcast; what is for one server or from one has the job's address, and its rules. */
INLINE int admit_dhcp(const struct plan *own, const struct packet *p, enum direction direction)
{
	const __u32 *local = direction == SENT ? p->source : p->destination;
	int version4 = p->type == TYPE_IPV4;
	__u32 client = version4 ? DHCP_CLIENT : DHCP6_CLIENT;
	__u32 server = version4 ? DHCP_SERVER : DHCP6_SERVER;

	if (p->protocol != PROTOCOL_UDP || p->fragment != WHOLE || !(own->flags & PLAN_DHCP))
		return NOT_UPKEEP;
	if (direction == SENT && (p->source_port != client || p->destination_port != server))
		return NOT_UPKEEP;
	if (direction == RECEIVED && (p->source_port != server || p->destination_port != client))
		return NOT_UPKEEP;
	if (version4) {
		if (direction == SENT && p->destination[0] != 0xffffffff)
			return NOT_UPKEEP;
		if (direction == RECEIVED && p->destination[0] == 0xffffffff)
			return PASS;
		if (own->flags & PLAN_SETUP)
			return PASS;
		return !local[0] || is_own_address(own, p, local) ? PASS : SPOOFED_ADDRESS;
	}
	if (direction == SENT && !IS_DHCP6_SERVERS(p->destination))
		return NOT_UPKEEP;
	return same_address(local, own->link6) ? PASS : SPOOFED_ADDRESS;
}

/* What keeps a job's address on a layer-2 link; NOT_UPKEEP for everything else. */
INLINE int admit_upkeep(struct __sk_buff *skb, const struct plan *own, const struct packet *p,
			enum direction direction)
{
	int verdict = NOT_UPKEEP;

	if (p->type == TYPE_IPV6 && p->protocol == PROTOCOL_ICMPV6 && p->fragment != LATER)
		verdict = admit_discovery(skb, own, p, direction);
	else if (p->protocol == PROTOCOL_UDP)
		verdict = admit_dhcp(own, p, direction);
	if (verdict == NOT_UPKEEP && (own->flags & PLAN_SETUP))
		return NO_PLAN;
	return verdict;
}

#endif
