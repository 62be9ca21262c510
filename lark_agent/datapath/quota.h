// SPDX-License-Identifier: Apache-2.0
/*
 * Quotas: bytes that one or several jobs may exchange, charged packet by packet.
 *
 * A quota that cuts is never exceeded, on any number of CPUs: a packet is charged first and passes
 * if the sum is still within the limit; else the charge is taken back. Every packet that passed is in
 * the sum that a later one sees, so the passed ones cannot come to more than the limit. Two packets
 * at the same instant may both be refused at the very end where one would have fit: the error is on
 * the safe side and less than a packet a CPU.
 *
 * Once used up, a quota stays so until the agent writes it again (`round`), whether smaller packets
 * would still fit or not: what a job sees is a cut, not a sieve.
 */
#ifndef LARK_QUOTA_H
#define LARK_QUOTA_H

#include "rules.h"

INLINE int is_charged(const struct quota_use *use, enum direction direction, __u32 row)
{
	return (use->classes >> row & 1) && (use->directions >> direction & 1);
}

INLINE void exceed(__u32 slot, __u32 index, const struct quota *quota, struct quota_used *used)
{
	if (used->exceeded == quota->round)
		return;
	used->exceeded = quota->round;
	report(QUOTA_EXCEEDED, slot, index);
}

/* Whether the quotas let a packet through, before anything is charged. */
INLINE int check_quotas(__u32 slot, const struct plan *own, __u64 bytes,
			enum direction direction, __u32 row)
{
#pragma clang loop unroll(full)
	for (int i = 0; i < QUOTAS; i++) {
		const struct quota_use *use = &own->quotas[i];
		__u32 index = use->quota - 1;
		struct quota_used *used;
		struct quota *quota;

		if (!use->quota)
			return PASS;
		quota = find_quota(&index);
		used = find_quota_used(&index);
		if (!quota || !used)
			return QUOTA_DENIED;
		if (quota->action < CUT_CLASS)
			continue;
		if (quota->action == CUT_ALL && used->exceeded == quota->round)
			return QUOTA_DENIED;
		if (!is_charged(use, direction, row))
			continue;
		if (used->exceeded == quota->round)
			return QUOTA_DENIED;
		if (used->bytes + bytes > quota->limit) {
			exceed(slot, index, quota, used);
			return QUOTA_DENIED;
		}
	}
	return PASS;
}

/* Charge a packet; returns how many quotas have been charged until one was full. */
INLINE int charge_each(__u32 slot, const struct plan *own, __u64 bytes,
		       enum direction direction, __u32 row, int *full)
{
#pragma clang loop unroll(full)
	for (int i = 0; i < QUOTAS; i++) {
		const struct quota_use *use = &own->quotas[i];
		__u32 index = use->quota - 1;
		struct quota_used *used;
		struct quota *quota;

		if (!use->quota)
			return i;
		if (!is_charged(use, direction, row))
			continue;
		quota = find_quota(&index);
		used = find_quota_used(&index);
		if (!quota || !used)
			continue;
		__sync_fetch_and_add(&used->bytes, bytes);
		if (*(volatile __u64 *)&used->bytes <= quota->limit)
			continue;
		exceed(slot, index, quota, used);
		if (quota->action >= CUT_CLASS) {
			*full = 1;
			return i + 1;
		}
	}
	return QUOTAS;
}

INLINE void take_back(const struct plan *own, __u64 bytes, enum direction direction, __u32 row,
		      int charged)
{
#pragma clang loop unroll(full)
	for (int i = 0; i < QUOTAS; i++) {
		const struct quota_use *use = &own->quotas[i];
		__u32 index = use->quota - 1;
		struct quota_used *used;

		if (i >= charged)
			return;
		used = find_quota_used(&index);
		if (used && is_charged(use, direction, row))
			__sync_fetch_and_add(&used->bytes, -bytes);
	}
}

/*
 * Charge a packet that may pass otherwise. Loops over a plan's quotas multiply the ways through the
 * program, and the verifier walks each way to the end for every way that leads here: two seconds of
 * it at each start. As a function of its own (SUBPROGRAM) it is walked once, whoever calls.
 */
SUBPROGRAM int charge(__u32 slot, enum direction direction, __u32 row, __u64 bytes)
{
	struct plan *own = find_plan(&slot);
	int full = 0, charged;

	if (!own || check_quotas(slot, own, bytes, direction, row) != PASS)
		return QUOTA_DENIED;
	charged = charge_each(slot, own, bytes, direction, row, &full);
	if (!full)
		return PASS;
	take_back(own, bytes, direction, row, charged);
	return QUOTA_DENIED;
}

#endif
