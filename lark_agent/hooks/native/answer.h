/* The agent's answer: from nobody but root's listener under the agent's name, within a bound of
 * time, and nothing but one network namespace, a reason why not, or, for who asked for that
 * (own.h), the word to make a namespace. */
#pragma once
#include "run.h"
#include <poll.h>
#include <time.h>

enum { REPLY_MAX = 1024, GRANTED = 0, MAKE_OWN = 5 };
enum { BIND_RESOLVER = 1, STAY = 2, BARE = 4 }; /* flags of the grant */
static int granted_by = -1; /* the agent's socket, once it holds a sandbox for us */

/* Refuse every socket but one to the agent: opened for listening by root, under the one name. */
static void check_agent(int fd)
{
	struct sockaddr_un peer = {0};
	struct ucred owner = {.uid = (uid_t)-1};
	int type = 0;
	socklen_t peer_size = sizeof peer, owner_size = sizeof owner, type_size = sizeof type;

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) == -1 || type != SOCK_SEQPACKET
	    || getpeername(fd, (struct sockaddr *)&peer, &peer_size) == -1
	    || peer.sun_family != AF_UNIX
	    || strncmp(peer.sun_path, AGENT_SOCKET, sizeof peer.sun_path) != 0)
		refuse("descriptor %d is not a connection to " AGENT_SOCKET "; run lark-run", fd);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &owner, &owner_size) == -1 || owner.uid != 0)
		refuse("the agent at " AGENT_SOCKET " is user %u, not root; " ADVICE, owner.uid);
}

/* Wait for the answer; return its size, at least a header's, unless the agent refuses. `reply` has
 * room for a zero after REPLY_MAX bytes. */
static size_t receive_answer(int agent, struct msghdr *message, char *reply)
{
	struct timespec now, start;
	struct pollfd wait = {.fd = agent, .events = POLLIN};
	ssize_t size;

	clock_gettime(CLOCK_MONOTONIC, &start);
	do { /* signals interrupt; others with this socket may take what poll saw; an agent that
	      * closes without reading what we asked resets, its answer comes after that */
		clock_gettime(CLOCK_MONOTONIC, &now);
		time_t left = start.tv_sec + WAIT_SECONDS - now.tv_sec;
		if (poll(&wait, 1, left > 0 ? (int)left * 1000 : 0) == 0)
			refuse("no answer from the agent in %d s; " ADVICE, WAIT_SECONDS);
		size = recvmsg(agent, message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	} while (size == -1 && (errno == EINTR || errno == EAGAIN || errno == ECONNRESET));
	if (size <= 0)
		refuse(size ? "no answer from the agent: %m; " ADVICE
		    : "no answer from the agent: it closed the connection; " ADVICE);
	const uint8_t *head = (const uint8_t *)reply;
	if (size < 8 || memcmp(reply, "LARK\1", 6) != 0 || message->msg_flags & MSG_TRUNC) {
		*reply = '\0'; /* part of an answer is none, whoever looks at it afterwards */
		refuse("the agent's answer is not of this version; restart lark-agent");
	}
	if ((head[6] | head[7] << 8) != GRANTED && (head[6] | head[7] << 8) != MAKE_OWN)
		refuse("refused by the agent: %s", reply + 8);
	return (size_t)size;
}

/* Wait for the answer; return the namespace it grants and the flags with it, or -1 if it is the word
 * to make one. */
__attribute__((unused)) /* by lark-prepare, which is given none */
static int receive_namespace(int agent, uint32_t *flags)
{
	char reply[REPLY_MAX + 1] = {0};
	union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof(int))]; } control;
	struct iovec data = {reply, REPLY_MAX};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
		.msg_controllen = sizeof control};
	const uint8_t *head = (const uint8_t *)reply;
	const size_t size = receive_answer(agent, &message, reply);
	int namespace = -1;

	if (head[6] == MAKE_OWN)
		return -1;
	granted_by = agent;
	if (message.msg_controllen >= sizeof control.header
	    && control.header.cmsg_type == SCM_RIGHTS
	    && control.header.cmsg_len == CMSG_LEN(sizeof namespace))
		memcpy(&namespace, CMSG_DATA(&control.header), sizeof namespace);
	if (size != 12 || message.msg_flags & MSG_CTRUNC || namespace == -1)
		refuse("the agent granted something else than one namespace; " ADVICE);
	uint32_t own_resolver = (uint32_t)(head[10] | head[11] << 8);
	if (head[8] & ~(BIND_RESOLVER | STAY | BARE) || head[9]
	    || (own_resolver && !(head[8] & BIND_RESOLVER)))
		refuse("the agent set a flag that this lark-run does not know; update lark-run");
	*flags = head[8] | own_resolver << 16;
	return namespace;
}

/* Tell an agent that waits for the job to begin that it will not. */
static inline void give_back(int status, const char *line, size_t length)
{
	char notice[REPLY_MAX] = {'L', 'A', 'R', 'K', PROTOCOL, 0, (char)status};

	length = length < sizeof notice - 8 ? length : sizeof notice - 8;
	memcpy(notice + 8, line, length);
	if (granted_by != -1)
		(void)!send(granted_by, notice, length + 8, MSG_NOSIGNAL | MSG_DONTWAIT);
}
