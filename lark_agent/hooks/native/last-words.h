/* The end of lark-run and lark-enter: they become the job, or give up with one line to the job's
 * stderr and to HTCondor's starter. */
#pragma once
#include "run.h"

/* Each program's own duty before it speaks for the last time. */
static void resign(int status, const char *line, size_t length);

/* Leave the line where HTCondor's starter looks. It looks as user condor, who cannot reach into
 * the job's scratch directory (0700) unless we let others pass through it. It may still have the
 * job's groups then, as 23.9 has, and is not one of the others: the directory's group passes too. */
static void write_error_file(const char *line, size_t length)
{
	const int safely = O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
	const char *file = getenv("_CONDOR_WRAPPER_ERROR_FILE");
	const char *scratch = getenv("_CONDOR_SCRATCH_DIR");
	int fd = file ? open(file, O_WRONLY | O_CREAT | O_APPEND | safely, 0644) : -1;
	struct stat now;

	if (fd == -1)
		return;
	(void)fchmod(fd, 0644); /* whatever the umask */
	(void)!write(fd, line, length);
	fd = scratch ? open(scratch, O_RDONLY | O_DIRECTORY | safely) : -1;
	if (fd != -1 && fstat(fd, &now) == 0)
		(void)fchmod(fd, (now.st_mode & 07777) | S_IXGRP | S_IXOTH);
}

/* Say one line to the user and to the batch system, and end: the job does not run. */
__attribute__((format(printf, 2, 3), noreturn))
static void die(int status, const char *format, ...)
{
	char line[1536] = "lark-run: ";
	const size_t start = 10, room = sizeof line - start - 1;
	va_list values;

	va_start(values, format);
	int wanted = vsnprintf(line + start, room, format, values);
	va_end(values);
	size_t length = start + (wanted < 0 ? 0 : (size_t)wanted < room ? (size_t)wanted : room - 1);
	for (size_t i = 0; i < length; i++) /* others' words must not steer the reader's terminal */
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = ' ';
	resign(status, line, length);
	line[length++] = '\n';
	signal(SIGPIPE, SIG_IGN); /* the status must arrive even if nobody can read the line */
	signal(SIGXFSZ, SIG_IGN);
	(void)!write(STDERR_FILENO, line, length);
	write_error_file(line, length);
	_exit(status);
}

/* Become the job. */
__attribute__((noreturn))
static inline void exec_job(char **job)
{
	if (strchr(job[0], '/'))
		execve(job[0], job, environ);
	else
		execvp(job[0], job); /* as env(1): searches the job's own PATH */
	int status = errno == ENOENT ? NOT_FOUND : NOT_EXECUTABLE;
	die(status, "cannot run %s: %m; check the command", job[0]);
}
