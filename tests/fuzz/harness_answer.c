/* The agent's answer, as lark-run, lark-enter and Slurm's plugin read it (answer.h).
 *
 * Input: one byte, how many descriptors come along (bits 0 and 1) and what the user who made the
 * socket had set on it (bit 2 SO_PASSCRED, bit 3 SO_PASSPIDFD), and whether the datagram is filled up to
 * more than an answer may have (bit 4); then the datagram. An empty one is a connection that is
 * closed without an answer. */
#include "fuzz.h"
#include "answer.h"
#include "last-words.h"

enum { PASS_PIDFD = 76 /* Linux 6.5 */, FILLED = REPLY_MAX + 76 };
static int receiver, namespace;
static uint32_t flags;

static void resign(int status, const char *line, size_t length)
{
	give_back(status, line, length);
}

static void receive(void)
{
	namespace = receive_namespace(receiver, &flags);
}

static void send_answer(int fd, const uint8_t *bytes, size_t size, size_t descriptors)
{
	const int given[3] = {fd, fd, fd};
	union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof given)]; } control = {.header = {
		.cmsg_len = CMSG_LEN(descriptors * sizeof *given), .cmsg_level = SOL_SOCKET,
		.cmsg_type = SCM_RIGHTS}};
	struct iovec data = {(void *)bytes, size};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
		.msg_controllen = descriptors ? CMSG_SPACE(descriptors * sizeof *given) : 0};

	memcpy(CMSG_DATA(&control.header), given, sizeof given);
	EXPECT(sendmsg(fd, &message, MSG_NOSIGNAL) == (ssize_t)size);
}

/* docs/run-socket.md once more. */
static bool is_grant(const uint8_t *answer, size_t size)
{
	return size == 12 && memcmp(answer, "LARK\1\0\0\0", 8) == 0 && answer[8] < 8 && answer[9] == 0
	    && ((answer[10] == 0 && answer[11] == 0) || answer[8] & BIND_RESOLVER);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	const int on = 1;
	int pair[2];

	if (size == 0 || size > 4096)
		return -1;
	uint8_t filled[FILLED] = {0};
	const uint8_t how = *bytes++;
	const size_t descriptors = how & 3;
	size--;
	if (how & 16) {
		memcpy(filled, bytes, size < FILLED ? size : FILLED);
		bytes = filled;
		size = FILLED;
	}
	EXPECT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	receiver = pair[0];
	granted_by = namespace = -1;
	bool plain = true;
	if (how & 4)
		plain = setsockopt(receiver, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == -1;
	if (how & 8)
		plain = setsockopt(receiver, SOL_SOCKET, PASS_PIDFD, &on, sizeof on) == -1 && plain;
	if (size)
		send_answer(pair[1], bytes, size, descriptors);
	(void)shutdown(pair[1], SHUT_RDWR);
	const bool ended = fuzz_ends(receive);
	const bool own = size >= 8 && size <= REPLY_MAX && memcmp(bytes, "LARK\1\0\5\0", 8) == 0;
	EXPECT(ended == !(own || (is_grant(bytes, size) && descriptors == 1 && plain)));
	EXPECT((namespace != -1) == (!ended && !own));
	if (ended) {
		fuzz_expect_last_words();
		EXPECT(fuzz_status == NO_SANDBOX);
	} else if (!own) {
		EXPECT(fcntl(namespace, F_GETFD) == FD_CLOEXEC);
		EXPECT(flags == ((uint32_t)bytes[8] | (uint32_t)bytes[10] << 16 | (uint32_t)bytes[11] << 24));
	}
	fuzz_close_rest();
	(void)close(pair[0]);
	(void)close(pair[1]);
	return 0;
}
