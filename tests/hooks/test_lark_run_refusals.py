"""A job that gets no sandbox does not run, and user and batch system read why."""

from __future__ import annotations

import os
import random
import stat
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.hooks.conftest import PLAIN_ENVIRONMENT, USER
from tests.hooks.fake_agent import granted, refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.hooks.conftest import Worker

pytestmark = pytest.mark.root

PR_SET_NO_NEW_PRIVS = 38


def test_absent_agent_refuses(worker: Worker) -> None:
    """No socket, and a socket that nobody listens on any more."""
    worker.assert_refused(worker.wrapped(*worker.mark), "no agent at /run/lark/run.sock: No such")
    with worker.agent():
        pass
    worker.assert_refused(worker.wrapped(*worker.mark), "no agent at /run/lark/run.sock: Conn")


@pytest.mark.parametrize("status", [1, 2, 3, 4, 500])
def test_refusal_carries_the_agents_reason(worker: Worker, status: int) -> None:
    """The user reads the agent's words, without what could steer a terminal."""
    reason = "group 'x' is not yours: \x1b[31mred\nline; ask ünïcode"
    with worker.agent(refused(status, reason), []):
        done = worker.wrapped(*worker.mark)
    worker.assert_refused(
        done, "refused by the agent: group 'x' is not yours:  [31mred line; ask ü"
    )


def test_refusal_without_listening_is_read_as_well(worker: Worker) -> None:
    """A busy agent answers and closes at once, before or after the request: the reason arrives."""
    agent = worker.agent(refused(3, "too many"), [])
    agent.listens_first = False
    with agent:
        for _ in range(50):
            worker.assert_refused(worker.wrapped(*worker.mark), "refused by the agent: too many")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (None, "it closed the connection"),
        (b"", "it closed the connection"),
        (b"LARK", "not of this version"),
        (b"lark\1\0\0\0\0\0\0\0", "not of this version"),
        (b"LARK\2\0\0\0\0\0\0\0", "not of this version"),
        (granted() + b"x" * 2000, "not of this version"),
        (granted()[:8], "something else than one namespace"),
        (granted()[:11], "something else than one namespace"),
        (granted() + b"x", "something else than one namespace"),
        (granted(8), "a flag that this lark-run does not know"),
        (granted(1 << 31), "a flag that this lark-run does not know"),
    ],
)
def test_garbage_answer_refuses(worker: Worker, reply: bytes | None, reason: str) -> None:
    """Even with a good namespace beside it."""
    with worker.agent(reply):
        worker.assert_refused(worker.wrapped(*worker.mark), reason)


def test_random_answers_refuse(worker: Worker) -> None:
    """Two hundred damaged grants, from a fixed seed, each with a good namespace: no job runs."""
    chance = random.Random(2015)
    for _ in range(200):
        reply = bytearray(granted())
        for _ in range(chance.randint(1, 4)):
            reply[chance.randrange(8)] = chance.randrange(256)
        reply += chance.randbytes(chance.choice((0, 1, 40, 1100)))
        if reply == granted():
            continue
        with worker.agent(bytes(reply)):
            worker.assert_refused(worker.wrapped(*worker.mark))


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        ((), "something else than one namespace"),
        (("good", "good"), "something else than one namespace"),
        (("good", "good", "good"), "something else than one namespace"),
        (("file",), "granted no network namespace"),
        (("pipe",), "granted no network namespace"),
        (("mnt",), "granted no network namespace"),
        (("user",), "granted no network namespace"),
        (("own",), "granted the network that the job is already in"),
    ],
)
def test_wrong_descriptors_refuse(worker: Worker, kinds: Sequence[str], reason: str) -> None:
    """Only one network namespace, other than the one the job comes from, is a sandbox."""
    read, write = os.pipe()
    own = Path("/proc/thread-self/ns")
    opened = {
        "file": os.open("/etc/hostname", os.O_RDONLY),
        "mnt": os.open(own / "mnt", os.O_RDONLY),
        "user": os.open(own / "user", os.O_RDONLY),
        "own": os.open(own / "net", os.O_RDONLY),
        "pipe": read,
    }
    try:
        descriptors = [opened.get(kind, worker.namespace) for kind in kinds]
        with worker.agent(descriptors=descriptors):
            worker.assert_refused(worker.wrapped(*worker.mark), reason)
    finally:
        for fd in (*opened.values(), write):
            os.close(fd)


