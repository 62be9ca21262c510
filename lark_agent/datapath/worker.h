// SPDX-License-Identifier: Apache-2.0
/*
 * The worker itself: a job reaches the services that the site lists and its plan allows, and no
 * other port, whatever address of the worker it uses.
 *
 * What comes from the worker passes if it is an answer of such a service, or if the plan lets others
 * in and this is for a port that it opens; then the job's answers pass as well. Later fragments to
 * the worker show no port, so they are for no service, and none needs them; from it they pass, for
 * without the first they are nothing.
 *
 * Beside the site's services there are those of the job's own launcher, which are no other job's. They
 * listen on the worker's loopback, where no packet comes by itself: what is for one is marked, and
 * the firewall sends on what has the mark and nothing else. They have one address, the gateway's, so
 * that no other program of the worker which has the port on another address is reached.
 */
#ifndef LARK_WORKER_H
#define LARK_WORKER_H

#include "flows.h"

INLINE int is_allowed_service(const struct plan *own, const struct packet *p, __u32 port)
{
	struct service key = {.protocol = p->protocol, .port = port};
	__u32 *number;

	if (!has_ports(p->protocol))
		key.port = 0;
	number = find_service(&key);
	return number && *number < 32 && (own->services >> *number & 1);
}

/* A function of its own, because the programs' stack has no room for one more key. */
SUBPROGRAM int is_of_launcher(__u32 slot, __u32 protocol, __u32 port, __u32 address)
{
	struct open_port key = {
		.slot = slot, .protocol = protocol | PORT_OF_LAUNCHER, .port = port};
	__u32 *gateway = find_open_port(&key);

	return gateway && *gateway == address;
}

INLINE int admit_worker(struct __sk_buff *skb, __u32 slot, const struct plan *own,
			const struct packet *p, enum direction direction)
{
	struct flow flow = {};

	name_flow(&flow, slot, own, p, direction);
	flow.protocol |= FLOW_WORKER;
	if (direction == SENT) {
		/* of ICMP only questions: errors could end what the worker does with others */
		if (!is_icmp(p) || is_echo(p))
			if (is_allowed_service(own, p, p->destination_port))
				return PASS;
		if (p->type == TYPE_IPV4 &&
		    is_of_launcher(slot, p->protocol, p->destination_port, p->destination[0])) {
			skb->mark = TO_LOOPBACK;
			return PASS;
		}
		if (is_icmp(p) && !is_echo_reply(p))
			return SERVICE_DENIED;
		return know_flow(&flow, 1) ? PASS : SERVICE_DENIED;
	}
	if (p->fragment == LATER || is_icmp_error(p))
		return PASS;
	if (!is_icmp(p) || is_echo_reply(p))
		if (is_allowed_service(own, p, p->source_port))
			return PASS;
	if (p->type == TYPE_IPV4 &&
	    is_of_launcher(slot, p->protocol, p->source_port, p->source[0]))
		return PASS;
	if (!is_open(slot, own, p))
		return INBOUND_DENIED;
	note_flow(&flow);
	return PASS;
}

#endif
