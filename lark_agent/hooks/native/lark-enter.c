/* lark-enter: the wrapper's only privileged code (file capability cap_sys_admin, nothing else).
 *
 * Theory of operation. Any user can exec this with arguments, environment and descriptors of their
 * choosing. The one thing it must never do is enter a namespace that a user chose, so it takes the
 * namespace only from a socket whose other end the kernel says was opened by root under the
 * agent's name, and receives it itself. Stages, in order:
 *   1. check   the capability, the state from lark-run, the socket;
 *   2. receive the answer: one network namespace, or a refusal;
 *   3. enter   setns, a private mount namespace, its own /sys and /etc/resolv.conf; or nothing of
 *              that, where the agent says that the job stays in the worker's own network;
 *   4. drop    every capability, for good; from here on we are just the user;
 *   5. restore what "secure execution" took (see lark-run.c), and exec the job.
 * It allocates nothing and reads no file. A failure in any stage drops the capabilities before a
 * word is said, since the error file is the user's to name. */
#define _GNU_SOURCE
#include "answer.h"
#include "inside.h"
#include "last-words.h"
#include <linux/capability.h>
#include <sys/personality.h>
#include <sys/syscall.h>

/* Drop every capability. Inheritable and bounding set stay as the user had them, except root's:
 * those would give everything back at exec. The kernel empties the ambient set by itself. */
static bool drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct sets[2] = {0};
	bool root = getuid() == 0 || geteuid() == 0, bounded = true;

	for (unsigned long cap = 0; root && prctl(PR_CAPBSET_READ, cap) >= 0; cap++)
		bounded = prctl(PR_CAPBSET_DROP, cap) == 0; /* all can be dropped, or none */
	if (syscall(SYS_capget, &header, sets) == -1)
		return false;
	for (int i = 0; i < 2; i++) {
		sets[i].effective = sets[i].permitted = 0;
		sets[i].inheritable = root ? 0 : sets[i].inheritable;
	}
	return syscall(SYS_capset, &header, sets) == 0 && bounded;
}

/* Become the plain user before the last words. */
static void resign(int status, const char *line, size_t length)
{
	(void)drop_capabilities();
	give_back(status, line, length);
}

/* Take lark-run's numbers and the job's environment out of what we were started with. */
static void read_state(int argc, char **argv, uintmax_t *saved)
{
	const char *text = argc > 2 ? argv[1] : "";
	char *end;
	bool good = true;

	for (char **variable = environ; *variable && good; variable++) {
		good = **variable == GUARD; /* the last words look into what is left */
		*variable += good;
	}
	for (int i = 0; i < SAVED && good; i++, text = end + 1) {
		saved[i] = strtoumax(text, &end, 10);
		good = *text >= '0' && *text <= '9' && *end == (i + 1 < SAVED ? ',' : '\0');
	}
	if (!good || saved[SOCKET] > INT32_MAX)
		refuse("lark-enter is started by lark-run only; run lark-run COMMAND");
}

static void check_capability(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct sets[2] = {0};

	if (syscall(SYS_capget, &header, sets) == 0 && sets[0].effective & 1U << CAP_SYS_ADMIN)
		return;
	refuse("cannot enter a sandbox: lark-enter has no capability; `setcap cap_sys_admin+ep "
	    "lark-enter`, on a file system mounted without nosuid, and do not trace it");
}

/* Give back what "secure execution" took. All of it is the user's to set. */
static void restore(const uintmax_t *saved)
{
	struct rlimit stack;

	for (int fd = 0; fd <= STDERR_FILENO; fd++) /* glibc opened them */
		if (saved[CLOSED_STDIO] & 1U << fd)
			(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
	getrlimit(RLIMIT_STACK, &stack);
	stack.rlim_cur = saved[STACK_LIMIT];
	personality(saved[PERSONALITY]);
	if (setrlimit(RLIMIT_STACK, &stack) == -1
	    || prctl(PR_SET_PDEATHSIG, saved[DEATH_SIGNAL]) == -1)
		refuse("cannot restore stack limit and death signal: %m; run lark-run COMMAND");
	if (saved[DEATH_SIGNAL] && (uintmax_t)getppid() != saved[PARENT])
		kill(getpid(), (int)saved[DEATH_SIGNAL]); /* the parent died while none was set */
}

int main(int argc, char **argv)
{
	uintmax_t saved[SAVED];
	uint32_t flags = 0;

	read_state(argc, argv, saved);
	int agent = (int)saved[SOCKET];
	check_capability();
	check_agent(agent);
	(void)fcntl(agent, F_SETFD, FD_CLOEXEC);
	int namespace = receive_namespace(agent, &flags);
	bool stays = flags & STAY;
	if (is_here(namespace) != stays)
		refuse(stays ? "the agent granted another network than the one to stay in; " ADVICE
		    : "the agent granted the network that the job is already in; " ADVICE);
	if (flags & BARE)
		enter_bare(namespace);
	else if (!stays)
		enter(namespace, flags);
	if (!drop_capabilities())
		refuse("cannot drop the capabilities: %m; root needs CAP_SETPCAP to run a job");
	restore(saved);
	exec_job(argv + 2);
}