def test_failure_after_the_grant_is_told_to_the_agent(worker: Worker) -> None:
    """The agent learns that the sandbox it gave is not used, with the line the user reads."""
    with worker.agent(descriptors=[]) as agent:
        done = worker.wrapped(*worker.mark)
    assert agent.notices == [struct.pack("<4sHH", b"LARK", 1, 125) + done.stderr.rstrip(b"\n")]


def test_agent_that_is_not_root_refuses(worker: Worker) -> None:
    """Somebody else who got hold of the socket's place cannot choose the job's network."""
    agent = worker.agent()
    agent.listener_uid = USER
    with agent:
        done = worker.wrapped(*worker.mark)
    worker.assert_refused(done, f"the agent at /run/lark/run.sock is user {USER}, not root")


def test_missing_capability_refuses(worker: Worker) -> None:
    """An installation without setcap says what to do."""
    os.removexattr(worker.enter, "security.capability")
    with worker.agent():
        done = worker.wrapped(*worker.mark)
    worker.assert_refused(done, "lark-enter has no capability; `setcap cap_sys_admin+ep")


def test_missing_lark_enter_refuses(worker: Worker) -> None:
    """It is looked for beside lark-run and nowhere else."""
    worker.enter.rename(worker.enter.parent / "elsewhere")
    with worker.agent():
        worker.assert_refused(worker.wrapped(*worker.mark), f"cannot start {worker.enter}: No such")


def test_lark_run_is_found_through_a_symlink(worker: Worker) -> None:
    """lark-enter is beside the file itself, not beside the link."""
    link = worker.scratch / "wrapper"
    link.symlink_to(worker.run)
    with worker.agent():
        assert worker.execute(str(link), *worker.mark).returncode == 0
    assert worker.marker.exists()


def test_command_not_found_is_127(worker: Worker) -> None:
    """As a shell or env(1) would report it; the agent learns the status too."""
    with worker.agent() as agent:
        for command in ("/no/such/command", "no-such-command", ""):
            done = worker.wrapped(command)
            assert done.returncode == 127
            assert done.stderr.decode().startswith(f"lark-run: cannot run {command}: No such file")
    assert [struct.unpack_from("<4sHH", n) for n in agent.notices] == [(b"LARK", 1, 127)] * 3


def test_root_gets_the_same_words(worker: Worker) -> None:
    """Also where the capabilities are already gone when the start fails."""
    with worker.agent():
        done = worker.execute(str(worker.run), "/no/such/command", uid=0)
    assert done.returncode == 127
    assert done.stderr.startswith(b"lark-run: cannot run /no/such/command: No such file")


def test_root_that_cannot_drop_its_capabilities_is_refused(worker: Worker) -> None:
    """Without CAP_SETPCAP exec would give root back what lets it leave the sandbox."""
    drop = ("setpriv", "--bounding-set=-setpcap")
    with worker.agent():
        done = worker.execute(*drop, str(worker.run), *worker.mark, uid=0)
    worker.assert_refused(done, "cannot drop the capabilities: ", "CAP_SETPCAP")


@pytest.mark.parametrize("kind", ["not executable", "directory", "no program"])
def test_command_that_cannot_be_executed_is_126(worker: Worker, kind: str) -> None:
    """Found, but the kernel refuses it; the line says why."""
    path = worker.scratch / "command"
    if kind == "directory":
        path.mkdir()
    else:
        path.write_text("neither ELF nor #!")
        path.chmod(0o644 if kind == "not executable" else 0o755)
    with worker.agent() as agent:
        done = worker.wrapped(str(path))
    assert done.returncode == 126
    assert done.stderr.decode().startswith(f"lark-run: cannot run {path}: ")
    assert agent.notices[0][:8] == struct.pack("<4sHH", b"LARK", 1, 126)


