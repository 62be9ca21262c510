"""lark-enter in the hands of a user who execs it directly, with everything of their own choosing.

None of it enters a namespace or runs anything: a command that ran would leave its mark.
"""

from __future__ import annotations

import ctypes
import functools
import os
import random
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import LIBC
from tests.hooks.conftest import USER
from tests.hooks.fake_agent import RUN_SOCKET, FakeAgent, granted

if TYPE_CHECKING:
    import subprocess

    from tests.hooks.conftest import Worker

pytestmark = pytest.mark.root

SEQPACKET = socket.SOCK_SEQPACKET


def state(fd: int) -> str:
    """Return the second argument as lark-run would give it."""
    return f"{fd},0,8388608,0,{os.getpid()},0"


def enter(worker: Worker, fd: int, *extra: int) -> subprocess.CompletedProcess[bytes]:
    """Exec lark-enter as a user, with a descriptor in the place of the agent's socket."""
    return worker.execute(
        str(worker.enter), state(fd), *worker.mark, env={"+A": "1"}, pass_fds=[fd, *extra]
    )


def test_control_a_true_connection_enters(worker: Worker) -> None:
    """The way these tests call it does work with the true agent, so refusals mean something."""
    with worker.agent(), socket.socket(socket.AF_UNIX, SEQPACKET) as ours:
        ours.connect(str(RUN_SOCKET))
        ours.send(b"LARK\1\0\0\0")
        assert enter(worker, ours.fileno()).returncode == 0
    assert worker.marker.exists()


@pytest.mark.parametrize("kind", [SEQPACKET, socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_own_socketpair_is_refused(worker: Worker, kind: socket.SocketKind) -> None:
    """Also when root made it: it has no name."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs, Path("/proc/thread-self/ns/net").open("rb") as host:
        for fd in (worker.namespace, host.fileno()):
            socket.send_fds(theirs, [granted()], [fd])
            worker.assert_refused(enter(worker, ours.fileno()), "not a connection to /run/lark")


@pytest.mark.parametrize("path", ["/run/lark/run.sock2", "/run/lark/run", "/run/other.sock"])
@pytest.mark.parametrize("uid", [0, USER])
def test_listener_at_another_path_is_refused(worker: Worker, path: str, uid: int) -> None:
    """Even if root listens there: only one name is the agent's."""
    agent = FakeAgent(granted(), [worker.namespace], path=Path(path), listener_uid=uid)
    with agent, socket.socket(socket.AF_UNIX, SEQPACKET) as ours:
        ours.connect(path)
        ours.send(b"LARK\1\0\0\0")
        worker.assert_refused(
            enter(worker, ours.fileno()), "not a connection to /run/lark/run.sock"
        )


def test_stream_listener_under_the_right_name_is_refused(worker: Worker) -> None:
    """The agent speaks datagrams."""
    RUN_SOCKET.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as ours:
        listener.bind(str(RUN_SOCKET))
        listener.listen()
        ours.connect(str(RUN_SOCKET))
        with listener.accept()[0] as theirs:
            socket.send_fds(theirs, [granted()], [worker.namespace])
            worker.assert_refused(enter(worker, ours.fileno()), "not a connection to")


def test_other_descriptors_are_refused(worker: Worker) -> None:
    """Namespaces, files, terminals, unconnected and internet sockets, closed numbers."""
    with (
        Path("/proc/thread-self/ns/net").open("rb") as host,
        socket.socket(socket.AF_UNIX, SEQPACKET) as unconnected,
        socket.socket() as internet,
    ):
        for fd in (host.fileno(), worker.namespace, unconnected.fileno(), internet.fileno(), 0, 2):
            worker.assert_refused(enter(worker, fd), f"descriptor {fd} is not a connection")
    closed = worker.execute(str(worker.enter), state(999), *worker.mark, env={})
    worker.assert_refused(closed, "descriptor 999 is not a connection")


LOOKALIKE = """
import ctypes, os, socket, sys
run, *mark, namespace, where = sys.argv[1:]
here, there = socket.socketpair()
if os.fork() == 0:
    here.close()
    uid, gid = os.getuid(), os.getgid()
    assert ctypes.CDLL(None).unshare(0x10000000 | 0x20000) == 0
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
    open("/proc/self/gid_map", "w").write(f"0 {gid} 1")
    assert ctypes.CDLL(None).mount(b"none", b"/run/lark", b"tmpfs", 0, None) == 0
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("/run/lark/run.sock")
    listener.listen()
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect("/run/lark/run.sock")
    server = listener.accept()[0]
    socket.send_fds(server, [b"LARK" + bytes([1, 0, 0, 0, 0, 0, 0, 0])], [int(namespace)])
    if where == "outside":
        socket.send_fds(there, [b"x"], [client.fileno()])
        there.recv(1)
        os._exit(0)
    there.close()
else:
    there.close()
    _, fds, _, _ = socket.recv_fds(here, 1, 1)
    if not fds:
        _, status = os.wait()
        os._exit(os.waitstatus_to_exitcode(status))
    client = socket.socket(fileno=fds[0])
client.set_inheritable(True)
os.execve(run, [run, f"{client.fileno()},0,8388608,0,1,0", *mark], {})
"""


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        # seen from outside its user namespace the listener is the user, not root
        ("outside", f"is user {USER}, not root"),
        # inside it is root, but its capability is worth nothing against a namespace of the host
        ("inside", "cannot enter the sandbox: Operation not permitted"),
    ],
)
def test_lookalike_in_a_user_namespace_is_refused(worker: Worker, where: str, reason: str) -> None:
    """A user can be root in a user namespace, and put a socket of the right name over /run/lark."""
    Path("/run/lark").mkdir(exist_ok=True)
    done = worker.execute(
        *("/usr/bin/python3", "-I", "-c", LOOKALIKE, str(worker.enter), *worker.mark),
        *(str(worker.namespace), where),
        pass_fds=[worker.namespace],
    )
    worker.assert_refused(done, reason)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("",),
        ("3,0,0,0,0",),
        ("3,0,0,0,0,0,0",),
        ("-1,0,0,0,0,0",),
        (" 3,0,0,0,0,0",),
        ("3,0,0,0,0,0x",),
        ("3,,0,0,0,0",),
        ("4294967299,0,0,0,0,0",),
        ("9" * 10_000,),
    ],
)
def test_malformed_state_is_refused(worker: Worker, arguments: tuple[str, ...]) -> None:
    """What lark-run would never write."""
    command = (*arguments, *worker.mark) if arguments else ()
    done = worker.execute(str(worker.enter), *command, env={})
    worker.assert_refused(done, "is started by lark-run only")


