/* The word of HTCondor's startd to its starter, in which lark-starter finds its address.
 *
 * Input: CONDOR_INHERIT. */
#include "fuzz.h"
#define syslog(level, ...) ((void)fuzz_printf(__VA_ARGS__))
#define execv(...) fuzz_exit(0)
#include "lark-starter.c"

static struct sockaddr_in found;

static void start(void)
{
	add_startd(&found);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	char **const before = environ, *variables[2] = {NULL, NULL};
	char address[INET_ADDRSTRLEN], expected[32];

	if (size > 4096)
		return -1;
	EXPECT(asprintf(&variables[0], "CONDOR_INHERIT=%.*s", (int)size, (const char *)bytes) > 0);
	environ = variables;
	request_size = 8;
	found = (struct sockaddr_in){0};
	const bool ended = fuzz_ends(start);
	environ = before;
	if (ended) { /* the real starter runs all the same */
		EXPECT(fuzz_status == 0 && strncmp(fuzz_words, "file transfer is not accounted: ", 32) == 0);
	} else {
		EXPECT(fuzz_expect_request(request, request_size) == 0);
		EXPECT(inet_ntop(AF_INET, &found.sin_addr, address, sizeof address));
		(void)snprintf(expected, sizeof expected, "<%s:", address);
		EXPECT(strstr(variables[0], expected));
	}
	free(variables[0]);
	return 0;
}
