/* What every program that speaks to the run socket shares (docs/run-socket.md): its constants, and
 * what lark-run (no privilege) hands over to lark-enter (one capability). */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define AGENT_SOCKET "/run/lark/run.sock"
#define ADVICE "ask the site's admin to run `lark doctor` on this worker"
#ifndef ANSWER_SECONDS /* a program that has something else to do may wait less */
#define ANSWER_SECONDS 300
#endif
enum { PROTOCOL = 1, WAIT_SECONDS = ANSWER_SECONDS, NO_SANDBOX = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127 };

/* lark-enter's argv[1]: these in decimal, commas between. Its environment is the job's, each
 * string behind one GUARD, so that glibc knows none of the names and removes none. */
enum saved { SOCKET, CLOSED_STDIO, STACK_LIMIT, DEATH_SIGNAL, PARENT, PERSONALITY, SAVED };
#define GUARD '+'

/* Let nobody trace us who is not root. Until a sandbox holds it, this process is in the worker's own
 * network, where whoever steers it is too: a job of the same user, say, out of its own sandbox.
 * Installed unreadable it cannot be traced from its first instruction on; this is for a copy that
 * is not. Exec of the job ends it. */
static inline void forbid_tracing(void)
{
	(void)prctl(PR_SET_DUMPABLE, 0);
}

/* Say one line to whoever started the job, and do not return: the job does not run. Each program
 * has its own way; that of lark-run and lark-enter is in last-words.h. */
__attribute__((format(printf, 2, 3), noreturn))
static void die(int status, const char *format, ...);
#define refuse(...) die(NO_SANDBOX, __VA_ARGS__)
