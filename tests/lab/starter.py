"""The batch system's process on the worker: starts one job through the wrapper and watches it.

It does what condor_starter, slurmstepd, pbs_mom, res or sge_shepherd do at the last moment, no
more: make the scratch directory, write the ads (owned by the job's user, as the real ones are), set
the environment that names the job, fork, become the user, change to the scratch directory, exec the
wrapper with the job as its arguments. It stays the job's parent, is root's, and there is one per
job: that is how an agent tells the batch system's word from the user's.

Like HTCondor's starter it may listen for its job, on ports of the kernel's choice; the first is the
one that the job is told of, in the file that $_CONDOR_CHIRP_CONFIG names. Whoever asks there is
told whose starter answers and from where it was asked.

`plain` is what a user does at a prompt: the wrapper's parent is the user's own process, between
the job and this one.

It runs as the batch system's own program (`tests.lab.filesystem.LAUNCHERS`), since agents believe
no other. Orders come as JSON on stdin; the report goes to /run/lab/jobs/NUMBER.json. Runs without
the tests' package: standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

WRAPPER_ERROR = ".job_wrapper_failure"
CHIRP_CONFIG = ".chirp.config"


def main() -> None:
    """Run the job of the orders, or each job of a list at once, by a process of its own."""
    orders: dict[str, Any] | list[dict[str, Any]] = json.load(sys.stdin)
    if isinstance(orders, dict):
        run(orders)
        return
    for each in orders:
        if os.fork() == 0:
            run(each)
            os._exit(0)
    for _ in orders:
        os.wait()


def run(orders: dict[str, Any]) -> None:
    """Run one job and write its report."""
    scratch = prepare_scratch(orders)
    if orders["hook"]:
        announce(orders, scratch)
    listen(orders, scratch)
    env = {
        "PATH": "/run/lab/bin:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8",
        **naming(orders, scratch), **orders["env"],
    }  # fmt: skip
    command = [*([orders["wrapper"]] if orders["wrapper"] else []), *orders["command"]]
    started = time.monotonic_ns()
    pid = os.fork()
    if pid == 0:
        become_job(orders, scratch, command, env)
    _, status = os.waitpid(pid, 0)
    seconds = (time.monotonic_ns() - started) / 1e9
    error = scratch / WRAPPER_ERROR
    report = {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "scratch": str(scratch),
        "wrapper_error": error.read_text() if error.is_file() else "",
    }
    file = Path("/run/lab/jobs") / f"{orders['number']}.json"
    file.write_text(json.dumps(report))


def prepare_scratch(orders: dict[str, Any]) -> Path:
    """Make the job's directory, with its ads where there are any."""
    scratch = Path("/var/lib/condor/execute") / f"dir_{os.getpid()}"
    scratch.mkdir(parents=True, mode=0o700)
    scratch.chmod(0o700)
    if orders["scheduler"] == "htcondor":
        for name, text in ((".job.ad", "job_ad"), (".machine.ad", "machine_ad")):
            (scratch / name).write_text(orders[text])
            os.chown(scratch / name, orders["uid"], orders["groups"][0])
    os.chown(scratch, orders["uid"], orders["groups"][0])
    return scratch


def announce(orders: dict[str, Any], scratch: Path) -> None:
    """Run the prepare hook as the job's user, before anything is listened on."""
    done = subprocess.run(
        [orders["hook"]], input=orders["job_ad"], text=True, capture_output=True, check=True,
        env=naming(orders, scratch), cwd=scratch, user=orders["uid"], group=orders["groups"][0],
        extra_groups=orders["groups"],
    )  # fmt: skip
    assert not done.stdout, done.stdout  # it prints refusals only


