"""A user's program in lark-run's stead: asks as lark-run without privilege does, and stays root.

Runs as ``python impostor.py ORDER COMMAND...``. It makes the user and network namespace that the
agent furnishes, but maps its user to root there, keeps every capability, and starts the command
with them. ORDER is "asks-first", as lark-run, or "makes-first", which is how a job in a sandbox
would look; with "says-nothing" it asks and makes nothing; "asks-first:NAME" makes an interface of
that name in it. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

HEADER = struct.Struct("<4sHH")
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
MAKE_OWN, GRANTED = 5, 0


def make() -> None:
    """Become root of a namespace."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path("/proc/self", file).write_text(text, encoding="ascii")


def answer(agent: socket.socket, wanted: int) -> None:
    """Receive an answer; anything but the wanted one ends the program as a refusal does."""
    try:
        data = agent.recv(1024)
    except ConnectionResetError:  # it did not read what was asked; its answer comes after that
        data = agent.recv(1024)
    status = HEADER.unpack_from(data)[2]
    if status != wanted:
        print(data[8:].decode(), file=sys.stderr)
        raise SystemExit(125)


def main() -> None:
    """Ask, make, and start the command."""
    order, command = sys.argv[1], sys.argv[2:]
    if order == "makes-first":
        make()
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent.connect("/run/lark/run.sock")
    with contextlib.suppress(BrokenPipeError):  # refused at sight; the answer says why
        agent.send(HEADER.pack(b"LARK", 1, 1) + struct.pack("<HH", 1, 8) + b"impostor")
    answer(agent, MAKE_OWN)
    if order == "says-nothing":
        print("silent", flush=True)
        time.sleep(60)
    if order.startswith("asks-first"):
        make()
        for name in order.split(":")[1:]:
            subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    agent.send(HEADER.pack(b"LARK", 1, 0))
    answer(agent, GRANTED)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
