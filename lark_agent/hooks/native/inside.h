/* What a process does to be inside a sandbox: lark-enter for a job that lark-run started, the SPANK
 * plugin for a task of Slurm. Both have CAP_SYS_ADMIN here and give it up before the job runs.
 *
 * The network namespace is entered, and in a mount namespace of its own the process gets what
 * shows it: a sysfs on /sys, the agent's resolv.conf. Anything that fails refuses the job. */
#pragma once
#include "answer.h"
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/statfs.h>

/* Make sure that it is a network namespace, and tell whether it is the one that we are in. */
static bool is_here(int namespace)
{
	struct statfs filesystem;
	struct stat given, current;

	if (fstatfs(namespace, &filesystem) == -1 || filesystem.f_type != NSFS_MAGIC
	    || ioctl(namespace, NS_GET_NSTYPE) != CLONE_NEWNET)
		refuse("the agent granted no network namespace; " ADVICE);
	if (fstat(namespace, &given) == -1 || stat("/proc/self/ns/net", &current) == -1)
		refuse("cannot compare network namespaces: %m; is /proc mounted?");
	return given.st_ino == current.st_ino && given.st_dev == current.st_dev;
}

static void mount_or_die(const char *what, const char *on, const char *type, unsigned long flags)
{
	if (mount(what, on, type, flags, NULL) == -1) /* CAP_SYS_ADMIN: mount */
		refuse("cannot mount %s on %s: %m; " ADVICE, what, on);
}

/* Show the sandbox's interfaces under /sys, keeping what the host has mounted below it for jobs.
 * The root of a user namespace may not where something covers a part of /sys (most containers):
 * then the old one stays, if that is what `may_stay` says. */
static void renew_sys(bool may_stay)
{
	static const char *const below[] = {"/sys/fs/cgroup", "/sys/fs/fuse/connections",
		"/sys/fs/selinux", "/sys/kernel/security"};
	enum { BELOW = sizeof below / sizeof *below };
	const unsigned long kept = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC; /* as ST_* */
	struct stat sys, mounted;
	struct statfs old;
	int held[BELOW];

	if (statfs("/sys", &old) == -1 || old.f_type != SYSFS_MAGIC || stat("/sys", &sys) == -1)
		return; /* nothing there that shows the host's interfaces */
	for (int i = 0; i < BELOW; i++) {
		held[i] = open(below[i], O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (held[i] == -1 ? errno != ENOENT : fstat(held[i], &mounted) == -1)
			refuse("cannot hold %s: %m; raise the limit of open files", below[i]);
		if (held[i] != -1 && mounted.st_dev == sys.st_dev)
			held[i] = -1; /* nothing mounted there; closed at exec */
	}
	if (mount("sysfs", "/sys", "sysfs", (unsigned long)old.f_flags & kept, NULL) == -1) {
		if (may_stay && errno == EPERM)
			return;
		refuse("cannot mount sysfs on /sys: %m; " ADVICE); /* CAP_SYS_ADMIN: mount */
	}
	for (int i = 0; i < BELOW; i++) {
		char from[32];
		snprintf(from, sizeof from, "/proc/self/fd/%d", held[i]);
		if (held[i] != -1)
			mount_or_die(from, below[i], NULL, MS_BIND | MS_REC);
	}
}

/* In a new mount namespace: mount what shows the sandbox. */
static void show_sandbox(uint32_t flags, bool sys_may_stay)
{
	struct stat resolver;
	char file[sizeof "/run/lark/resolv.conf.65535"] = "/run/lark/resolv.conf";

	mount_or_die("none", "/", NULL, MS_REC | MS_SLAVE); /* the host's later mounts arrive */
	renew_sys(sys_may_stay);
	if (flags >> 16) /* the network of this sandbox has resolvers of its own */
		(void)snprintf(file, sizeof file, "/run/lark/resolv.conf.%u", (flags >> 16) - 1);
	if (flags & BIND_RESOLVER && stat("/etc/resolv.conf", &resolver) == 0)
		mount_or_die(file, "/etc/resolv.conf", NULL, MS_BIND);
}

/* Enter a network, and nothing else: the worker's own, from a starter's sandbox, or that sandbox. */
static inline void enter_bare(int namespace)
{
	if (setns(namespace, CLONE_NEWNET) == -1) /* CAP_SYS_ADMIN: enter a namespace */
		refuse("cannot enter the sandbox: %m; is the job in a user namespace?");
}

/* Enter the sandbox, with mounts that show it. */
static inline void enter(int namespace, uint32_t flags)
{
	enter_bare(namespace);
	if (unshare(CLONE_NEWNS) == -1) /* CAP_SYS_ADMIN: a mount namespace */
		refuse("cannot make a mount namespace: %m; check user.max_mnt_namespaces");
	show_sandbox(flags, false);
}
