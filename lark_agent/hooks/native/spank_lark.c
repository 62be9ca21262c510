/* spank_lark.so: puts the tasks of Slurm's jobs into network sandboxes.
 *
 * Theory of operation. Slurm loads this where plugstack.conf names it:
 *   srun, sbatch, salloc  offer --network-profile and --bandwidth and check their form;
 *   slurmstepd            once a step learns who the job is (slurm-job.h); then each task, forked
 *                         and still root, asks the agent for the job's sandbox and enters it;
 *   slurmd's prolog       makes sure that there is an agent, or the node is drained and the job
 *                         goes elsewhere: a node without one would fail job after job;
 *   slurmd's epilog       tells the agent that the job is over on this node, and has slurmdbd keep
 *                         the usage that it answers in the job's admin comment.
 * The agent gives all tasks of all steps of a job the same sandbox, held open between steps. Who
 * the job is are Slurm's words, not the environment's, which is the user's.
 *
 * A task that cannot have its sandbox does not run: it says why on the user's stderr and fails,
 * whether plugstack.conf says "required" or not. The epilog never fails: that would drain the
 * node, and the agent lets go of the job by itself after a while. */
#define _GNU_SOURCE
#include "answer.h"
#include "client.h"
#include "inside.h"
#include "slurm-job.h"
#include "slurm-usage.h"
#include <setjmp.h>
#include <slurm/spank.h>

#define EXPORT __attribute__((visibility("default")))
EXPORT extern const char plugin_name[], plugin_type[];
EXPORT extern const unsigned int plugin_version;
const char plugin_name[] = "lark", plugin_type[] = "spank";
const unsigned int plugin_version = SLURM_VERSION_NUMBER;
EXPORT spank_f slurm_spank_init, slurm_spank_init_post_opt, slurm_spank_job_prolog,
	slurm_spank_task_init_privileged, slurm_spank_job_epilog;
enum { PATIENCE_SECONDS = 20 }; /* for an agent that is being restarted */

static jmp_buf given_up;
static char why_not[1024]; /* what a step found out before it had tasks to tell it to */
static struct facts job_facts;
static char asked_profile[WORD_MAX], asked_bandwidth[WORD_MAX];

/* Keep the line for the user and return to where the work began. */
static void die(int status, const char *format, ...)
{
	va_list values;

	va_start(values, format);
	(void)vsnprintf(why_not, sizeof why_not, format, values);
	va_end(values);
	for (char *c = why_not; *c; c++) /* others' words must not steer the reader's terminal */
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = ' ';
	longjmp(given_up, status);
}

/* Take an option's value; a word of few characters, since it becomes a literal in the job's ad. */
static int take_option(int which, const char *value, int remote)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
		"0123456789 ./,_-";
	const char *name = which ? "--bandwidth" : "--network-profile";

	(void)remote;
	if (!value || !*value || strlen(value) >= WORD_MAX || value[strspn(value, allowed)]) {
		slurm_error("lark: %s takes a word of letters, digits and ./,_- below %d bytes", name,
		    WORD_MAX);
		return -1;
	}
	copy_word(which ? asked_bandwidth : asked_profile, value);
	return 0;
}

static struct spank_option options[] = {
	{"network-profile", "NAME", "Ask for a network profile of the site", 1, 0, take_option},
	{"bandwidth", "RATE", "Ask for guaranteed bandwidth: Mbit/s, or as in \"2 Gbit/s\"", 1, 1,
		take_option},
};

int slurm_spank_init(spank_t spank, int count, char **arguments)
{
	const spank_context_t where = spank_context();

	(void)count, (void)arguments;
	if (where != S_CTX_LOCAL && where != S_CTX_ALLOCATOR && where != S_CTX_REMOTE)
		return 0;
	for (size_t i = 0; i < sizeof options / sizeof *options; i++)
		if (spank_option_register(spank, &options[i]) != ESPANK_SUCCESS)
			return -1;
	return 0;
}

/* Read "gres=NAME" from the plugin's line in plugstack.conf. */
static const char *gres_name(int count, char **arguments)
{
	for (int i = 0; i < count; i++)
		if (strncmp(arguments[i], "gres=", 5) == 0)
			return arguments[i] + 5;
	return "";
}

static uint32_t item(spank_t spank, spank_item_t which)
{
	uint32_t value = 0;

	return spank_get_item(spank, which, &value) == ESPANK_SUCCESS ? value : 0;
}

/* In slurmd's prolog, once a job and node. */
int slurm_spank_job_prolog(spank_t spank, int count, char **arguments)
{
	(void)spank, (void)count, (void)arguments;
	if (setjmp(given_up) == 0) {
		int agent = connect_agent(PATIENCE_SECONDS);
		check_agent(agent);
		close(agent);
		return 0;
	}
	slurm_error("lark: %s", why_not);
	return -1;
}

/* In slurmstepd, before there are tasks: what fails here is told by each of them. */
int slurm_spank_init_post_opt(spank_t spank, int count, char **arguments)
{
	if (spank_context() != S_CTX_REMOTE)
		return 0;
	if (setjmp(given_up) == 0)
		learn(&job_facts, item(spank, S_JOB_ID), item(spank, S_SLURM_RESTART_COUNT),
		    gres_name(count, arguments));
	return 0;
}

