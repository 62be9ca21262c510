"""Checks of what could run for a job's account outside of its sandbox.

A sandbox holds what the wrapper starts, and what that starts. The worker may have other programs
that start what a user asks for, in the worker's own network: cron, at, and systemd for users who
*linger*. A job reaches them in its sandbox as well, by files and unix sockets. And one process of
an account may act through another by tracing it, unless the kernel forbids that.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lark_agent.cli.doctor.findings import ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.cli.doctor.findings import Finding
    from lark_agent.cli.doctor.probe import Probe

_LINGERING = "/var/lib/systemd/linger"
_POLKIT = ("/usr/lib/polkit-1/polkitd", "/usr/libexec/polkitd", "/usr/lib/policykit-1/polkitd")
_RULES = ("/etc/polkit-1/rules.d", "/usr/share/polkit-1/rules.d")
_SHOWN = 5


def tracing(probe: Probe) -> Iterator[Finding]:
    """Check that a job cannot act through other processes of its account."""
    key, scope = "kernel.yama.ptrace_scope", probe.sysctl("kernel/yama/ptrace_scope")
    if scope and int(scope) > 0:
        yield ok(f"{key} = {scope}: a job can trace only what it has started")
        return
    found = f"{key} = {scope}" if scope else f"this kernel has no {key} (CONFIG_SECURITY_YAMA)"
    give = "give each slot an account of its own (HTCondor: SLOT1_USER, DEDICATED_EXECUTE_ACCOUNT)"
    yield warn(
        f"{found}: a job can act through other processes of its account, outside its sandbox too",
        f"sysctl -w {key}=1, and keep it in /etc/sysctl.d; or {give}" if scope else give,
    )


def schedules(probe: Probe) -> Iterator[Finding]:
    """Check that jobs cannot leave programs to cron and at."""
    doors = (("crontab", "cron", True), ("at", "at", False))
    there = [door for door in doors if probe.path(f"/usr/bin/{door[0]}").exists()]
    if not there:
        yield ok("neither crontab nor at is installed")
    for program, name, open_without in there:
        allow, deny = (probe.path(f"/etc/{name}.{which}") for which in ("allow", "deny"))
        if allow.exists():
            may = allow.read_text(encoding="utf-8", errors="replace").split()
            shared = [user for user in may if _runs_jobs(probe, user)]
            if shared:
                yield warn(
                    f"/etc/{name}.allow lets accounts of jobs use {program}: {_some(shared)}",
                    f"take them out: what {name} starts is in the worker's own network",
                )
            else:
                yield ok(f"/etc/{name}.allow lets {_some(may)} use {program}")
        elif deny.exists() or open_without:
            yield warn(
                f"every account may use {program}: what {name} starts for a job's user is in the "
                "worker's own network",
                f"list who may in /etc/{name}.allow (empty: only root), without accounts of jobs",
            )
        else:
            yield ok(f"only root may use {program}")


def lingering(probe: Probe) -> Iterator[Finding]:
    """Check that jobs cannot have systemd start programs for their account."""
    if not probe.path("/run/systemd/system").exists():
        yield ok("systemd does not run here")
        return
    place = probe.path(_LINGERING)
    users = sorted(each.name for each in place.iterdir()) if place.is_dir() else []
    if users:
        yield warn(
            f"users linger: {_some(users)}; a job of theirs can have systemd start programs in the "
            "worker's own network",
            "loginctl disable-linger USER for every account of jobs",
        )
    if not any(probe.path(each).exists() for each in _POLKIT):
        yield ok("no polkit: only root lets users linger")
    elif not any("set-self-linger" in text for text in _rules(probe)):
        yield warn(
            "polkit lets every user linger (loginctl enable-linger), and a job is its user",
            "forbid org.freedesktop.login1.set-self-linger: docs/htcondor.md has the rule",
        )
    elif not users:
        yield ok("nobody lingers, and a rule of polkit speaks of it")


def user_namespaces(probe: Probe) -> Iterator[Finding]:
    """Say which jobs need user namespaces, and whether users may make them."""
    closed = [
        f"{key.replace('/', '.')} = {probe.sysctl(key)}"
        for key, value in (
            ("user/max_user_namespaces", "0"),
            ("kernel/unprivileged_userns_clone", "0"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        )
        if probe.sysctl(key) == value
    ]
    allowed = probe.settings.pool.own_namespaces
    if not closed:
        also = "" if allowed else ", which [pool] own_namespaces = false refuses all the same"
        yield ok(f"users may make them: jobs with no_new_privs can have a sandbox{also}")
    elif allowed:
        yield ok(
            f"{' and '.join(closed)}: jobs with no_new_privs (HTCondor's DISABLE_SETUID, "
            "containers) are refused; all others have no need of them"
        )
    else:
        yield ok(f"{' and '.join(closed)}, and [pool] own_namespaces = false")


def _runs_jobs(probe: Probe, user: str) -> bool:
    return any(fnmatchcase(user, pattern) for pattern in probe.settings.shared_accounts)


def _rules(probe: Probe) -> Iterator[str]:
    for name in _RULES:
        place = probe.path(name)
        for file in sorted(place.glob("*.rules")) if place.is_dir() else ():
            yield file.read_text(encoding="utf-8", errors="replace")


def _some(users: list[str]) -> str:
    """List users, not all of them where there are many."""
    if not users:
        return "only root"
    more = len(users) - _SHOWN
    return ", ".join(users[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