def condor(worker: Worker) -> dict[str, str]:
    """Return the environment in which HTCondor starts the wrapper."""
    return {
        **PLAIN_ENVIRONMENT,
        "_CONDOR_WRAPPER_ERROR_FILE": str(worker.scratch / ".wrapper_error"),
        "_CONDOR_SCRATCH_DIR": str(worker.scratch),
    }


def assert_error_file(worker: Worker, line: bytes) -> None:
    """Check what HTCondor's starter, as another user, has to find."""
    file = worker.scratch / ".wrapper_error"
    found = file.stat()
    assert file.read_bytes() == line
    assert stat.S_IMODE(found.st_mode) == 0o644
    assert found.st_uid == USER
    assert stat.S_IMODE(worker.scratch.stat().st_mode) == 0o711


def test_error_file_when_lark_run_refuses(worker: Worker) -> None:
    """Whatever the umask, user condor can read the line through the scratch directory."""
    done = worker.execute(str(worker.run), *worker.mark, env=condor(worker), umask=0o077)
    worker.assert_refused(done, "no agent")
    assert_error_file(worker, done.stderr)


def test_error_file_when_lark_enter_refuses(worker: Worker) -> None:
    """The same from the privileged half, with the user's rights only."""
    with worker.agent(refused(2, "not today"), []):
        done = worker.execute(str(worker.run), *worker.mark, env=condor(worker), umask=0o077)
    worker.assert_refused(done, "not today")
    assert_error_file(worker, done.stderr)


def test_error_file_when_the_command_is_missing(worker: Worker) -> None:
    """The job did not run then either."""
    with worker.agent():
        done = worker.wrapped("/no/such", env=condor(worker))
    assert done.returncode == 127
    assert_error_file(worker, done.stderr)


def test_successful_start_writes_nothing(worker: Worker) -> None:
    """No error file, and the scratch directory stays closed."""
    with worker.agent():
        assert worker.wrapped("/bin/false", env=condor(worker)).returncode == 1
    assert not (worker.scratch / ".wrapper_error").exists()
    assert stat.S_IMODE(worker.scratch.stat().st_mode) == 0o700


@pytest.mark.parametrize("uid", [USER, 0])
def test_error_file_is_written_with_the_users_rights_only(worker: Worker, uid: int) -> None:
    """Neither through a symlink nor into a directory of somebody else."""
    victim = worker.scratch / "victim"
    victim.write_text("precious")
    os.chown(victim, USER, USER)
    place = Path("/run/of-user-2000")
    place.mkdir(mode=0o755)
    os.chown(place, 2000, 2000)
    (worker.scratch / "link").symlink_to(victim)
    for name in (worker.scratch / "link", place / "file"):
        env = {**condor(worker), "_CONDOR_WRAPPER_ERROR_FILE": str(name)}
        with worker.agent(refused(2, "no"), []):
            done = worker.execute(str(worker.run), *worker.mark, env=env, uid=uid)
        worker.assert_refused(done, "refused by the agent: no")
    assert victim.read_text() == "precious"
    assert list(place.iterdir()) == []


def test_status_arrives_when_nobody_reads_the_line(worker: Worker) -> None:
    """A closed pipe as stderr must not turn the refusal into a death by SIGPIPE."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = worker.execute(str(worker.run), *worker.mark, before=lambda: take_stderr(write))
    finally:
        os.close(write)
    assert done.returncode == 125


def take_stderr(fd: int) -> None:
    os.dup2(fd, 2)


def test_capability_set_by_the_tests_is_what_setcap_sets(worker: Worker) -> None:
    """The tests would prove nothing about an installation with another attribute."""
    subprocess.run(["setcap", "cap_sys_admin+ep", str(worker.run)], check=True)
    attribute = "security.capability"
    assert os.getxattr(worker.enter, attribute) == os.getxattr(worker.run, attribute)
