/* lark-sshd-setup: has HTCondor's set-up for condor_ssh_to_job run in the job's sandbox.
 *
 * Theory of operation. Before it starts an sshd (by the wrapper, so in the sandbox), the starter
 * runs a script of HTCondor's as the job's user: with the job's environment, which can make any
 * program load a library of the user's, and with words of the client's for ssh-keygen, which can as
 * well. Without us that is code of the user's in the worker's network. The starter looks for the
 * script in its LIBEXEC, so that is a directory of ours, with links to what is in HTCondor's but for
 * this one name, which leads here (lark_agent/hooks/htcondor_libexec.py). We are static, so nothing
 * is loaded into us, and we are the starter's child: lark-run joins the job, and execs the script.
 *
 * What the script and we print the starter reads, and shows to the client if it is no success. */
#define _GNU_SOURCE
#include "run.h"

#define SCRIPT "htcondor/sshd-setup" /* a link, made with the directory */
#define USAGE "HTCondor's starter runs this to set up condor_ssh_to_job"

static void die(int status, const char *format, ...)
{
	va_list values;

	(void)fputs("lark-sshd-setup: ", stdout);
	va_start(values, format);
	(void)vprintf(format, values);
	va_end(values);
	(void)puts("");
	exit(status);
}

int main(int argc, char **argv)
{
	char run[4096], script[4096];
	const ssize_t length = readlink("/proc/self/exe", run, sizeof run - sizeof SCRIPT);

	forbid_tracing();
	if (argc < 2)
		refuse("no arguments; " USAGE);
	char *name = length > 0 ? memrchr(run, '/', (size_t)length) : NULL;
	char **command = calloc((size_t)argc + 3, sizeof *command);
	if (!name || !command)
		refuse("cannot find the programs beside this one: %m; is /proc mounted?");
	name[1] = '\0';
	(void)stpcpy(stpcpy(script, run), SCRIPT);
	(void)strcpy(name + 1, "lark-run");
	command[0] = run;
	command[1] = script;
	memcpy(command + 2, argv + 1, (size_t)argc * sizeof *command); /* with the NULL */
	(void)unsetenv("_CONDOR_WRAPPER_ERROR_FILE"); /* a refusal is the client's, not the job's end */
	(void)dup2(STDOUT_FILENO, STDERR_FILENO); /* where the starter reads lark-run's words */
	execv(run, command);
	refuse("cannot start %s: %m; install it beside this program", run);
}
