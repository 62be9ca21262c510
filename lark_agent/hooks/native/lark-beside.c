/* lark-beside: HTCondor's hook before files are transferred; it holds jobs with programs of the
 * user's that would run outside of the sandbox (hook.h says which, and why START is not enough).
 *
 * The starter runs it as the job's user (HOOK_PREPARE_JOB_BEFORE_TRANSFER), with the job's ad on
 * stdin, before anything of the user's is there: transfer plugins that come with a job run next.
 * It asks nobody: a sandbox would wait for as long as the transfer takes. lark-prepare looks again,
 * for universes that have no such hook (local). */
#define _GNU_SOURCE
#include "hook.h"

#define USAGE "usage: HTCondor runs this before it transfers files, with the job's ad on stdin"

static void die(int status, const char *format, ...)
{
	char text[1024];
	va_list values;

	(void)status;
	va_start(values, format);
	(void)vsnprintf(text, sizeof text, format, values);
	va_end(values);
	say(WORKER, text);
}

int main(int argc, char **argv)
{
	size_t size = 0;

	forbid_tracing();
	if (argc > 1)
		return fprintf(stderr, "%s: takes no argument; " USAGE "\n", argv[0]) > 0 ? 2 : 1;
	hold_with_company(read_ad(STDIN_FILENO, "the job's ad on stdin", &size));
	return 0;
}
