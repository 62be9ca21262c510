"""The run socket against its users: hostile datagrams, hostile patience, hostile numbers.

All of them come from alice, an ordinary user, to the real agent's socket; after each the agent
still gives bob his network, and has no more descriptors open than before.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.agent.worker import QUICK, final, python, until
from tests.lab.filesystem import STATE
from tests.lab.world import PROGRAMS, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.process import Process

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]

# argv: the datagram in hexadecimal, then what kind of descriptors to send along
ASK = """
import array, contextlib, fcntl, os, socket, struct, sys
def memory(seals, size=100):
    fd = os.memfd_create("ad", os.MFD_ALLOW_SEALING)
    os.truncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd
KINDS = {
    "file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "pipe": lambda: os.pipe()[0],
    "open": lambda: memory(0),
    "sealed": lambda: memory(15),
    "large": lambda: memory(15, 100 << 20),
    "mem": lambda: os.open("/proc/self/mem", os.O_RDONLY),
}
fds = [KINDS[kind]() for kind in sys.argv[2:]]
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(30)
s.connect("/run/lark/run.sock")
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
data = bytes.fromhex(sys.argv[1])
if data or rights:
    with contextlib.suppress(BrokenPipeError):  # the refusal came before the question
        s.sendmsg([data], rights)
try:
    answer = s.recv(2000)
except ConnectionResetError:  # told once, of a question that was not read; the answer is behind it
    answer = s.recv(2000)
print(struct.unpack_from("<H", answer, 6)[0] if answer else -1, answer[8:].decode())
"""
CROWD = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
crowd = []
for _ in range(int(sys.argv[1])):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect("/run/lark/run.sock")
    crowd.append(s)
print("there", flush=True)
last = crowd[-1]
last.settimeout(20)
print(last.recv(2000)[8:].decode(), flush=True)
time.sleep(1000)
"""
LARK_RUN = "/run/lark-bin/lark-run"


def head(version: int = 1, flags: int = 0) -> bytes:
    return b"LARK" + struct.pack("<HH", version, flags)


def part(kind: int, payload: bytes) -> bytes:
    return struct.pack("<HH", kind, len(payload)) + payload


@pytest.fixture(scope="module")
def worker() -> Iterator[tuple[Lab, Process]]:
    with Lab() as lab:
        # the soft limit of open files that a shell gives, and a service without LimitNOFILE
        lab.path(STATE / "agent.toml").write_text(QUICK)
        command = [str(PROGRAMS / "lark-agent"), "run", "--config", str(STATE / "agent.toml")]
        yield lab, lab.service(["prlimit", "--nofile=1024:8192", *command])


def descriptors(agent: Process) -> int:
    return len(list(Path(f"/proc/{agent.pid}/fd").iterdir()))


def ask(lab: Lab, data: bytes, *kinds: str) -> tuple[int, str]:
    words = lab.run(python(ASK, data.hex(), *kinds), user="alice").stdout
    status, _, text = words.strip().partition(" ")
    return int(status), text


ODD: list[tuple[bytes, tuple[str, ...], str]] = [
    (b"\0" * 100, (), "does not start with LARK"),
    (b"LARK", (), "shorter than its header"),
    (b"x" * 20000, (), "over 16384 bytes"),
    (head(version=2), (), "has version 2"),
    (head(flags=7), (), "flags 7"),
    (head() + b"\1", (), "ends inside a field"),
    (head() + struct.pack("<HH", 1, 500), (), "longer than the request"),
    (head() + part(99, b"?"), (), "unknown type 99"),
    (head() + part(3, b"no equals sign"), (), "not NAME=value"),
    (head() + part(4, b"j"), (), "names 1 files and carries 0"),
    (head(), ("sealed",), "names 0 files and carries 1"),
    (head() + part(4, b"j") * 2, ("sealed", "sealed"), "repeated file kind"),
    (head() + part(4, b"x"), ("sealed",), "unknown or repeated file kind"),
    (head() + part(4, b"j"), ("file",), "not sealed memory"),
    (head() + part(4, b"j"), ("pipe",), "not sealed memory"),
    (head() + part(4, b"j"), ("mem",), "not sealed memory"),
    (head() + part(4, b"j"), ("open",), "can still change"),
    (head() + part(4, b"j"), ("large",), "over 1048576 bytes"),
    (head() + part(4, b"j"), ("sealed",) * 200, "over 4 descriptors"),
    (head() + part(4, b"j"), ("sealed",), "has no line of the form"),
    (head() + part(3, b"profile=../../etc"), (), "no network profile '../../etc'"),
]