static void add_text(const char *name, const char *value)
{
	if (*value)
		add(VARIABLE, name, value, strlen(value));
}

static void add_number(const char *name, uint32_t value)
{
	char text[16];

	(void)snprintf(text, sizeof text, "%u", value);
	add_text(name, text);
}

/* Say which job it is: what the agent knows it by from its first task to its end. */
static void add_job(char purpose, uint32_t job, uint32_t uid)
{
	const uint8_t user[] = {uid & 0xff, uid >> 8 & 0xff, uid >> 16 & 0xff, (uint8_t)(uid >> 24)};

	add(PURPOSE, NULL, &purpose, 1);
	add(USER, NULL, (const char *)user, sizeof user);
	add_number("SLURM_JOB_ID", job);
	add_text("SLURM_CLUSTER_NAME", slurm_conf.cluster_name ? slurm_conf.cluster_name : "");
}

/* Add what rules of the site may look at, as the ad of the job and of its share of the node. Of the
 * job's words only --bandwidth is its user's, and that has nothing in it that ends a literal. */
static void add_ads(const struct facts *facts)
{
	char text[8 * WORD_MAX];
	const struct { const char *name, *value; } words[] = {{"Partition", facts->partition},
		{"QOS", facts->qos}, {"Reservation", facts->reservation},
		{"RequestBandwidth", asked_bandwidth}};
	size_t size = 0;

	for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
		const char *value = words[i].value;
		bool number = value == asked_bandwidth && !value[strspn(value, "0123456789.")];
		const char *quote = number ? "" : "\"";
		if (*value && !strpbrk(value, "\"\\\n"))
			size += (size_t)snprintf(text + size, sizeof text - size, "%s = %s%s%s\n",
			    words[i].name, quote, value, quote);
	}
	add_copy("job ad", "j", text, size);
	if (facts->bandwidth) {
		size = (size_t)snprintf(text, sizeof text, "Bandwidth = %ju\n",
		    (uintmax_t)facts->bandwidth);
		add_copy("machine ad", "m", text, size);
	}
}

/* Get into the job's sandbox, whichever of its tasks we are. */
static void join(spank_t spank, const struct facts *facts)
{
	const uint32_t uid = item(spank, S_JOB_UID);
	char **command = NULL;
	int words = 0;
	uint32_t flags = 0;

	if (uid != facts->uid)
		refuse("slurmctld says that job %u is user %u's, not %u's; " ADVICE, facts->job,
		    facts->uid, uid);
	add_job('r', facts->job, uid);
	if (spank_get_item(spank, S_JOB_ARGV, &words, &command) == ESPANK_SUCCESS && words > 0)
		add(COMMAND, NULL, command[0], strnlen(command[0], VALUE_MAX));
	if (facts->array_job) {
		add_number("SLURM_ARRAY_JOB_ID", facts->array_job);
		add_number("SLURM_ARRAY_TASK_ID", facts->array_task);
	}
	add_text("SLURM_JOB_ACCOUNT", facts->account);
	add_number("SLURM_STEP_ID", item(spank, S_JOB_STEPID));
	add_number("SLURM_PROCID", item(spank, S_TASK_GLOBAL_ID));
	if (*asked_profile)
		add(OPTION, "profile", asked_profile, strlen(asked_profile));
	add_ads(facts);
	int agent = ask_agent(PATIENCE_SECONDS);
	check_agent(agent);
	(void)fcntl(agent, F_SETFD, FD_CLOEXEC);
	int namespace = receive_namespace(agent, &flags);
	bool stays = flags & STAY;
	if (is_here(namespace) != stays)
		refuse("the agent granted another network than it says; " ADVICE);
	if (!stays)
		enter(namespace, flags);
	close(namespace);
}

/* In each task, forked and still root. Slurm would start the task of a plugin that is "optional"
 * whatever we return; so the task ends here. */
int slurm_spank_task_init_privileged(spank_t spank, int count, char **arguments)
{
	(void)count, (void)arguments;
	if (!*why_not && setjmp(given_up) == 0) {
		join(spank, &job_facts);
		return 0;
	}
	slurm_error("lark: %s", why_not);
	_exit(NO_SANDBOX);
}

/* Wait for the agent's last word on the job: its usage, empty if it never had a sandbox here. */
static void receive_usage(int agent, char *usage)
{
	char reply[REPLY_MAX + 1] = {0};
	struct iovec data = {reply, REPLY_MAX};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};

	if (receive_answer(agent, &message, reply) < 12)
		refuse("the agent's answer is not of this version; restart lark-agent");
	(void)strcpy(usage, reply + 12);
}

/* In slurmd's epilog, once a job and node. */
int slurm_spank_job_epilog(spank_t spank, int count, char **arguments)
{
	const uint32_t job = item(spank, S_JOB_ID);
	char usage[REPLY_MAX + 1] = "";

	(void)count, (void)arguments;
	if (!remember(&job_facts, job))
		job_facts.nodes = 0; /* not known here */
	forget(job);
	if (setjmp(given_up) == 0) {
		add_job('e', job, item(spank, S_JOB_UID));
		int agent = ask_agent(PATIENCE_SECONDS);
		check_agent(agent);
		receive_usage(agent, usage);
		if (*usage)
			keep_usage(job, job_facts.nodes, usage);
	} else
		slurm_error("lark: job %u: %s", job, why_not);
	return 0;
}
