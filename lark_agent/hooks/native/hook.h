/* What HTCondor's hooks of ours share: the job's ad, what they tell the starter, and the programs
 * of users that must not come with a job.
 *
 * The starter runs some programs of the job's ad as the job's user, but without the wrapper: in the
 * worker's network. The machine's START does not match such jobs, but it sees only what an
 * attribute *evaluates to there*: PreCmd = ifThenElse(TARGET.Cpus =?= undefined, "mine", undefined)
 * is undefined to the matchmaker and the startd, and "mine" to the starter, which has no machine
 * to evaluate it against (tried on 23.9 and 25.14). So here the *text* counts: a job whose ad has
 * such an attribute, whatever it says, is held. A hook that is killed stops the job as well. */
#pragma once
#include "ad.h"
#include <strings.h>

enum { POLICY = 2, WORKER = 300, LINE_MAX_BYTES = 2048 };

/* Print what the starter understands. A quote would end the text; what follows a backslash is read
 * in different ways by different releases. */
__attribute__((noreturn))
static void say(int code, const char *text)
{
	char line[LINE_MAX_BYTES + 3];
	size_t length = 0;

	for (; *text && length < LINE_MAX_BYTES; text++) {
		if (*text == '"')
			line[length++] = '\\';
		line[length++] = *text == '\\' ? '/' : (unsigned char)*text < ' ' || *text == 0x7f
		    ? ' ' : *text;
	}
	line[length] = '\0';
	bool told = printf("HookStatusCode = %d\nHookStatusMessage = \"%s\"\n", code, line) > 0;
	_exit(fflush(stdout) == 0 && told ? 0 : NO_SANDBOX);
}

/* Hold the job if its ad (a line for each attribute, by its name first) has one that names a
 * program beside the job, or the universe of virtual machines. */
static void hold_with_company(const char *ad)
{
	static const char *const names[] = {
		"PreCmd", "PostCmd", "ToolDaemonCmd", "TransferPlugins", "WantDocker"};
	char text[256];

	for (; ad; ad = strchr(ad, '\n') ? strchr(ad, '\n') + 1 : NULL) {
		ad += strspn(ad, " \t");
		const size_t length = strcspn(ad, " \t=\n");
		const char *value = ad + length + strspn(ad + length, " \t=");
		const size_t size = strcspn(value, "\n");
		if (length == 11 && strncasecmp(ad, "JobUniverse", 11) == 0
		    && size == 2 && memcmp(value, "13", 2) == 0)
			say(POLICY, "virtual machines have no sandbox on this worker");
		if ((size == 9 && strncasecmp(value, "undefined", 9) == 0)
		    || (size == 5 && strncasecmp(value, "false", 5) == 0))
			continue;
		for (size_t i = 0; i < sizeof names / sizeof *names; i++)
			if (strlen(names[i]) == length && strncasecmp(ad, names[i], length) == 0) {
				(void)snprintf(text, sizeof text, "the job has %s, which would run outside of "
				    "its sandbox; take it out of the submit file", names[i]);
				say(POLICY, text);
			}
	}
}