def test_odd_requests_are_refused(worker: tuple[Lab, Process]) -> None:
    """Each malformed request is answered with its own reason; no descriptor stays open."""
    lab, agent = worker
    before = descriptors(agent)
    for data, kinds, reason in ODD:
        status, text = ask(lab, data, *kinds)
        assert reason in text
        assert status == (2 if "profile" in reason else 1), text
    until(lambda: descriptors(agent) <= before, "descriptors to be closed")
    assert lab.job(["true"], user="bob").status == 0
    assert "Traceback" not in agent.stderr


def test_silence_is_cut(worker: tuple[Lab, Process]) -> None:
    """Who connects and says nothing is told so and cut after five seconds."""
    lab, _ = worker
    assert ask(lab, b"") == (1, "no request within 5 s")


def test_a_crowd_of_one_user_leaves_room_for_others(worker: tuple[Lab, Process]) -> None:
    """Half a thousand silent connections do not keep another user's job waiting."""
    lab, _ = worker
    crowd = lab.start(python(CROWD, "500"), user="alice")
    until(lambda: "there" in crowd.stdout, "a crowd")
    done = lab.job(["true"], user="bob")
    assert done.status == 0
    assert done.seconds < 4, "bob waited for alice's connections to be cut"
    crowd.signal(9)


def test_one_user_has_a_limit(worker: tuple[Lab, Process]) -> None:
    """The 1025th connection of a user is refused at once, and bob still gets his network."""
    lab, agent = worker
    crowd = lab.start(python(CROWD, "1025"), user="alice")
    until(lambda: "there" in crowd.stdout, "a crowd")
    done = lab.job(["true"], user="bob")
    assert done.status == 0
    until(lambda: len(crowd.stdout.splitlines()) > 1, "an answer")
    assert "too many jobs of yours ask" in crowd.stdout
    assert "cannot accept" not in agent.stderr
    crowd.signal(9)


def test_an_agent_out_of_descriptors_recovers(lab: Lab) -> None:
    """With the hard limit used up by alice, the agent does not spin, and bob gets his turn."""
    lab.path(STATE / "agent.toml").write_text(QUICK)
    command = [str(PROGRAMS / "lark-agent"), "run", "--config", str(STATE / "agent.toml")]
    agent = lab.service(["prlimit", "--nofile=200:200", *command])
    crowd = lab.start(python(CROWD, "400"), user="alice")
    until(lambda: "there" in crowd.stdout, "a crowd")
    until(lambda: "cannot accept" in agent.stderr, "a full table")
    assert lab.job(["true"], user="bob").status == 0, agent.stderr
    assert agent.stderr.count("cannot accept") < 50
    with contextlib.suppress(ProcessLookupError):  # it may have been cut and gone already
        crowd.signal(9)


