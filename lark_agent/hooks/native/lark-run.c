/* lark-run: start a job in a network sandbox.
 *
 * Theory of operation. The batch system execs this as the job's user, without privilege. It sends
 * the agent one datagram with what names the job (argv[0], a few variables, sealed copies of the
 * ads), then execs lark-enter, the file beside it that has the file capability, which receives the
 * answer, enters the sandbox and execs the job. The pid stays the same throughout.
 *
 * Why two programs: exec of a file with a capability is "secure": the kernel lowers the soft stack
 * limit to 8 MiB and forgets parent-death signal and personality bits; glibc removes TMPDIR, LD_*
 * and more from the environment and opens closed standard descriptors. Only a program without the
 * capability sees these as they were: it saves them, lark-enter restores them. The environment
 * travels as environment: arguments are readable by everybody while the job waits.
 *
 * Where the file capability would have no effect lark-run execs the job itself, in a namespace that
 * it made (own.h). */
#define _GNU_SOURCE
#include "client.h"
#include "environment.h"
#include "last-words.h"
#include "own.h"
#include <sys/personality.h>

#define VERSION "0.1.0"
#define USAGE "usage: lark-run [--profile NAME] [--job-id ID] [--group NAME] [--] COMMAND [ARG...]"

static void resign(int status, const char *line, size_t length)
{
	give_back(status, line, length);
}

/* Put /dev/null on closed standard descriptors, so that nothing we open lands there; say which. */
static unsigned hold_stdio(void)
{
	unsigned closed = 0;

	for (int fd = 0; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) == -1) {
			closed |= 1U << fd;
			if (open("/dev/null", O_RDWR | O_CLOEXEC) != fd)
				refuse("cannot open /dev/null: %m; " ADVICE);
		}
	return closed;
}

/* Read the options before the command; return the job's argv. */
static char **read_options(char **argv)
{
	static const char *const known[] = {"--profile", "--job-id", "--group", NULL};

	for (; argv[0] && argv[0][0] == '-'; argv += 2) {
		const char *const *option = known;
		if (strcmp(argv[0], "--") == 0) {
			argv++;
			break;
		}
		if (strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "--version") == 0)
			exit(puts(argv[0][2] == 'h' ? USAGE : "lark-run " VERSION) == EOF);
		while (*option && strcmp(argv[0], *option) != 0)
			option++;
		if (!*option || !argv[1])
			refuse("%s %s; " USAGE, argv[0], *option ? "needs a value" : "is no option");
		add(OPTION, *option + 2, argv[1], strlen(argv[1]));
	}
	if (!argv[0])
		refuse("no command; " USAGE);
	return argv;
}

/* Add the ad that the variable names, nothing if it is unset. It is read here, as the user: the
 * file system may be one that a user serves. */
static void add_named_ad(const char *variable, const char *kind)
{
	const char *path = getenv(variable);
	char name[VALUE_MAX];
	struct stat is;

	if (!path)
		return;
	(void)snprintf(name, sizeof name, "$%s, %s", variable, path);
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY); /* a fifo may not block */
	if (fd == -1 || fstat(fd, &is) == -1)
		refuse("cannot read %s: %m; it must name an ad", name);
	if (!S_ISREG(is.st_mode))
		refuse("cannot read %s: no regular file; it must name an ad", name);
	add_ad(fd, name, kind);
}

/* Hand over to lark-enter with everything that its exec would destroy. */
__attribute__((noreturn))
static void exec_enter(const uintmax_t *saved, char **job)
{
	char path[4096], state[SAVED * 21];
	size_t count = 0, bytes = 0, words = 0;
	ssize_t length = readlink("/proc/self/exe", path, sizeof path - sizeof "lark-enter");
	char *name = length > 0 ? memrchr(path, '/', (size_t)length) : NULL;

	while (environ[count])
		bytes += strlen(environ[count++]) + 2;
	while (job[words])
		words++;
	char **guarded = calloc(count + 1, sizeof *guarded), *text = malloc(bytes + 1);
	char **argv = calloc(words + 3, sizeof *argv);
	if (!name || !guarded || !text || !argv)
		refuse("cannot prepare lark-enter: %m; is /proc mounted?");
	for (size_t i = 0; i < count; i++) {
		guarded[i] = text;
		*text++ = GUARD;
		text = stpcpy(text, environ[i]) + 1;
	}
	for (size_t i = 0, at = 0; i < SAVED; i++)
		at += (size_t)sprintf(state + at, i ? ",%ju" : "%ju", saved[i]);
	argv[0] = strcpy(name + 1, "lark-enter");
	argv[1] = state;
	memcpy(argv + 2, job, words * sizeof *argv);
	execve(path, argv, guarded);
	refuse("cannot start %s: %m; install it beside lark-run", path);
}

int main(int argc, char **argv)
{
	static const char *const variables[] = {NAMING_ENVIRONMENT};
	forbid_tracing();
	uintmax_t saved[SAVED] = {[CLOSED_STDIO] = hold_stdio()};
	char **job = read_options(argv + (argc > 0));
	struct rlimit stack;
	int death_signal = 0;

	add(COMMAND, NULL, job[0], strnlen(job[0], VALUE_MAX));
	for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
		const char *value = getenv(variables[i]);
		if (value)
			add(VARIABLE, variables[i], value, strlen(value));
	}
	add_named_ad("_CONDOR_JOB_AD", "j");
	add_named_ad("_CONDOR_MACHINE_AD", "m");
	request[6] = needs_own() ? OWN_NAMESPACE : 0;
	int agent = ask_agent(0);
	if (request[6] == OWN_NAMESPACE) {
		live_in_own(agent);
		exec_job(job);
	}
	saved[SOCKET] = (uintmax_t)agent;
	if (getrlimit(RLIMIT_STACK, &stack) == -1 || prctl(PR_GET_PDEATHSIG, &death_signal) == -1)
		refuse("cannot read the stack limit and death signal: %m; allow it in seccomp");
	saved[STACK_LIMIT] = stack.rlim_cur;
	saved[DEATH_SIGNAL] = (uintmax_t)death_signal;
	saved[PARENT] = (uintmax_t)getppid(); /* had it died before this, the signal had come */
	saved[PERSONALITY] = (unsigned)personality(0xffffffff);
	exec_enter(saved, job);
}
