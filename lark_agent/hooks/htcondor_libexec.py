"""HTCondor's programs as its starter is to see them: all as they are, but what runs users' code.

The starter has no setting for the script that sets up `condor_ssh_to_job`; it takes it from
LIBEXEC. So the starter, and no other daemon, gets a LIBEXEC of ours (`STARTER.LIBEXEC`): a
directory of links to everything in HTCondor's, except that this name leads to `lark-sshd-setup`.

Users of containers enter them by a program that the starter looks for in BIN, and starts in the
worker's network as root: it enters all namespaces of the container but the network's. So BIN of the
starter is that directory too, and it has no such program.

What HTCondor installs later in its LIBEXEC is not seen until the directory is made anew, which
`lark-agent htcondor-config` does.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lark_agent.errors import PrerequisiteError

SCRIPT = "condor_ssh_to_job_sshd_setup"
"""What the starter runs of the job's user before there is an sshd."""
PROGRAM = "lark-sshd-setup"
DIRECTORY = "htcondor"
"""In the directory of our programs, which lark-sshd-setup.c knows as well."""
_THEIRS = "sshd-setup"
ENTERING = "condor_nsenter"


def make(programs: Path, libexec: Path) -> Path:
    """Make the directory anew beside our programs; returns it. Raises PrerequisiteError."""
    wanted, fresh = programs / DIRECTORY, programs / f".{DIRECTORY}.new"
    old = programs / f".{DIRECTORY}.old"
    for needed in (libexec / SCRIPT, programs / PROGRAM):
        if not os.access(needed, os.X_OK):
            raise PrerequisiteError(
                f"{needed} is not there; condor_ssh_to_job needs it (install HTCondor, set "
                "[htcondor] libexec to its LIBEXEC; run lark-agent install-wrapper)"
            )
    try:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(mode=0o755)
        fresh.chmod(0o755)
        for each in libexec.iterdir():
            if each.name not in {SCRIPT, ENTERING, _THEIRS}:
                (fresh / each.name).symlink_to(each)
        (fresh / _THEIRS).symlink_to(libexec / SCRIPT)
        (fresh / SCRIPT).symlink_to(Path("..") / PROGRAM)
        if wanted.exists():
            wanted.rename(old)
        fresh.rename(wanted)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise PrerequisiteError(
            f"cannot make {wanted}: {error.strerror} ({error.filename}); run as root"
        ) from error
    return wanted


def lines(directory: Path | None) -> str:
    """Return what the starter's configuration says of it; without it nobody gets a shell."""
    if directory is None:
        return """
# condor_ssh_to_job is set up by a script that runs as the job's user on the worker's own network,
# with the job's environment, which can load programs of the user's. When this file was written
# there was no HTCondor whose script could be had run in the job's sandbox ([htcondor] libexec).
ENABLE_SSH_TO_JOB = false"""
    return f"""
# What sets up condor_ssh_to_job runs as the job's user, with programs of the user's if they mean
# it: by this it joins the job's sandbox first, as the shell does. Everything else in there is a
# link to HTCondor's own; write this file anew after an upgrade of HTCondor. Shells in containers
# are not offered: the starter would start them on the worker's own network.
STARTER.LIBEXEC = {directory}
STARTER.BIN = {directory}"""