def test_root_is_refused(worker: tuple[Lab, Process]) -> None:
    """No sandbox can hold root, so root gets none."""
    lab, _ = worker
    done = lab.run([LARK_RUN, "true"], check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    assert "root cannot be held in a sandbox; run the job as its user" in done.stderr


def test_one_job_one_sandbox(worker: tuple[Lab, Process]) -> None:
    """A job that asks again, perhaps for a laxer plan, is refused: it is in a sandbox already."""
    lab, _ = worker
    done = lab.job([LARK_RUN, "--profile", "nat", "true"])
    assert done.status == 125
    assert "it is in a sandbox already" in done.stderr


def test_a_namespace_of_ones_own_is_refused(worker: tuple[Lab, Process]) -> None:
    """A user who is root in a namespace of their own making gets no sandbox from there."""
    lab, _ = worker
    done = lab.run(["unshare", "-Urn", *python(ASK, head().hex())], user="alice")
    assert done.stdout.startswith("2 the caller is not in the worker's own network")


def test_a_caller_that_dies_at_once_is_no_event(worker: tuple[Lab, Process]) -> None:
    """Requests whose senders are gone before they are read cost a line in the log, no traceback."""
    lab, agent = worker
    before = descriptors(agent)
    hit_and_run = f"""
import os, socket
for _ in range(50):
    pid = os.fork()
    if pid == 0:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        s.connect("/run/lark/run.sock")
        s.send(bytes.fromhex("{head().hex()}"))
        os._exit(0)
    os.waitpid(pid, 0)
"""
    lab.run(python(hit_and_run), user="alice")
    assert lab.job(["true"], user="bob").status == 0
    until(lambda: descriptors(agent) <= before, "descriptors to be closed")
    assert "Traceback" not in agent.stderr


NO_ADS: dict[str, Any] = {
    "a directory": "/etc",
    "not there": "/nonexistent",
    "a device": "/dev/zero",
}


@pytest.mark.parametrize("path", NO_ADS.values(), ids=NO_ADS)
def test_an_ad_that_cannot_be_read(worker: tuple[Lab, Process], path: str) -> None:
    """A job does not run without its ad, which may have meant a stricter plan: 125, one line."""
    lab, _ = worker
    done = lab.job(["echo", "ran"], env={"_CONDOR_JOB_AD": path})
    assert (done.status, done.stdout) == (125, "")
    assert len(done.stderr.splitlines()) == 1
    assert path in done.stderr


def test_an_ad_that_is_a_fifo(worker: tuple[Lab, Process]) -> None:
    """Nobody waits for a fifo's writer."""
    lab, _ = worker
    lab.run(["mkfifo", "/run/lab/home/alice/fifo"], user="alice")
    done = lab.job(["echo", "ran"], env={"_CONDOR_JOB_AD": "/run/lab/home/alice/fifo"}, timeout=20)
    assert (done.status, done.stdout) == (125, "")
    assert "no regular file" in done.stderr


def test_an_ad_of_100_megabytes(worker: tuple[Lab, Process]) -> None:
    """It is refused by its size, not read."""
    lab, _ = worker
    lab.run(["truncate", "-s", "100M", "/run/lab/home/alice/huge"], user="alice")
    done = lab.job(["echo", "ran"], env={"_CONDOR_JOB_AD": "/run/lab/home/alice/huge"}, timeout=20)
    assert (done.status, done.stdout) == (125, "")
    assert "over 1 MiB" in done.stderr


def test_an_ad_that_is_none(worker: tuple[Lab, Process]) -> None:
    """Text that is no ad, and bytes that are no text, are refused by name."""
    lab, _ = worker
    done = lab.job(["echo", "ran"], ad="to be, or not to be")
    assert (done.status, done.stdout) == (125, "")
    assert "the job ad has no line of the form 'Name = value'" in done.stderr
    assert done.wrapper_error == done.stderr


@pytest.mark.parametrize("ad", ["", "RequestCpus = 1\n"], ids=["empty", "nameless"])
def test_an_ad_without_attributes(worker: tuple[Lab, Process], ad: str) -> None:
    """A job without a name runs under a stand-in: its slot and its user."""
    lab, _ = worker
    handle = lab.start_job(["true"], ad=ad)
    assert handle.result().status == 0
    number = handle.job_id.partition("#")[2].partition(".")[0]
    record = final(lab, f"slot:slot1_{number}")
    assert (record.job.owner, record.job.scheduler) == ("alice", "htcondor")
