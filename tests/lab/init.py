"""Process 1 of a lab: builds its world, then starts processes in it on request.

Started by `unshare` in fresh mount, pid, network, host name and IPC namespaces. Everything that
runs in a lab is a child of this process, and that is the point: such a child's parent is root's
and lives in the lab's pid namespace, as a batch system's process does; orphans come here and are
reaped (an agent that watches them by pidfd must see them vanish, not turn into zombies); and the
kernel kills all of them when this process ends, which it does when its control socket is closed
for whatever reason, the SIGKILL of the test included.

Requests are one datagram each on a SOCK_SEQPACKET socket: JSON that says what to run, and four
descriptors: stdin, stdout, stderr and the pipe that wants the exit status. The answer carries the
pid and a pidfd, from which the other side learns the pid in its own namespace.

Standard library only, and one thread: it forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

from tests.lab import filesystem, topology

DATAGRAM = 256 * 1024
second: list[int] = []
"""A pidfd of the process that has the second worker's files."""


def main() -> None:
    """Build, say so, and serve until the control socket is closed."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    control = socket.socket(fileno=int(sys.argv[2]))
    control.set_inheritable(False)
    try:
        socket.sethostname("worker1")
        filesystem.build(topology.CAMPUS.ipv4)
        topology.build(**options)
        if options["second"]:
            second.append(os.pidfd_open(filesystem.second_worker()))
    except (OSError, topology.BuildError) as error:
        sys.exit(str(error))
    socket.send_fds(control, [b'{"ready": true}'], [os.pidfd_open(os.getpid())])
    serve(control)


def serve(control: socket.socket) -> None:
    """Start what is asked for and reap what has ended."""
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    statuses: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control.fileno(), awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
            reap(statuses)
        if control.fileno() in ready:
            data, fds, _, _ = socket.recv_fds(control, DATAGRAM, 4)
            if not data:
                return
            for fd in fds:
                os.set_inheritable(fd, False)  # recv_fds passes no MSG_CMSG_CLOEXEC on (3.11)
            start(control, json.loads(data), fds, statuses)


def start(
    control: socket.socket, request: dict[str, Any], fds: list[int], statuses: dict[int, int]
) -> None:
    """Fork one process and answer with its pid."""
    pid = os.fork()
    if pid == 0:
        become(request, fds)
    pidfd = os.pidfd_open(pid)
    socket.send_fds(control, [json.dumps({"pid": pid}).encode()], [pidfd])
    for fd in (pidfd, *fds[:3]):
        os.close(fd)
    statuses[pid] = fds[3]


def become(request: dict[str, Any], fds: list[int]) -> NoReturn:
    """Turn the forked child into what was asked for; ends with 127 where that cannot be."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        if request["host"] != topology.WORKER.name:
            topology.enter(request["host"])
        if request["host"] == topology.WORKER2.name:
            enter_files(second[0])
        for target, fd in enumerate(fds[:3]):
            os.dup2(fd, target)
        os.setgroups(request["groups"])
        os.setgid(request["uid"])
        os.setuid(request["uid"])
        os.chdir(request["cwd"])
        os.execvpe(request["command"][0], request["command"], request["env"])
    except BaseException as error:  # noqa: BLE001  a forked copy of process 1 must not return
        os.write(2, f"cannot start {request['command']}: {error}\n".encode())
    os._exit(127)


def enter_files(pidfd: int) -> None:
    """Take over the mounts of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(pidfd, filesystem.CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the second worker's files")


def reap(statuses: dict[int, int]) -> None:
    """Collect every child that has ended; pass on the status of those that somebody waits for."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in statuses:
            pipe = statuses.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(pipe)


if __name__ == "__main__":
    main()
