/* The ad of a job, in which HTCondor's hooks look for programs that would run outside (hook.h).
 *
 * Input: the ad. It is looked at twice, the second time with a program in its last line: nothing
 * that stands before may hide that. */
#include "fuzz.h"
#define prctl(...) (0)
#include "lark-beside.c"
#undef main

static const uint8_t *fuzz_ad;
static size_t fuzz_ad_size;

static void start(void)
{
	char *argv[] = {"lark-beside", NULL};

	fuzz_file = fuzz_ad;
	fuzz_file_size = fuzz_ad_size;
	EXPECT(fuzzed_main(1, argv) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static const char program[] = "\n pReCmd =\"x\"";
	char longer[4096 + sizeof program];

	if (size > 4096)
		return -1;
	fuzz_ad = bytes;
	fuzz_ad_size = size;
	if (fuzz_ends(start))
		EXPECT(fuzz_status == 0 && fuzz_expect_hook_words() == POLICY);
	if (memchr(bytes, 0, size)) /* the starter writes none */
		return 0;
	memcpy(longer, bytes, size);
	memcpy(longer + size, program, sizeof program - 1);
	fuzz_ad = (const uint8_t *)longer;
	fuzz_ad_size = size + sizeof program - 1;
	EXPECT(fuzz_ends(start) && fuzz_expect_hook_words() == POLICY);
	return 0;
}