def test_unguarded_environment_is_refused(worker: Worker) -> None:
    """An environment that did not come from lark-run may lack what glibc removes."""
    with worker.agent(), socket.socket(socket.AF_UNIX, SEQPACKET) as ours:
        ours.connect(str(RUN_SOCKET))
        ours.send(b"LARK\1\0\0\0")
        done = worker.execute(
            *(str(worker.enter), state(ours.fileno()), *worker.mark),
            env={"HOME": "/"},
            pass_fds=[ours.fileno()],
        )
        worker.assert_refused(done, "is started by lark-run only")


def test_no_arguments_at_all_is_refused(worker: Worker) -> None:
    """Not even a name: older kernels pass an empty argument list on."""
    nothing = (ctypes.c_char_p * 1)(None)
    for binary in (worker.run, worker.enter):
        become = functools.partial(LIBC.execve, str(binary).encode(), nothing, nothing)
        done = worker.execute("/bin/true", before=become)
        worker.assert_refused(done)


def test_random_arguments_are_refused(worker: Worker) -> None:
    """Three hundred from a fixed seed, with descriptors of the host within reach."""
    chance = random.Random(2015)
    with Path("/proc/thread-self/ns/net").open("rb") as host:
        for _ in range(300):
            numbers = [str(chance.choice((0, 1, 2, 3, host.fileno(), 2**31, 2**64, -1)))] + [
                str(chance.randrange(2 ** chance.choice((1, 8, 32, 64)))) for _ in range(5)
            ]
            text = bytearray(",".join(numbers).encode())
            if chance.random() < 0.5:
                text[chance.randrange(len(text))] = chance.randrange(1, 128)
            done = worker.execute(
                *(str(worker.enter), text.decode(), *worker.mark),
                env={"+X": "y"},
                pass_fds=[host.fileno()],
            )
            worker.assert_refused(done)


@pytest.mark.parametrize("values", [f"{2**64 - 1},0,1,0", "0,9999,1,0"])
def test_restored_values_are_limited_by_the_users_own_rights(worker: Worker, values: str) -> None:
    """They are set after the capabilities are gone, so they can do what the user can do anyway."""
    with worker.agent(), socket.socket(socket.AF_UNIX, SEQPACKET) as ours:
        ours.connect(str(RUN_SOCKET))
        ours.send(b"LARK\1\0\0\0")
        done = worker.execute(
            *(str(worker.enter), f"{ours.fileno()},0,{values}", *worker.mark),
            env={},
            pass_fds=[ours.fileno()],
            before=lambda: resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20)),
        )
        worker.assert_refused(done, "cannot restore stack limit and death signal")
