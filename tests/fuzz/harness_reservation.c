/* The agent's answer, as HTCondor's prepare hook tells it to the starter (lark-prepare.c).
 *
 * Input: the datagram; an empty one is a connection that is closed without an answer. */
#include "fuzz.h"
#include "lark-prepare.c"
#undef main

static int receiver;

static void receive(void)
{
	struct iovec data = {reply, REPLY_MAX};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};

	(void)receive_answer(receiver, &message, (char *)reply);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	int pair[2];

	if (size > 4096)
		return -1;
	EXPECT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	receiver = pair[0];
	memset(reply, 0, sizeof reply);
	EXPECT(size == 0 || send(pair[1], bytes, size, 0) == (ssize_t)size);
	(void)close(pair[1]);
	const bool answer = size >= 8 && size <= REPLY_MAX && memcmp(bytes, "LARK\1", 6) == 0;
	const int status = answer ? bytes[6] | bytes[7] << 8 : -1;
	const bool reserved = status == GRANTED || status == MAKE_OWN;
	EXPECT(fuzz_ends(receive) == !reserved);
	if (!reserved) {
		const int code = fuzz_expect_hook_words();
		EXPECT(fuzz_status == 0);
		EXPECT(code == (!answer ? WORKER : status <= POLICY ? status : WORKER + status));
	}
	(void)close(pair[0]);
	return 0;
}
