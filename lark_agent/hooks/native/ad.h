/* Reading an ad that the batch system gives. */
#pragma once
#include "run.h"

enum { AD_MAX = 1 << 20 };

/* Read an ad that was opened, and close it; what is returned ends with a zero and is good until the
 * next. What cannot be read refuses the job: without its ad it might get a laxer plan. `name` is
 * what people know it by. */
__attribute__((unused)) /* by Slurm's plugin, which reads none */
static const char *read_ad(int fd, const char *name, size_t *size)
{
	static char copy[AD_MAX + 2];
	ssize_t got = 0;

	*size = 0;
	do
		*size += (size_t)(got = read(fd, copy + *size, AD_MAX + 1 - *size));
	while (got > 0 && *size < AD_MAX + 1);
	if (got == -1)
		refuse("cannot read %s: %m; is its file system in order?", name);
	if (*size > AD_MAX)
		refuse("cannot read %s: over 1 MiB; it must be an ad", name);
	close(fd);
	copy[*size] = '\0';
	return copy;
}
