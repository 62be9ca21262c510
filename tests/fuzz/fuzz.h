/* What the harnesses share.
 *
 * A harness includes the source of one program and feeds it what another party may say. Of the
 * program's surroundings only the ends are replaced, by the macros below: it gives up by a jump back
 * to the harness, its last words are kept and looked at, the files that it opens are the harness's.
 * Sockets and sealed memory are the kernel's own.
 *
 * The sanitizers find what is read or written out of bounds. What else must hold a harness states
 * with EXPECT: above all, what is accepted and what is refused, written down a second time. */
#pragma once
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#define EXPECT(what) do { if (!(what)) { \
	(void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); abort(); } } while (0)

enum { FUZZ_PARTS = 64, FUZZ_NEVER = -1 };

static jmp_buf fuzz_ended;
static int fuzz_status;          /* what the program ended with */
static char fuzz_words[16384];   /* what it said: stderr, or stdout of a hook */
static size_t fuzz_words_size;
static const uint8_t *fuzz_file; /* what is in the file that it opens, or on its stdin */
static size_t fuzz_file_size;

__attribute__((noreturn))
static void fuzz_exit(int status)
{
	fuzz_status = status;
	longjmp(fuzz_ended, 1);
}

/* Run a part of the program; tell whether it gave up. */
static bool fuzz_ends(void (*program)(void))
{
	fuzz_status = FUZZ_NEVER;
	fuzz_words_size = 0;
	fuzz_words[0] = '\0';
	if (setjmp(fuzz_ended) != 0)
		return true;
	program();
	return false;
}

static ssize_t fuzz_write(int fd, const void *bytes, size_t size)
{
	EXPECT(fd == STDERR_FILENO && size < sizeof fuzz_words - fuzz_words_size);
	memcpy(fuzz_words + fuzz_words_size, bytes, size);
	fuzz_words_size += size;
	fuzz_words[fuzz_words_size] = '\0';
	return (ssize_t)size;
}

__attribute__((format(printf, 1, 2)))
static int fuzz_printf(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	int size = vsnprintf(fuzz_words, sizeof fuzz_words, format, values);
	va_end(values);
	EXPECT(size >= 0 && (size_t)size < sizeof fuzz_words);
	fuzz_words_size = (size_t)size;
	return size;
}

/* Give the input as a regular file, whatever is opened for reading, and no file to write to. */
static int fuzz_open(const char *path, int flags, ...)
{
	(void)path;
	errno = EACCES;
	if ((flags & O_ACCMODE) != O_RDONLY || flags & O_DIRECTORY)
		return -1;
	int fd = memfd_create("input", MFD_CLOEXEC);
	EXPECT(fd != -1 && pwrite(fd, fuzz_file, fuzz_file_size, 0) == (ssize_t)fuzz_file_size);
	return fd;
}

/* Give the input on stdin, in pieces as a pipe does. */
static ssize_t fuzz_read(int fd, void *to, size_t size)
{
	if (fd != STDIN_FILENO)
		return read(fd, to, size);
	size = size < fuzz_file_size ? size : fuzz_file_size;
	size = size < 7 ? size : size / 2;
	memcpy(to, fuzz_file, size);
	fuzz_file += size;
	fuzz_file_size -= size;
	return (ssize_t)size;
}

static int fuzz_close(int fd)
{
	return fd > STDERR_FILENO ? close(fd) : 0;
}

/* Close what the last input left open. */
static void fuzz_close_rest(void)
{
	static int first = -1;

	if (first == -1) {
		first = fcntl(STDERR_FILENO, F_DUPFD, 100);
		EXPECT(first != -1);
	}
	(void)close_range((unsigned)first, ~0U, 0);
	EXPECT(fcntl(STDERR_FILENO, F_DUPFD, first) == first);
}

/* Copy a part of the input up to the next zero to a place of its own, where a sanitizer sees its end;
 * NULL if nothing is left. The caller frees it. */
static char *fuzz_part(const uint8_t **bytes, size_t *size)
{
	if (*size == 0)
		return NULL;
	const size_t length = strnlen((const char *)*bytes, *size);
	char *copy = strndup((const char *)*bytes, length);
	const size_t used = length < *size ? length + 1 : length;
	*bytes += used;
	*size -= used;
	return copy;
}

/* Take parts up to an empty one, or all; return how many. Behind the last is a NULL. */
static size_t fuzz_parts(const uint8_t **bytes, size_t *size, char **parts)
{
	size_t count = 0;

	while (count < FUZZ_PARTS && (parts[count] = fuzz_part(bytes, size)) && *parts[count])
		count++;
	if (count < FUZZ_PARTS)
		free(parts[count]);
	parts[count] = NULL;
	return count;
}

static void fuzz_free(char **parts, size_t count)
{
	for (size_t i = 0; i < count; i++)
		free(parts[i]);
}

/* What lark-run and lark-enter say: one line that steers no terminal, and a status of ours. */
static inline void fuzz_expect_last_words(void)
{
	EXPECT(fuzz_status >= 125 && fuzz_status <= 127);
	EXPECT(fuzz_words_size > 11 && memcmp(fuzz_words, "lark-run: ", 10) == 0);
	EXPECT(fuzz_words[fuzz_words_size - 1] == '\n');
	for (size_t i = 0; i + 1 < fuzz_words_size; i++)
		EXPECT((unsigned char)fuzz_words[i] >= ' ' && fuzz_words[i] != 0x7f);
}

/* What HTCondor's starter reads of a hook: a code, and a text that nothing ends too early. */
static inline int fuzz_expect_hook_words(void)
{
	int code = 0, used = 0;
	const char *text = fuzz_words;

	EXPECT(sscanf(text, "HookStatusCode = %d\nHookStatusMessage = \"%n", &code, &used) == 1);
	EXPECT(used > 0 && code > 0);
	for (text += used; *text && *text != '"'; text++) {
		EXPECT((unsigned char)*text >= ' ' && *text != 0x7f);
		if (*text == '\\')
			EXPECT(*++text == '"');
	}
	EXPECT(strcmp(text, "\"\n") == 0);
	return code;
}

/* The form of a request (docs/run-socket.md); return how many ads it names. */
static inline size_t fuzz_expect_request(const uint8_t *bytes, size_t size)
{
	size_t found = 0, at = 8;

	EXPECT(size >= 8 && size <= 16384 && memcmp(bytes, "LARK\1\0", 6) == 0);
	while (at < size) {
		EXPECT(size - at >= 4);
		const unsigned type = bytes[at] | bytes[at + 1] << 8;
		const size_t length = bytes[at + 2] | (size_t)bytes[at + 3] << 8;
		EXPECT(type >= 1 && type <= 6 && size - at - 4 >= length);
		EXPECT(memchr(bytes + at + 4, 0, length) == NULL || type == 6);
		found += type == 4;
		at += 4 + length;
	}
	return found;
}

#define _exit fuzz_exit
#define exit fuzz_exit
#define write fuzz_write
#define printf(...) fuzz_printf(__VA_ARGS__)
#define puts(text) fuzz_printf("%s\n", text)
#define open fuzz_open
#define read fuzz_read
#define close fuzz_close
#define main fuzzed_main
