// SPDX-License-Identifier: Apache-2.0
/*
 * The link layer: frames, and who may say what about link-layer addresses.
 */
#ifndef LARK_LINK_H
#define LARK_LINK_H

#include "rules.h"

#define SOURCE_MAC 6   /* offset in the link header */
#define TO_THIS_HOST 0 /* PACKET_HOST: the frame was addressed to the veth's MAC */

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

INLINE int same_mac(const __u16 *a, const __u16 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
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

#endif
