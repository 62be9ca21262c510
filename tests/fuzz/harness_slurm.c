/* What Slurm's plugin reads: options of users, words of slurmctld, names of resources.
 *
 * Input: six words, a zero after each: option, resource's name, list of resources, partition,
 * quality of service, reservation. */
#include "fuzz.h"
#undef exit
#include <slurm/spank.h>
#define exit fuzz_exit
#define slurm_error(...) ((void)fuzz_printf(__VA_ARGS__))
#include "spank_lark.c"

/* What slurmstepd and slurmd give a plugin; nothing here calls them. */
spank_context_t spank_context(void) { return S_CTX_ERROR; }
spank_err_t spank_option_register(spank_t spank, struct spank_option *option)
{
	(void)spank, (void)option;
	return ESPANK_ERROR;
}
spank_err_t spank_get_item(spank_t spank, spank_item_t which, ...)
{
	(void)spank, (void)which;
	return ESPANK_ERROR;
}

static void expect_option(const char *word)
{
	*asked_bandwidth = '\0';
	if (take_option(1, word, 0) != 0) {
		EXPECT(!*asked_bandwidth);
		return;
	}
	EXPECT(*word && strcmp(asked_bandwidth, word) == 0 && strlen(word) < WORD_MAX);
	EXPECT(!strpbrk(word, "\"\\\n=;"));
}

/* A count is the same whatever other resources stand before and behind. */
static void expect_count(const char *name, const char *list)
{
	char *longer = NULL;

	if (!*name || strpbrk(name, ",\1"))
		return;
	const uint64_t count = gres_count(list, name);
	EXPECT(asprintf(&longer, "\1(CNT:7),%s,\1(CNT:9)", list) > 0);
	EXPECT(gres_count(longer, name) == count);
	free(longer);
}

/* The ad says nothing but literals, a line each. */
static void expect_ad(void)
{
	char ad[8 * WORD_MAX + 1] = "";
	char name[32], text[2 * WORD_MAX];

	request_size = 8;
	ad_count = 0;
	if (setjmp(given_up) != 0)
		EXPECT(!"an ad that cannot be made");
	add_ads(&job_facts);
	const ssize_t size = pread(ads[0], ad, sizeof ad - 1, 0);
	EXPECT(ad_count == 1 && size >= 0 && fuzz_expect_request(request, request_size) == 1);
	for (char *line = strtok(ad, "\n"); line; line = strtok(NULL, "\n"))
		EXPECT(sscanf(line, "%31[A-Za-z] = \"%255[^\"\\]\"", name, text) == 2
		    || sscanf(line, "RequestBandwidth = %255[0-9.]", text) == 1);
	(void)close(ads[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	char *words[6];

	if (size > 4096)
		return -1;
	for (size_t i = 0; i < 6; i++)
		if (!(words[i] = fuzz_part(&bytes, &size)))
			words[i] = strdup("");
	expect_option(words[0]);
	expect_count(words[1], words[2]);
	job_facts = (struct facts){.size = sizeof job_facts};
	copy_word(job_facts.partition, words[3]);
	copy_word(job_facts.qos, words[4]);
	copy_word(job_facts.reservation, words[5]);
	expect_ad();
	fuzz_free(words, 6);
	return 0;
}
