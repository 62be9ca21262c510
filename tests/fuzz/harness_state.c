/* What lark-enter, which has a capability, is started with: any user may choose it.
 *
 * Input: its argv[1], a zero, then the strings of its environment, a zero after each. */
#include "fuzz.h"
#include "lark-enter.c"

static char *fuzz_argv[4] = {"lark-enter", NULL, "job", NULL};
static uintmax_t fuzz_saved[SAVED];

static void start(void)
{
	read_state(3, fuzz_argv, fuzz_saved);
}

/* Tell whether it is six decimal numbers with commas between, the first a descriptor's. */
static bool is_state(const char *text)
{
	int commas = 0;
	uint64_t socket = 0;

	for (const char *c = text; *c; c++) {
		if (*c == ',' ? c == text || c[-1] == ',' || !c[1] : !isdigit((unsigned char)*c))
			return false;
		commas += *c == ',';
		if (commas == 0 && socket <= INT32_MAX)
			socket = socket * 10 + (uint64_t)(*c - '0');
	}
	return commas == SAVED - 1 && socket <= INT32_MAX;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	char **const before = environ;
	char *strings[FUZZ_PARTS + 1], *seen[FUZZ_PARTS + 1];
	size_t count = 0;
	bool good;

	if (size > 4096 || !(fuzz_argv[1] = fuzz_part(&bytes, &size)))
		return -1;
	while (count < FUZZ_PARTS && (strings[count] = fuzz_part(&bytes, &size)))
		count++;
	strings[count] = NULL;
	memcpy(seen, strings, sizeof seen);
	environ = seen;
	good = is_state(fuzz_argv[1]);
	for (size_t i = 0; i < count; i++)
		good = good && *strings[i] == GUARD;
	const bool ended = fuzz_ends(start);
	environ = before;
	EXPECT(ended == !good);
	for (size_t i = 0; i < count; i++) { /* a refusal may leave some as they were */
		EXPECT(seen[i] == strings[i] || (seen[i] == strings[i] + 1 && *strings[i] == GUARD));
		EXPECT(ended || seen[i] == strings[i] + 1);
	}
	if (ended)
		fuzz_expect_last_words();
	fuzz_free(strings, count);
	free(fuzz_argv[1]);
	return 0;
}
