"""The trial job of `lark doctor --live`: what it runs, and talking with it.

It starts as `lark-run` starts any job, from an account that is not root, and says where its
gateway is. Then it waits on its standard input: nothing is sent before the doctor has seen in the
job's record which network it got. Told to, it exchanges datagrams with the peer, one at a time, and
sends others where no job may send. What it says is one JSON object a line.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from lark_agent.errors import Unavailable
from lark_agent.linux import accounts

if TYPE_CHECKING:
    import pwd
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

PROGRAM = """
import json, socket, struct, sys
def tell(what):
    print(json.dumps(what), flush=True)
gateway = ""
with open("/proc/thread-self/net/route") as routes:
    for line in list(routes)[1:]:
        words = line.split()
        if words[1] == "00000000":
            gateway = socket.inet_ntoa(struct.pack("=I", int(words[2], 16)))
tell({"gateway": gateway})
order = json.loads(sys.stdin.readline() or "null")
if order is None:
    raise SystemExit(0)
told = {}
for version, address in order["peers"].items():
    family = socket.AF_INET if version == "4" else socket.AF_INET6
    sent = received = 0
    why = ""
    with socket.socket(family, socket.SOCK_DGRAM) as talk:
        talk.settimeout(order["patience"])
        try:
            talk.connect((address, order["port"]))
            for number in range(order["number"]):
                talk.send(bytes(order["size"]))
                sent += 1
                received += len(talk.recv(65536)) == order["size"]
        except OSError as error:
            why = str(error)
    told[version] = {"sent": sent, "received": received, "why": why}
refused = 0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:
    for number in range(order["forbidden"]["number"]):
        try:
            talk.sendto(b"forbidden", (order["forbidden"]["address"], order["forbidden"]["port"]))
            refused += 1
        except OSError:
            pass
tell({"talked": told, "forbidden": refused})
"""
_LONGEST_WORDS = 4000


class TrialJob:
    """A job that was started; a context manager that ends it."""

    def __init__(self, wrapper: Path, account: pwd.struct_passwd, job_id: str) -> None:
        """Start it; raises Unavailable."""
        command = [str(wrapper), "--job-id", job_id, "--",
                   sys.executable, "-I", "-S", "-c", PROGRAM]  # fmt: skip
        environment = {"PATH": os.defpath, **accounts.surroundings(account)}
        try:
            self._process = subprocess.Popen(
                command, env=environment, cwd="/", bufsize=0, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                user=account.pw_uid, group=account.pw_gid,
                extra_groups=os.getgrouplist(account.pw_name, account.pw_gid),
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(
                f"cannot start {wrapper} as {account.pw_name}: {error.strerror}"
            ) from error
        self._said = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def tell(self, order: Mapping[str, Any]) -> None:
        """Let it go on; a job that has ended meanwhile is noticed by who listens."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
        except BrokenPipeError:
            return

    def listen(self, seconds: float) -> dict[str, Any]:
        """Return what it says next; raises Unavailable if it ends, or says nothing for so long."""
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._said:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise Unavailable(f"the trial job said nothing for {seconds:g} s")
            more = os.read(self._process.stdout.fileno(), _LONGEST_WORDS)
            if not more:
                raise self._ended()
            self._said += more
        line, _, rest = self._said.partition(b"\n")
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            # what lark-run, or the interpreter, has to say on its way out
            self.wait(max(1.0, end - time.monotonic()))
            raise self._ended()
        self._said = rest
        return said

    def wait(self, seconds: float) -> None:
        """Wait for its end; raises Unavailable."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"the trial job did not end within {seconds:g} s") from error

    def _ended(self) -> Unavailable:
        status = self._process.wait()
        words = self._said.decode(errors="replace").strip()
        return Unavailable(f"the trial job ended with {status}: {words[-_LONGEST_WORDS:]}")
