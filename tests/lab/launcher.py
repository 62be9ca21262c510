"""The batch system's process on the worker, one command at a time: several processes of one job.

`tests.lab.starter` runs one job to its end. This one does what a test tells it over a socket: start
a process as a user, wait for it, end. So a test can be HTCondor's starter that runs its prepare
hook, the job, and an sshd into it; or Slurm's step daemon, which asks the agent as root.

The socket's path is its argument; each datagram is one order in JSON, each gets one answer. It ends
when the test closes the connection; what it started goes on, as children of the lab's first
process. It runs as the batch system's own program (`tests.lab.filesystem.LAUNCHERS`), without the
tests' package: standard library only.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Take orders until there are none."""
    (path,) = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    connection, _ = listener.accept()
    outputs: dict[int, list[Any]] = {}
    while data := connection.recv(1 << 20):
        order = json.loads(data)
        if order["do"] == "start":
            files = [tempfile.TemporaryFile(dir="/run/lab") for _ in range(3)]  # noqa: SIM115  kept
            answer: dict[str, Any] = {"pid": start(order, files)}
            outputs[answer["pid"]] = files
        else:
            _, status = os.waitpid(order["pid"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
            for name, file in zip(("stdout", "stderr"), outputs[order["pid"]][1:], strict=True):
                file.seek(0)
                answer[name] = file.read().decode(errors="replace")
        connection.send(json.dumps(answer).encode())


def start(order: dict[str, Any], files: list[Any]) -> int:
    """Fork, become the user, exec; returns the pid."""
    files[0].write(order["stdin"].encode())
    files[0].seek(0)
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file.fileno(), number)
        if order["groups"]:
            os.setgroups(order["groups"])
            os.setgid(order["groups"][0])
            os.setuid(order["groups"][0])
        os.chdir(Path(order["cwd"]))
        os.execvpe(order["command"][0], order["command"], order["env"])
    except OSError as error:
        os.write(2, f"launcher: cannot run {order['command']}: {error}\n".encode())
    os._exit(127)


if __name__ == "__main__":
    main()
