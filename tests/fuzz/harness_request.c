/* What lark-run asks, of arguments, environment and ads that are the user's.
 *
 * Input: arguments, a zero after each, an empty one; the environment in the same way; then what
 * is in every file that it names. The program runs from its main until it sends the request. */
#include "fuzz.h"

static ssize_t fuzz_send(int fd, const struct msghdr *message);
#define prctl(...) (1)           /* nobody may trace us: the sanitizers would be in the dark */
#define connect(fd, to, size) ((void)(to), 0) /* there is no agent */
#define sendmsg(fd, message, flags) fuzz_send(fd, message)
#include "lark-run.c"
#undef main

static char *fuzz_argv[FUZZ_PARTS + 2] = {"lark-run"};
static size_t fuzz_argc;

static void start(void)
{
	(void)fuzzed_main((int)fuzz_argc, fuzz_argv);
}

/* Look at the request instead of sending it. */
static ssize_t fuzz_send(int fd, const struct msghdr *message)
{
	uint8_t copy[4096];

	EXPECT(fd > STDERR_FILENO && message->msg_iovlen == 1);
	const size_t named = fuzz_expect_request(message->msg_iov->iov_base, message->msg_iov->iov_len);
	const struct cmsghdr *control = CMSG_FIRSTHDR(message);
	EXPECT(named <= 2 && (control != NULL) == (named != 0));
	EXPECT(!control || control->cmsg_len == CMSG_LEN(named * sizeof(int)));
	for (size_t i = 0; i < named; i++) {
		int ad;
		memcpy(&ad, CMSG_DATA(control) + i * sizeof ad, sizeof ad);
		EXPECT(fcntl(ad, F_GET_SEALS) & F_SEAL_WRITE && fcntl(ad, F_GET_SEALS) & F_SEAL_SEAL);
		EXPECT(pread(ad, copy, sizeof copy, 0) == (ssize_t)fuzz_file_size);
		EXPECT(memcmp(copy, fuzz_file, fuzz_file_size) == 0);
	}
	fuzz_exit(FUZZ_NEVER);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	char **const before = environ;
	char *strings[FUZZ_PARTS + 1];

	if (size > 4096)
		return -1;
	fuzz_argc = 1 + fuzz_parts(&bytes, &size, fuzz_argv + 1);
	const size_t count = fuzz_parts(&bytes, &size, strings);
	fuzz_file = bytes;
	fuzz_file_size = size;
	memset(request + 6, 0, sizeof request - 6);
	request_size = 8;
	ad_count = 0;
	environ = strings;
	EXPECT(fuzz_ends(start));
	environ = before;
	if (fuzz_status > 0)
		fuzz_expect_last_words();
	else if (fuzz_status == 0)
		EXPECT(strncmp(fuzz_words, "usage: ", 7) == 0 || strncmp(fuzz_words, "lark-run ", 9) == 0);
	fuzz_close_rest();
	fuzz_free(fuzz_argv + 1, fuzz_argc - 1);
	fuzz_free(strings, count);
	return 0;
}
