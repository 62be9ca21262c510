/* What slurmctld knows of a job, and what slurmdbd is to remember of it.
 *
 * A task's environment is its user's word. What a site's policy decides by, the account, partition
 * and the bandwidth that the scheduler gave away as GRES, is therefore asked of slurmctld: once a
 * job and node, by its first step there; the answer is kept in a file of root's for later steps.
 * Slurm's own types are used as the headers have them, so the plugin is compiled for each major
 * release of Slurm, as every SPANK plugin must be (Slurm refuses to load any other). */
#pragma once
#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>
#include <slurm/slurmdb.h>
#include <stdint.h>

#define FACTS "/run/lark/slurm"
enum { WORD_MAX = 128, COMMENT_MAX = 4096, BUSY_ATTEMPTS = 12 };

extern slurm_conf_t slurm_conf; /* of libslurm, which slurmstepd and slurmd have loaded */

/* Everything is text or a number of ours: the file is written and read by the same plugin. */
struct facts {
	uint32_t size, job, restarts, uid, nodes, array_job, array_task;
	uint64_t bandwidth; /* Mbit/s that the scheduler gave the job on this node; 0: none */
	char account[WORD_MAX], partition[WORD_MAX], qos[WORD_MAX], reservation[WORD_MAX];
};

static void copy_word(char *to, const char *word)
{
	(void)snprintf(to, WORD_MAX, "%s", word ? word : "");
}

/* Take the count of one GRES out of "gpu(IDX:0),bandwidth(CNT:100)" or "bandwidth:100". */
static uint64_t gres_count(const char *list, const char *name)
{
	const size_t length = strlen(name);

	for (const char *item = list; item && *item; item = *item ? item + 1 : item) {
		if (strncmp(item, "gres:", 5) == 0)
			item += 5;
		const char *end = item + strcspn(item, ",");
		if (strncmp(item, name, length) == 0 && strchr("(:,", item[length])) {
			const char *count = strstr(item, "CNT:");
			count = count && count < end ? count + 4 : item + length + 1;
			return item + length < end ? strtoull(count, NULL, 10) : 1;
		}
		item = end;
	}
	return 0;
}

/* Find this node's share of what the scheduler gave the job. */
static uint64_t given_here(const job_info_t *job, const char *gres)
{
	const char *node = getenv("SLURMD_NODENAME");
	uint32_t at = 0;

	if (job->gres_detail_cnt > 1) { /* one entry for each node, in the order of the list */
		hostlist_t nodes = slurm_hostlist_create(job->nodes);
		int found = node && nodes ? slurm_hostlist_find(nodes, node) : -1;
		if (nodes)
			slurm_hostlist_destroy(nodes);
		if (found < 0)
			refuse("cannot tell which of %s this node is; is slurmd of this release?", job->nodes);
		at = (uint32_t)found;
	}
	return at < job->gres_detail_cnt ? gres_count(job->gres_detail_str[at], gres) : 0;
}

/* Ask slurmctld. */
static void ask_controller(struct facts *facts, const char *gres)
{
	job_info_msg_t *answer = NULL;

	if (slurm_load_job(&answer, facts->job, SHOW_DETAIL) != 0 || !answer->record_count)
		refuse("cannot ask slurmctld about job %u: %s; is it running?", facts->job,
		    slurm_strerror(slurm_get_errno()));
	const job_info_t *job = answer->job_array;
	for (uint32_t i = 0; i < answer->record_count; i++) /* a heterogeneous job answers for all */
		if (answer->job_array[i].job_id == facts->job)
			job = &answer->job_array[i];
	facts->uid = job->user_id;
	facts->nodes = job->num_nodes;
	facts->array_job = job->array_job_id;
	facts->array_task = job->array_task_id;
	facts->bandwidth = *gres ? given_here(job, gres) : 0;
	copy_word(facts->account, job->account);
	copy_word(facts->partition, job->partition);
	copy_word(facts->qos, job->qos);
	copy_word(facts->reservation, job->resv_name);
	slurm_free_job_info_msg(answer);
}

static void facts_path(char *path, size_t size, uint32_t job)
{
	(void)snprintf(path, size, FACTS "/%u", job);
}

/* Read what an earlier step learned; false if there is nothing of this job. */
static bool remember(struct facts *facts, uint32_t job)
{
	char path[64];

	facts_path(path, sizeof path, job);
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	ssize_t got = fd == -1 ? 0 : read(fd, facts, sizeof *facts);
	if (fd != -1)
		close(fd);
	return got == sizeof *facts && facts->size == sizeof *facts && facts->job == job;
}

/* Learn who the job is; only its first step on this node asks slurmctld. */
static void learn(struct facts *facts, uint32_t job, uint32_t restarts, const char *gres)
{
	char path[64], fresh[80];

	if (remember(facts, job) && facts->restarts == restarts)
		return;
	*facts = (struct facts){.size = sizeof *facts, .job = job, .restarts = restarts};
	ask_controller(facts, gres);
	(void)mkdir("/run/lark", 0755);
	(void)mkdir(FACTS, 0700);
	facts_path(path, sizeof path, job);
	(void)snprintf(fresh, sizeof fresh, "%s.%d", path, (int)getpid());
	int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd == -1)
		return; /* the next step asks again */
	if (write(fd, facts, sizeof *facts) != sizeof *facts || rename(fresh, path) == -1)
		(void)unlink(fresh);
	close(fd);
}

static void forget(uint32_t job)
{
	char path[64];

	facts_path(path, sizeof path, job);
	(void)unlink(path);
}
