/* Asking the agent: a request is put together field by field, sent as one datagram, and the socket
 * kept for the answer (answer.h). One request for each process: it is built in place. */
#pragma once
#include "ad.h"
#include "run.h"
#include <linux/capability.h>
#include <sys/mman.h>
#include <time.h>

enum { REQUEST_MAX = 16384, VALUE_MAX = 1024, SEALED_NOEXEC = 8 };
enum field { COMMAND = 1, VARIABLE, OPTION, AD, PURPOSE, USER };

#ifndef KEPT_AT_EXEC /* lark-run hands the socket over to lark-enter */
#define KEPT_AT_EXEC 0
#endif
enum { OWN_NAMESPACE = 1 }; /* flag of the request, which is its byte 6 */

static uint8_t request[REQUEST_MAX] = {'L', 'A', 'R', 'K', PROTOCOL};
static size_t request_size = 8, ad_count;
static int ads[2];

/* Tell whether lark-enter's file capability has no effect here, so that a namespace can only be
 * entered by who makes it (own.h). */
static inline bool needs_own(void)
{
	return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1
	    || prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN, 0, 0, 0) == 0;
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

/* Add a file to the request: sealed memory, because the agent is root, and must neither open what
 * a user names nor read what can still change. */
static void add_copy(const char *name, const char *kind, const char *bytes, size_t size)
{
	struct rlimit limit, most;
	int fd = memfd_create(kind, MFD_CLOEXEC | MFD_ALLOW_SEALING | SEALED_NOEXEC);

	if (fd == -1 && errno == EINVAL) /* Linux before 6.3 */
		fd = memfd_create(kind, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	getrlimit(RLIMIT_FSIZE, &limit); /* meant for the job's files; would kill us with SIGXFSZ */
	most = (struct rlimit){limit.rlim_max, limit.rlim_max};
	if (size > limit.rlim_max)
		refuse("cannot copy %s: it is over the hard limit of file size; raise it", name);
	if (fd == -1 || setrlimit(RLIMIT_FSIZE, &most) == -1
	    || pwrite(fd, bytes, size, 0) != (ssize_t)size || setrlimit(RLIMIT_FSIZE, &limit) == -1
	    || fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == -1)
		refuse("cannot copy %s: %m; raise the limit of memory", name);
	add(AD, NULL, kind, 1);
	ads[ad_count++] = fd;
}

/* Add an ad that was opened to the request, and close it. */
__attribute__((unused)) /* by Slurm's plugin, which reads none */
static void add_ad(int fd, const char *name, const char *kind)
{
	size_t size = 0;
	const char *ad = read_ad(fd, name, &size);

	add_copy(name, kind, ad, size);
}

/* Connect to the agent; one that is just being restarted may take `patience` seconds to be back. */
static int connect_agent(int patience)
{
	const struct sockaddr_un agent = {.sun_family = AF_UNIX, .sun_path = AGENT_SOCKET};
	const struct timeval most = {.tv_sec = WAIT_SECONDS};
	const struct timespec pause = {.tv_nsec = 200000000};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | KEPT_AT_EXEC, 0);

	if (fd == -1 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof most) == -1)
		refuse("cannot make a socket: %m; raise the limit of open files");
	for (int left = patience * 5;;) {
		if (connect(fd, (const struct sockaddr *)&agent, sizeof agent) == 0)
			return fd;
		if (errno == EINTR) /* SIGSTOP and SIGCONT interrupt calls that have a timeout,
				     * even without a handler */
			continue;
		if ((errno != ENOENT && errno != ECONNREFUSED) || left-- <= 0)
			refuse("no agent at " AGENT_SOCKET ": %m; start lark-agent, or " ADVICE);
		(void)nanosleep(&pause, NULL);
	}
}

/* Send the request; return the socket, on which the answer will come. */
static int ask_agent(int patience)
{
	/* at most two ads: the lengths fit musl's 32 bits as well as glibc's 64 */
	const unsigned length = (unsigned)CMSG_LEN(ad_count * sizeof *ads);
	const unsigned space = ad_count ? (unsigned)CMSG_SPACE(ad_count * sizeof *ads) : 0;
	union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof ads)]; } control = {
		.header = {.cmsg_len = length, .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct iovec data = {request, request_size};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
		.msg_controllen = space};
	int fd = connect_agent(patience);
	ssize_t result;

	memcpy(CMSG_DATA(&control.header), ads, sizeof ads);
	do
		result = sendmsg(fd, &message, MSG_NOSIGNAL);
	while (result == -1 && errno == EINTR);
	if (result == -1 && errno != EPIPE && errno != ECONNRESET) /* else the answer says why */
		refuse("cannot ask the agent at " AGENT_SOCKET ": %m; " ADVICE);
	return fd;
}
