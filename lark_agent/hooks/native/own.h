/* The second way into a sandbox, where a file capability has no effect: no_new_privs (HTCondor with
 * DISABLE_SETUID, systemd's NoNewPrivileges), or no CAP_SYS_ADMIN in the bounding set (containers).
 *
 * lark-run asks from the worker's network, as ever, and says that it cannot enter what others made.
 * An agent that would give it a sandbox answers MAKE_OWN. Only then lark-run makes a user namespace,
 * as any user may, with a network and a mount namespace of its own, says so, and the agent puts a
 * ready link there. Had it made them before, the agent could not tell it from a job that is in a
 * sandbox and wants a second one. A later process of the same job is granted what the first made,
 * which its user may enter.
 *
 * The job is the same user as before (the map has this one line) and without capabilities: exec
 * takes those that come with a new user namespace from everybody but its uid 0, which there is not.
 * Whoever is this user may become root of the namespace, however; nothing rests on what is in it. */
#pragma once
#include "answer.h"
#include "inside.h"

static void write_map(const char *file, const char *text)
{
	int fd = open(file, O_WRONLY | O_CLOEXEC);

	if (fd == -1 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		refuse("cannot write %s: %m; is /proc mounted, and may it be written?", file);
	close(fd);
}

/* Make the namespaces. Everybody but the user and their group appears as nobody there. */
static void make_own(void)
{
	char users[64], groups[64];

	(void)snprintf(users, sizeof users, "%u %u 1", geteuid(), geteuid());
	(void)snprintf(groups, sizeof groups, "%u %u 1", getegid(), getegid());
	if (unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS) == -1)
		refuse("cannot make a user and network namespace: %m; file capabilities have no effect "
		    "here (no_new_privs: HTCondor's DISABLE_SETUID, systemd's NoNewPrivileges; or a "
		    "container without CAP_SYS_ADMIN), so either start the batch system without, or let "
		    "users make user namespaces (sysctl user.max_user_namespaces, "
		    "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)");
	(void)prctl(PR_SET_DUMPABLE, 1); /* else the maps are root's to write; we have left the worker */
	write_map("/proc/self/setgroups", "deny"); /* else the kernel takes no group map from a user */
	write_map("/proc/self/uid_map", users);
	write_map("/proc/self/gid_map", groups);
}

/* Enter what an earlier process of the job made: its user may, being the maker. */
static void join_own(int namespace)
{
	int user = ioctl(namespace, NS_GET_USERNS);

	if (user == -1 || setns(user, CLONE_NEWUSER) == -1 || setns(namespace, CLONE_NEWNET) == -1
	    || unshare(CLONE_NEWNS) == -1)
		refuse("cannot enter the network that the job made: %m; was it this user's?");
	close(user);
}

/* Wait for the agent's leave, make the namespaces, and have the agent furnish them; or join. */
static void live_in_own(int agent)
{
	const char made[] = {'L', 'A', 'R', 'K', PROTOCOL, 0, 0, 0};
	uint32_t flags = 0;

	(void)fcntl(agent, F_SETFD, FD_CLOEXEC);
	check_agent(agent); /* now: root is nobody in a user namespace */
	int namespace = receive_namespace(agent, &flags);
	if (namespace != -1) {
		join_own(namespace);
	} else {
		make_own();
		if (send(agent, made, sizeof made, MSG_NOSIGNAL) == -1 && errno != EPIPE
		    && errno != ECONNRESET) /* else the answer says why */
			refuse("cannot tell the agent of the namespace: %m; " ADVICE);
		namespace = receive_namespace(agent, &flags);
	}
	if (!is_here(namespace) || flags & (STAY | BARE))
		refuse("the agent granted another network than the job's own; " ADVICE);
	show_sandbox(flags, true);
}
