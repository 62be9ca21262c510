"""HTCondor's STARTER: it becomes the real one, in a sandbox if it can have one, and else without.

The startd is a shell by that name; beside it lies a starter that tells how it was started.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lark_agent.linux import namespaces
from tests.hooks.fake_agent import FakeAgent, granted, refused
from tests.hooks.hostile_agent import SILENT_OR_GARBLED, WRONG_GRANTS, Hostile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.hooks.conftest import Worker

pytestmark = pytest.mark.root

VARIABLE, PURPOSE = 2, 5
STARTER = """#!/usr/bin/python3 -I
import json, os, sys
fds = sorted(int(name) for name in os.listdir("/proc/self/fd"))
print(json.dumps({
    "pid": os.getpid(), "argv": sys.argv[1:], "network": os.readlink("/proc/self/ns/net"),
    "inherit": os.environ.get("CONDOR_INHERIT"), "open": len(fds), "folder": os.getcwd(),
    "mounts": os.readlink("/proc/self/ns/mnt"), "resolver": open("/etc/resolv.conf").read(),
    "jailed": os.path.exists("/srv/jail"),
}))
"""
WORDS = ("-f", "-a", "slot1_1", "submit.example.org")


class Startd:
    """What starts lark-starter, and where it listens."""

    def __init__(self, worker: Worker) -> None:
        self.folder = worker.run.parent
        shutil.copy("/bin/dash", self.folder / "condor_startd")
        (self.folder / "condor_starter").write_text(STARTER)
        (self.folder / "condor_starter").chmod(0o755)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        subprocess.run(["ip", "address", "add", "192.0.2.10/32", "dev", "lo"], check=True)
        self.listener = socket.create_server(("192.0.2.10", 0))
        port = self.listener.getsockname()[1]
        self.address = f"<192.0.2.10:{port}?addrs=192.0.2.10-{port}&noUDP&sock=startd_1>"

    def run(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        before: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Start a starter; returns what it said."""
        inherit = {"CONDOR_INHERIT": f"77 {self.address} 0 1"}
        # the shell stays its parent: it has more to do
        script = f'"$0" "$@"; echo "$?" >&2; exec 3<&-; : {self.folder}'
        done = subprocess.run(
            [self.folder / "condor_startd", "-c", script, self.folder / "lark-starter", *arguments],
            capture_output=True, text=True, check=True, timeout=60,
            cwd=folder, preexec_fn=before,
            env={"PATH": "/usr/bin:/bin", **(inherit if env is None else env)},
        )  # fmt: skip
        said: dict[str, Any] = json.loads(done.stdout)
        return said


@pytest.fixture
def startd(worker: Worker) -> Iterator[Startd]:
    """Give a startd beside the wrapper's programs."""
    made = Startd(worker)
    yield made
    made.listener.close()


def network(descriptor: int) -> str:
    return f"net:[{os.fstat(descriptor).st_ino}]"


def here() -> str:
    return str(Path("/proc/self/ns/net").readlink())


def test_it_becomes_the_starter_in_the_sandbox(worker: Worker, startd: Startd) -> None:
    """Words and environment are the startd's, the network is the agent's, nothing else is open."""

    def listen() -> socket.socket:
        for words in ("link set lo up", "address add 192.0.2.10/32 dev lo"):
            subprocess.run(["ip", *words.split()], check=True)
        return socket.create_server(startd.listener.getsockname())

    with worker.agent(granted()) as agent, namespaces.run_in(worker.namespace, listen):
        said = startd.run(*WORDS)
        (request,) = agent.requests
        assert request.fields == [(PURPOSE, b"t"), (VARIABLE, f"STARTD={startd.address}".encode())]
        assert (request.uid, request.pid) == (0, said["pid"])
    assert said["network"] == network(worker.namespace)
    assert said["argv"] == list(WORDS)
    assert startd.address in said["inherit"]
    assert said["open"] == 4  # and the listing's own


def test_what_it_can_do_is_the_starters_to_say(worker: Worker, startd: Startd) -> None:
    """With -classad the agent is not asked."""
    with worker.agent() as agent:
        said = startd.run("-classad")
        assert not agent.requests
    assert said["argv"] == ["-classad"]
    assert said["network"] == here()