def listen(orders: dict[str, Any], scratch: Path) -> None:
    """Listen on the addresses that the orders name, and say where."""
    listeners = [socket.create_server((address, 0)) for address in orders["listen"]]
    if not listeners:
        return
    where = [listener.getsockname()[:2] for listener in listeners]
    for listener in listeners:
        threading.Thread(target=answer, args=(listener, orders["number"]), daemon=True).start()
    address, port = where[0]
    (scratch / CHIRP_CONFIG).write_text(f"{address} {port} cookie\n")
    file = Path("/run/lab/jobs") / f"{orders['number']}.listening"
    file.with_suffix(".new").write_text(json.dumps(where))
    file.with_suffix(".new").rename(file)


def answer(listener: socket.socket, number: int) -> None:
    """Answer whoever sends a line, with as many bytes as it asks for on top."""
    while True:
        stream, (peer, _) = listener.accept()
        with stream, contextlib.suppress(OSError, ValueError):
            size = int(stream.makefile("rb").readline())
            stream.sendall(f"{number} {peer} ".encode() + bytes(size))


def naming(orders: dict[str, Any], scratch: Path) -> dict[str, str]:
    """Return the environment by which the batch system names the job."""
    user, number = orders["user"], orders["number"]
    if orders["scheduler"] == "htcondor":
        return {
            "_CONDOR_JOB_AD": str(scratch / ".job.ad"),
            "_CONDOR_MACHINE_AD": str(scratch / ".machine.ad"),
            "_CONDOR_SCRATCH_DIR": str(scratch),
            "_CONDOR_SLOT": f"slot1_{number}",
            "_CONDOR_WRAPPER_ERROR_FILE": str(scratch / WRAPPER_ERROR),
            "_CONDOR_CHIRP_CONFIG": str(scratch / CHIRP_CONFIG),
            "CONDOR_STARTER_PID": str(os.getpid()),
            "TMPDIR": str(scratch),
        }
    words = {
        "plain": {}, "slurm": slurm(orders),
        "pbs": {
            "PBS_JOBID": f"{number}.pbs1", "PBS_ACCOUNT": "physics", "PBS_QUEUE": "workq",
            "PBS_O_LOGNAME": user, "PBS_ENVIRONMENT": "PBS_BATCH",
        },
        "lsf": {
            "LSB_JOBID": str(number), "LSB_JOBINDEX": "0", "LSB_PROJECT_NAME": "physics",
            "LSB_QUEUE": "normal", "LSFUSER": user,
        },
        "gridengine": {
            "JOB_ID": str(number), "SGE_TASK_ID": "undefined", "SGE_ACCOUNT": "physics",
            "QUEUE": "all.q", "SGE_O_LOGNAME": user, "ENVIRONMENT": "BATCH",
        },
    }  # fmt: skip
    shared = {"HOME": orders["home"], "USER": user, "LOGNAME": user}
    return {**shared, **words[orders["scheduler"]]}


def slurm(orders: dict[str, Any]) -> dict[str, str]:
    """Return what slurmstepd sets for a task."""
    user, number = orders["user"], orders["number"]
    return {
        "SLURM_JOB_ID": str(number), "SLURM_JOBID": str(number), "SLURM_JOB_USER": user,
        "SLURM_JOB_UID": str(orders["uid"]), "SLURM_JOB_ACCOUNT": "physics",
        "SLURM_JOB_NAME": Path(orders["command"][0]).name, "SLURM_CLUSTER_NAME": "campus",
        "SLURMD_NODENAME": "worker1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0",
    }  # fmt: skip


def become_job(
    orders: dict[str, Any], scratch: Path, command: list[str], env: dict[str, str]
) -> None:
    """Exec the job as its user; never returns."""
    try:
        os.setsid()
        os.setgroups(orders["groups"])
        os.setgid(orders["groups"][0])
        os.setuid(orders["uid"])
        os.umask(orders["umask"])
        os.chdir(scratch)
        if orders["scheduler"] == "plain":
            pass_on_child()
        os.execvpe(command[0], command, env)
    except OSError as error:
        os.write(2, f"starter: cannot run {command}: {error}\n".encode())
    os._exit(127)


def pass_on_child() -> None:
    """Fork; the parent, the user's own shell as it were, ends as the child ends."""
    pid = os.fork()
    if pid == 0:
        return
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        os._exit(128 + os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
