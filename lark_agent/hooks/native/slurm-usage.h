/* The usage of a job in its admin comment, where sacct shows it.
 *
 * slurmctld changes no comment of a job that has ended, so it is slurmdbd that is asked, as
 * `sacctmgr modify job` does; sites without slurmdbd have `lark jobs`. Each node adds its own part,
 * "lark WORKER: sent=BYTES received=BYTES", to what is there. slurmdbd has no "append", and nodes
 * of a job end together: who read before and writes after us takes our part away without knowing.
 * So where there are other nodes, ours must still be there some time after it was seen first. */
#pragma once
#include "slurm-job.h"
#include <time.h>

/* Wait for longer than others take between reading and writing, and on each node another time. */
static void pause_apart(void)
{
	struct timespec now, wait = {.tv_sec = 1};

	clock_gettime(CLOCK_MONOTONIC, &now);
	wait.tv_nsec = now.tv_nsec % 999999999;
	(void)nanosleep(&wait, NULL);
}

/* Read the comment of the job's last run; false if slurmdbd does not know the job (yet). */
static bool read_comment(void *database, slurmdb_job_cond_t *which, const char *usage,
    char *comment)
{
	List found = slurmdb_jobs_get(database, which);
	slurmdb_job_rec_t *job, *last = NULL;

	if (!found)
		refuse("slurmdbd does not answer (%s): %s", usage, slurm_strerror(slurm_get_errno()));
	while ((job = slurm_list_pop(found))) /* not freed: the epilog's process ends soon */
		if (!last || job->submit > last->submit)
			last = job;
	if (last)
		(void)snprintf(comment, COMMENT_MAX, "%s", last->admin_comment ? last->admin_comment : "");
	slurm_list_destroy(found);
	return last != NULL;
}

/* Make sure that the usage is in the comment; false if it is to be tried again. */
static bool add_usage(void *database, slurmdb_job_cond_t *which, const char *usage)
{
	char comment[COMMENT_MAX] = "", after[COMMENT_MAX];
	slurmdb_job_rec_t change = {.admin_comment = after, .derived_ec = NO_VAL,
		.array_task_id = NO_VAL, .state = NO_VAL, .requid = NO_VAL};

	if (!read_comment(database, which, usage, comment))
		return false;
	if (strstr(comment, usage))
		return true;
	const char *between = *comment ? "; " : "";
	if (strlen(comment) + strlen(between) + strlen(usage) >= sizeof after)
		refuse("the admin comment is full; ask `lark jobs` on the collector");
	(void)stpcpy(stpcpy(stpcpy(after, comment), between), usage);
	List changed = slurmdb_job_modify(database, which, &change);
	if (changed)
		slurm_list_destroy(changed);
	(void)slurmdb_connection_commit(database, true);
	return false; /* is it there, or did another node's word replace it? */
}

/* Add the usage to the job's admin comment; refuses if slurmdbd cannot be brought to keep it. */
static void keep_usage(uint32_t job, uint32_t nodes, const char *usage)
{
	const char *storage = slurm_conf.accounting_storage_type;
	slurm_selected_step_t step = {.array_task_id = NO_VAL, .het_job_offset = NO_VAL,
		.step_id = {.job_id = job, .step_id = NO_VAL, .step_het_comp = NO_VAL}};
	uint16_t flags = 0;

	if (!storage || !strstr(storage, "slurmdbd"))
		return;
	void *database = slurmdb_connection_get(&flags);
	List steps = slurm_list_create(NULL), clusters = slurm_list_create(NULL);
	slurmdb_job_cond_t which = {.step_list = steps, .cluster_list = clusters,
		.db_flags = SLURMDB_JOB_FLAG_NOTSET,
		.flags = JOBCOND_FLAG_NO_DEFAULT_USAGE | JOBCOND_FLAG_NO_TRUNC | JOBCOND_FLAG_NO_STEP};
	int seen = 0;
	slurm_list_append(steps, &step);
	slurm_list_append(clusters, slurm_conf.cluster_name);
	for (int i = 0; database && i < BUSY_ATTEMPTS && seen < (nodes == 1 ? 1 : 2); i++) {
		if (i > 1 || seen)
			pause_apart();
		seen = add_usage(database, &which, usage) ? seen + 1 : 0;
	}
	slurm_list_destroy(steps);
	slurm_list_destroy(clusters);
	if (database)
		(void)slurmdb_connection_close(&database);
	if (!seen)
		refuse("slurmdbd did not keep its usage (%s): %s", usage,
		    slurm_strerror(slurm_get_errno()));
}
