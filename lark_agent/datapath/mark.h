// SPDX-License-Identifier: Apache-2.0
/*
 * DSCP and flow label: every packet leaves with the plan's, whatever the job wrote.
 *
 * The two bits of ECN stay the transport's. Only a header that differs is written, because that
 * costs more than everything else here: the kernel must copy a header that a socket still holds. The
 * checksum of IPv4 is corrected by the difference; those of TCP and UDP cover neither field.
 */
#ifndef LARK_MARK_H
#define LARK_MARK_H

#include "packet.h"

#define IPV4_CHECKSUM (LINK_HEADER + 10)

INLINE int mark(struct __sk_buff *skb, const struct plan *own, const struct packet *p)
{
	__u32 word = bpf_ntohl(p->mark), wanted;

	if (p->type == TYPE_IPV4) {
		__u16 before = bpf_htons(word >> 16), after;

		wanted = (word & 0xff03ffff) | (own->dscp & 63) << 18;
		if (wanted == word)
			return PASS;
		after = bpf_htons(wanted >> 16);
		if (bpf_l3_csum_replace(skb, IPV4_CHECKSUM, before, after, sizeof(after)) ||
		    bpf_skb_store_bytes(skb, LINK_HEADER, &after, sizeof(after), 0))
			return MALFORMED;
		return PASS;
	}
	wanted = (word & 0xf0300000) | (own->dscp & 63) << 22 | (own->flow_label & 0xfffff);
	if (wanted == word)
		return PASS;
	wanted = bpf_htonl(wanted);
	if (bpf_skb_store_bytes(skb, LINK_HEADER, &wanted, sizeof(wanted), BPF_F_RECOMPUTE_CSUM))
		return MALFORMED;
	return PASS;
}

#endif
