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
 * travels as environment: arguments are readable by everybody while the job waits. */
#define _GNU_SOURCE
#include "run.h"
#include <sys/mman.h>
#include <sys/personality.h>

#define VERSION "0.1.0"
#define USAGE "usage: lark-run [--profile NAME] [--job-id ID] [--group NAME] [--] COMMAND [ARG...]"
enum { REQUEST_MAX = 16384, VALUE_MAX = 1024, AD_MAX = 1 << 20, SEALED_NOEXEC = 8 };
enum field { COMMAND = 1, VARIABLE, OPTION, AD };

static uint8_t request[REQUEST_MAX] = {'L', 'A', 'R', 'K', PROTOCOL};
static size_t request_size = 8, ad_count;
static int ads[2];

static void resign(int status, const char *line, size_t length)
{
	(void)status, (void)line, (void)length; /* nothing to give back */
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

/* Append one field whose payload is name=value, or the value alone where there is no name. */
static void add(enum field type, const char *name, const char *value, size_t length)
{
	size_t prefix = name ? strlen(name) + 1 : 0, payload = prefix + length;
	uint8_t *to = request + request_size;

	if (length > VALUE_MAX)
		refuse("%s is %zu bytes long, more than %d; shorten it", name, length, VALUE_MAX);
	if (payload + 4 > sizeof request - request_size)
		refuse("the request is longer than %d bytes; give fewer options", REQUEST_MAX);
	to = mempcpy(to, (uint8_t[]){(uint8_t)type, 0, payload & 0xff, (uint8_t)(payload >> 8)}, 4);
	if (name) {
		to = mempcpy(to, name, prefix);
		to[-1] = '=';
	}
	memcpy(to, value, length);
	request_size += payload + 4;
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

/* Add a sealed copy of the ad that the variable names, nothing if it is unset: the agent is root,
 * and must neither open what a user names nor read from a file system that a user serves. An ad
 * that cannot be read refuses the job: without it the job might get a laxer plan. */
static void add_ad(const char *variable, const char *kind)
{
	static char copy[AD_MAX + 1];
	const char *path = getenv(variable);
	struct rlimit limit, most;
	struct stat is;
	size_t size = 0;
	ssize_t got = 0;

	if (!path)
		return;
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY); /* a fifo may not block */
	if (fd == -1 || fstat(fd, &is) == -1)
		refuse("cannot read $%s, %s: %m; it must name an ad", variable, path);
	if (!S_ISREG(is.st_mode))
		refuse("cannot read $%s, %s: no regular file; it must name an ad", variable, path);
	do
		size += (size_t)(got = read(fd, copy + size, sizeof copy - size));
	while (got > 0 && size < sizeof copy);
	if (got == -1)
		refuse("cannot read $%s, %s: %m; is its file system in order?", variable, path);
	if (size > AD_MAX)
		refuse("cannot read $%s, %s: over 1 MiB; it must name an ad", variable, path);
	close(fd);
	fd = memfd_create(variable, MFD_CLOEXEC | MFD_ALLOW_SEALING | SEALED_NOEXEC);
	if (fd == -1 && errno == EINVAL) /* Linux before 6.3 */
		fd = memfd_create(variable, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	getrlimit(RLIMIT_FSIZE, &limit); /* meant for the job's files; would kill us with SIGXFSZ */
	most = (struct rlimit){limit.rlim_max, limit.rlim_max};
	if (size > limit.rlim_max)
		refuse("cannot copy $%s: it is over the hard limit of file size; raise it", variable);
	if (fd == -1 || setrlimit(RLIMIT_FSIZE, &most) == -1
	    || pwrite(fd, copy, size, 0) != (ssize_t)size || setrlimit(RLIMIT_FSIZE, &limit) == -1
	    || fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == -1)
		refuse("cannot copy $%s: %m; raise the limit of memory", variable);
	add(AD, NULL, kind, 1);
	ads[ad_count++] = fd;
}

/* Send the request; return the socket, on which the answer will come. */
static int ask_agent(void)
{
	const struct sockaddr_un agent = {.sun_family = AF_UNIX, .sun_path = AGENT_SOCKET};
	const struct timeval patience = {.tv_sec = WAIT_SECONDS};
	/* at most two ads: the lengths fit musl's 32 bits as well as glibc's 64 */
	const unsigned length = (unsigned)CMSG_LEN(ad_count * sizeof *ads);
	const unsigned space = ad_count ? (unsigned)CMSG_SPACE(ad_count * sizeof *ads) : 0;
	union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof ads)]; } control = {
		.header = {.cmsg_len = length, .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct iovec data = {request, request_size};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
		.msg_controllen = space};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	ssize_t result;

	if (fd == -1 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) == -1)
		refuse("cannot make a socket: %m; raise the limit of open files");
	do /* SIGSTOP and SIGCONT interrupt calls that have a timeout, even without a handler */
		result = connect(fd, (const struct sockaddr *)&agent, sizeof agent);
	while (result == -1 && errno == EINTR);
	if (result == -1)
		refuse("no agent at " AGENT_SOCKET ": %m; start lark-agent, or " ADVICE);
	memcpy(CMSG_DATA(&control.header), ads, sizeof ads);
	do
		result = sendmsg(fd, &message, MSG_NOSIGNAL);
	while (result == -1 && errno == EINTR);
	if (result == -1 && errno != EPIPE && errno != ECONNRESET) /* else lark-enter reads why */
		refuse("cannot ask the agent at " AGENT_SOCKET ": %m; " ADVICE);
	return fd;
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
	refuse("cannot start %s: %m; install it beside lark-run, with CAP_SYS_ADMIN in the "
	    "bounding set", path);
}

int main(int argc, char **argv)
{
	static const char *const variables[] = {"_CONDOR_SLOT", "SLURM_JOB_ID",
		"SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_USER", "SLURM_JOB_ACCOUNT",
		"SLURM_CLUSTER_NAME"};
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
	add_ad("_CONDOR_JOB_AD", "j");
	add_ad("_CONDOR_MACHINE_AD", "m");
	saved[SOCKET] = (uintmax_t)ask_agent();
	if (getrlimit(RLIMIT_STACK, &stack) == -1 || prctl(PR_GET_PDEATHSIG, &death_signal) == -1)
		refuse("cannot read the stack limit and death signal: %m; allow it in seccomp");
	saved[STACK_LIMIT] = stack.rlim_cur;
	saved[DEATH_SIGNAL] = (uintmax_t)death_signal;
	saved[PARENT] = (uintmax_t)getppid(); /* had it died before this, the signal had come */
	saved[PERSONALITY] = (unsigned)personality(0xffffffff);
	exec_enter(saved, job);
}