@pytest.mark.parametrize(
    ("reply", "descriptors"),
    [(refused(3, "no"), []), (b"nonsense", []), (None, []), (granted(), []), (granted(8), None)],
)
def test_without_a_sandbox_it_runs_as_ever(
    worker: Worker, startd: Startd, reply: bytes | None, descriptors: list[int] | None
) -> None:
    """Refused, or answered with nonsense: the starter runs in the worker's network."""
    with FakeAgent(reply, [worker.namespace] if descriptors is None else descriptors):
        said = startd.run(*WORDS)
    assert (said["network"], said["argv"]) == (here(), list(WORDS))
    assert said["open"] == 4


def test_without_an_agent_it_runs_as_ever(worker: Worker, startd: Startd) -> None:
    """Nobody listens: after a few seconds the starter runs in the worker's network."""
    assert not Path("/run/lark/run.sock").exists(), worker
    assert startd.run(*WORDS)["network"] == here()


def test_a_startd_out_of_reach_brings_it_back(worker: Worker, startd: Startd) -> None:
    """What is granted has no way to the startd: it goes back, and the agent is told."""
    with worker.agent(granted()) as agent:
        said = startd.run(*WORDS)
    assert said["network"] == here()
    (notice,) = agent.notices
    assert b"cannot reach the startd from the sandbox" in notice


def test_whatever_the_agent_says_it_runs_as_ever(worker: Worker, startd: Startd) -> None:
    """An agent may be wrong in every way there is: the starter runs, and where it would have."""
    mounts = str(Path("/proc/self/ns/mnt").readlink())
    for name, script in (SILENT_OR_GARBLED | WRONG_GRANTS).items():
        with Hostile(script, worker.namespace) as agent:
            said = startd.run(*WORDS)
        assert agent.callers == 1
        assert (name, said["network"], said["mounts"]) == (name, here(), mounts)
        assert (said["argv"], said["open"]) == (list(WORDS), 4)


@pytest.mark.parametrize("flags", [1, 1 | 7 << 16], ids=["no way", "no such resolver"])
def test_it_comes_back_out_of_the_sandboxs_mounts(
    worker: Worker, startd: Startd, flags: int
) -> None:
    """With another resolver, too: names are the worker's again, and it is where it was."""
    Path("/run/lark").mkdir(exist_ok=True)
    Path("/run/lark/resolv.conf").write_text("nameserver 192.0.2.53\n")
    folder = worker.run.parent / "log"
    folder.mkdir()
    with worker.agent(granted(flags)) as agent:
        said = startd.run(*WORDS, folder=folder)
    assert said["network"] == here()
    assert said["mounts"] == str(Path("/proc/self/ns/mnt").readlink())
    assert said["resolver"] == Path("/etc/resolv.conf").read_text()
    assert (said["folder"], said["open"]) == (str(folder), 4)
    assert len(agent.notices) == 1


def test_it_comes_back_to_the_root_it_had(worker: Worker, startd: Startd) -> None:
    """HTCondor may live below a root of its own; the starter is found there and runs there."""
    jail = Path("/run/jail")
    jail.mkdir()
    for words in (
        "--rbind / /run/jail",
        "--make-rprivate /run/jail",
        "-t tmpfs jail /run/jail/srv",
    ):
        subprocess.run(["mount", *words.split()], check=True)
    (jail / "srv" / "jail").touch()
    Path("/run/lark").mkdir(exist_ok=True)
    Path("/run/lark/resolv.conf").write_text("nameserver 192.0.2.53\n")
    with worker.agent(granted(1)) as agent:
        said = startd.run(*WORDS, before=lambda: os.chroot(jail))
    assert len(agent.notices) == 1
    assert said["jailed"]
    assert said["mounts"] == str(Path("/proc/self/ns/mnt").readlink())


@pytest.mark.parametrize(
    "inherit", ["", "77", "77 <[2001:db8::1]:9618?sock=startd_1> 0 1", "77 <192.0.2.10:x> 0"]
)
def test_a_startd_without_an_address_is_not_asked_for(
    worker: Worker, startd: Startd, inherit: str
) -> None:
    """By hand, or with IPv6 alone: the starter runs in the worker's network."""
    with worker.agent() as agent:
        said = startd.run(*WORDS, env={"CONDOR_INHERIT": inherit} if inherit else {})
        assert not agent.requests
    assert said["network"] == here()
