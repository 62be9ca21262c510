/* lark-starter: HTCondor's STARTER; the real one, in a network sandbox of its own.
 *
 * Theory of operation. The startd, as root, execs this for each job. It asks the agent for a
 * sandbox, enters it, and execs the real starter, which lies beside the startd's own program. The
 * pid stays the same, and so do arguments, environment and inherited sockets; a socket belongs to
 * the network where it was made, so the claim's connection to the shadow stays outside. What the
 * starter and its children open from then on (file transfer above all) is counted in the sandbox,
 * and the agent puts it into the record of the job that this starter starts (purpose `t`,
 * docs/run-socket.md).
 *
 * Accounting never stops a job. Whatever goes wrong, no agent, no sandbox, a pool that the sandbox
 * could not reach, is one line to syslog, and the starter runs as it would without us. The agent
 * then sees that the job's starter is in the worker's network, and the record says nothing of its
 * transfer rather than zero.
 *
 * The startd's address is in CONDOR_INHERIT, by which DaemonCore tells a child of its parent; the
 * agent lets the starter reach it. With `-classad` the startd only asks what the starter can do. */
#define _GNU_SOURCE
#define ANSWER_SECONDS 10
#define KEPT_AT_EXEC SOCK_CLOEXEC
#include "answer.h"
#include "client.h"
#include "inside.h"
#include <arpa/inet.h>
#include <syslog.h>

#define STARTER "condor_starter"
#define USUAL "/usr/sbin/" STARTER
enum { PATIENCE_SECONDS = 5 }; /* for an agent that is restarted */
static char **starter;         /* its argv */
static int outside = -1;       /* the worker's network, once we may have left it */
static int mounts = -1, root = -1, folder = -1; /* where its resolver is, likewise */

/* Become the real starter: the file beside that of the startd, which is our parent. */
__attribute__((noreturn))
static void exec_starter(void)
{
	char link[32], path[4096 + sizeof STARTER];

	(void)snprintf(link, sizeof link, "/proc/%d/exe", getppid());
	ssize_t length = readlink(link, path, sizeof path - sizeof STARTER);
	char *name = length > 0 ? memrchr(path, '/', (size_t)length) : NULL;
	if (name)
		strcpy(name + 1, STARTER);
	if (!name || access(path, X_OK) == -1)
		strcpy(path, USUAL);
	execv(path, starter);
	syslog(LOG_ERR, "cannot run %s: %m; is HTCondor installed?", path);
	_exit(NOT_FOUND);
}

/* Leave the sandbox, if we are in it, with what it shows of itself: its resolver would answer
 * nobody outside. Root and folder are put at the top by the kernel; they may have been elsewhere. */
static bool go_back(void)
{
	if (outside != -1 && setns(outside, CLONE_NEWNET) == -1)
		return false;
	return mounts == -1 || (setns(mounts, CLONE_NEWNS) == 0 && fchdir(root) == 0
	    && chroot(".") == 0 && fchdir(folder) == 0);
}

static int open_here(const char *path, int how)
{
	int fd = open(path, how | O_CLOEXEC);

	if (fd == -1)
		refuse("cannot open %s, to come back to it: %m; raise the limit of open files", path);
	return fd;
}

/* Give up on the sandbox, not on the job. */
static void die(int status, const char *format, ...)
{
	char line[REPLY_MAX];
	va_list values;

	va_start(values, format);
	(void)vsnprintf(line, sizeof line, format, values);
	va_end(values);
	syslog(LOG_WARNING, "file transfer is not accounted: %s", line);
	if (!go_back())
		syslog(LOG_ERR, "cannot go back to the worker's network: %m");
	give_back(status, line, strlen(line));
	exec_starter();
}

/* Tell the agent where the startd is: the first address that it has passed on. */
static void add_startd(struct sockaddr_in *startd)
{
	const char *inherited = getenv("CONDOR_INHERIT");
	const char *start = inherited ? strchr(inherited, '<') : NULL;
	const char *end = start ? strchr(start, '>') : NULL;
	char address[INET_ADDRSTRLEN];
	uint16_t port;

	if (!end)
		refuse("no startd's address in $CONDOR_INHERIT; set lark-starter as STARTER only");
	if (sscanf(start, "<%15[0-9.]:%" SCNu16, address, &port) != 2
	    || inet_pton(AF_INET, address, &startd->sin_addr) != 1)
		refuse("the startd has no IPv4 address; let HTCondor prefer IPv4");
	startd->sin_family = AF_INET;
	startd->sin_port = htons(port);
	add(VARIABLE, "STARTD", start, (size_t)(end - start) + 1);
}

/* Make sure that the startd can be reached from the sandbox: the site's own firewall may not let it,
 * and then no job would start. */
static void try_way(const struct sockaddr_in *startd)
{
	const struct timeval most = {.tv_sec = PATIENCE_SECONDS};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd == -1 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof most) == -1
	    || connect(fd, (const struct sockaddr *)startd, sizeof *startd) == -1)
		refuse("cannot reach the startd from the sandbox: %m; let the worker's firewall "
		    "accept its port from there");
	close(fd);
}

int main(int argc, char **argv)
{
	struct sockaddr_in startd = {0};
	uint32_t flags = 0;

	starter = argv;
	openlog("lark-starter", LOG_PID, LOG_DAEMON);
	for (int i = 1; i < argc; i++)
		if (strcmp(argv[i], "-classad") == 0)
			exec_starter();
	add(PURPOSE, NULL, "t", 1);
	add_startd(&startd);
	int agent = ask_agent(PATIENCE_SECONDS);
	check_agent(agent);
	int namespace = receive_namespace(agent, &flags);
	if (namespace == -1 || is_here(namespace))
		refuse("the agent granted no other network than the worker's own");
	outside = open_here("/proc/self/ns/net", O_RDONLY);
	if (flags & BIND_RESOLVER) {
		root = open_here("/", O_PATH | O_DIRECTORY);
		folder = open_here(".", O_PATH | O_DIRECTORY);
		mounts = open_here("/proc/self/ns/mnt", O_RDONLY);
		enter(namespace, flags);
	} else {
		enter_bare(namespace);
	}
	try_way(&startd);
	exec_starter();
}
