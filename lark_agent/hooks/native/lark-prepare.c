/* lark-prepare: HTCondor's prepare hook; it reserves the sandbox of a job that is about to start.
 *
 * Theory of operation. The starter runs this as the job's user (HOOK_PREPARE_JOB), its own child,
 * with the job's ad on stdin, and reads what it prints. It asks the agent for the sandbox of the
 * job of that starter; the agent decides about the job now, and keeps sandbox and bandwidth for the
 * lark-run that the same starter execs next. Nothing is handed to us, there is nothing to enter.
 *
 * Why a hook when lark-run asks by itself: because here a refusal can be told. HTCondor puts the
 * job on hold with our words if the code is under 300, which is for what will be refused on any
 * worker (the policy, the job's own words), and looks for another worker if it is 300 or more. So
 * the code is the agent's status (docs/run-socket.md), 300 higher if the fault is the worker's.
 * A job whose hook did not run is none the freer: lark-run asks then. The exit status is 0
 * whenever the starter could be told; another one would put the job on hold. */
#define _GNU_SOURCE
#include "answer.h"
#include "client.h"
#include "hook.h"

#define USAGE "usage: HTCondor runs this as its prepare hook, with the job's ad on stdin"
enum { PATIENCE_SECONDS = 5 }; /* for an agent that is restarted */
static uint8_t reply[REPLY_MAX + 1];

/* Tell why there is no sandbox: the agent's words if it answered, else ours. */
static void die(int status, const char *format, ...)
{
	char text[1024];
	va_list values;

	va_start(values, format);
	(void)vsnprintf(text, sizeof text, format, values);
	va_end(values);
	status = memcmp(reply, "LARK\1", 6) == 0 ? reply[6] | reply[7] << 8 : GRANTED;
	if (status == GRANTED)
		say(WORKER, text);
	say(status <= POLICY ? status : WORKER + status, (char *)reply + 8);
}

int main(int argc, char **argv)
{
	const char *slot = getenv("_CONDOR_SLOT"), *machine = getenv("_CONDOR_MACHINE_AD");
	struct iovec data = {reply, REPLY_MAX};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};

	forbid_tracing();
	if (argc > 1)
		return fprintf(stderr, "%s: takes no argument; " USAGE "\n", argv[0]) > 0 ? 2 : 1;
	add(PURPOSE, NULL, "p", 1);
	request[6] = needs_own() ? OWN_NAMESPACE : 0;
	if (slot)
		add(VARIABLE, "_CONDOR_SLOT", slot, strlen(slot));
	size_t size = 0;
	const char *ad = read_ad(STDIN_FILENO, "the job's ad on stdin", &size);
	hold_with_company(ad);
	add_copy("the job's ad", "j", ad, size);
	int fd = machine ? open(machine, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY) : -1;
	if (fd != -1)
		add_ad(fd, "the machine's ad", "m");
	int agent = ask_agent(PATIENCE_SECONDS);
	check_agent(agent);
	(void)receive_answer(agent, &message, (char *)reply);
	return 0;
}
