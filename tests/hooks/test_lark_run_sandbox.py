"""What a wrapped job finds in its sandbox, and that the worker does not notice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import LIBC, check, mount
from tests.hooks.fake_agent import granted

if TYPE_CHECKING:
    from tests.hooks.conftest import Worker

pytestmark = pytest.mark.root

BIND_RESOLVER, STAY = 1, 2
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096


def output(worker: Worker, *command: str, flags: int = 0) -> str:
    """Return what a wrapped command prints."""
    with worker.agent(granted(flags)):
        done = worker.wrapped(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_job_sees_only_the_sandboxs_interfaces(worker: Worker) -> None:
    """In /sys as over netlink and in /proc."""
    assert output(worker, "/bin/ls", "/sys/class/net").split() == ["inside0", "inside1", "lo"]
    links = output(worker, "ip", "-o", "link")
    assert "inside0" in links
    assert "outside0" not in links
    assert "outside0" not in output(worker, "/bin/cat", "/proc/net/dev")
    assert Path("/sys/class/net/outside0").exists()


def test_control_groups_stay_visible(worker: Worker) -> None:
    """What the host has mounted below /sys for jobs is there in the new /sys."""
    held = "/sys/fs/cgroup/cgroup.controllers"
    assert output(worker, "/bin/cat", held) == Path(held).read_text()


def test_nested_control_groups_stay_visible(worker: Worker) -> None:
    """A hybrid hierarchy is a tree of mounts; all of it is carried over."""
    check(LIBC.umount2(b"/sys/fs/cgroup", 0), "umount")
    mount("none", "/sys/fs/cgroup", "tmpfs")
    Path("/sys/fs/cgroup/unified").mkdir()
    mount("none", "/sys/fs/cgroup/unified", "cgroup2")
    held = "/sys/fs/cgroup/unified/cgroup.controllers"
    assert output(worker, "/bin/cat", held) == Path(held).read_text()


def test_missing_mounts_below_sys_are_no_error(worker: Worker) -> None:
    """A worker without control groups runs jobs all the same."""
    check(LIBC.umount2(b"/sys/fs/cgroup", 0), "umount")
    assert output(worker, "/bin/ls", "/sys/fs/cgroup") == ""


@pytest.mark.parametrize("kind", ["ro", "rw"])
def test_sys_stays_as_writable_as_it_was(worker: Worker, kind: str) -> None:
    """A worker that mounts /sys read-only does so for a reason."""
    if kind == "ro":
        flags = MS_REMOUNT | MS_BIND | MS_RDONLY
        check(LIBC.mount(None, b"/sys", None, flags, None), "remount /sys")
    mounts = output(worker, "/bin/cat", "/proc/self/mounts").splitlines()
    last = [line.split()[3].split(",") for line in mounts if line.split()[1] == "/sys"][-1]
    assert kind in last


def test_other_mounts_of_the_host_are_the_same(worker: Worker) -> None:
    """The job sees the file systems it would see without the wrapper."""
    seen = output(worker, "/bin/cat", "/proc/self/mounts").splitlines()
    here = Path("/proc/thread-self/mounts").read_text().splitlines()
    assert [line for line in here if line not in seen] == []
    assert {line.split()[1] for line in seen[len(here) :]} == {"/sys", "/sys/fs/cgroup"}


def fresh_etc() -> Path:
    """Cover /etc, and prepare the sandboxes' resolver file."""
    mount("none", "/etc", "tmpfs")
    Path("/run/lark").mkdir(exist_ok=True)
    Path("/run/lark/resolv.conf").write_text("nameserver 192.0.2.1\n")
    return Path("/etc/resolv.conf")


def test_resolver_is_replaced_where_the_agent_says_so(worker: Worker) -> None:
    """With the flag the job reads the agent's file, without it the host's, which never changes."""
    file = fresh_etc()
    file.write_text("nameserver 127.0.0.53\n")
    assert output(worker, "/bin/cat", str(file)) == "nameserver 127.0.0.53\n"
    assert output(worker, "/bin/cat", str(file), flags=BIND_RESOLVER) == "nameserver 192.0.2.1\n"
    assert file.read_text() == "nameserver 127.0.0.53\n"


def test_resolver_behind_a_symlink_is_replaced(worker: Worker) -> None:
    """systemd-resolved makes /etc/resolv.conf a relative link into /run."""
    file = fresh_etc()
    stub = Path("/run/resolve/stub-resolv.conf")
    stub.parent.mkdir()
    stub.write_text("nameserver 127.0.0.53\n")
    file.symlink_to("../run/resolve/stub-resolv.conf")
    assert output(worker, "/bin/cat", str(file), flags=BIND_RESOLVER) == "nameserver 192.0.2.1\n"
    assert stub.read_text() == "nameserver 127.0.0.53\n"


def test_a_sandbox_may_have_resolvers_of_its_own(worker: Worker) -> None:
    """With a number in the flags' upper half the job reads the file of that slot."""
    file = fresh_etc()
    file.write_text("nameserver 127.0.0.53\n")
    for slot in (0, 4095):
        Path(f"/run/lark/resolv.conf.{slot}").write_text(f"nameserver 192.0.2.{slot % 250}\n")
        flags = BIND_RESOLVER | (slot + 1) << 16
        read = output(worker, "/bin/cat", str(file), flags=flags)
        assert read == f"nameserver 192.0.2.{slot % 250}\n"


def test_worker_without_resolver_file_runs_jobs(worker: Worker) -> None:
    """There is nothing to replace then."""
    fresh_etc()
    assert output(worker, "/bin/echo", "ran", flags=BIND_RESOLVER) == "ran\n"


def test_missing_resolver_of_the_agent_refuses_the_job(worker: Worker) -> None:
    """A job whose names would be looked up at an address it cannot reach does not start."""
    file = fresh_etc()
    file.write_text("nameserver 127.0.0.53\n")
    Path("/run/lark/resolv.conf").unlink()
    with worker.agent(granted(BIND_RESOLVER)):
        worker.assert_refused(worker.wrapped(*worker.mark), "cannot mount /run/lark/resolv.conf")


def test_hosts_mount_table_does_not_change(worker: Worker) -> None:
    """Not while the job runs and not after, although the host's mounts are shared."""
    fresh_etc().write_text("")
    before = Path("/proc/thread-self/mountinfo").read_text()
    with (
        worker.agent(granted(BIND_RESOLVER)),
        worker.start(str(worker.run), "/bin/sh", "-c", "echo up; read line") as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        during = Path("/proc/thread-self/mountinfo").read_text()
        process.communicate(b"\n", timeout=30)
    assert during == before == Path("/proc/thread-self/mountinfo").read_text()


def test_later_mounts_of_the_host_arrive(worker: Worker) -> None:
    """CVMFS and autofs mount on demand: the running job must see it."""
    late = Path("/run/late")
    late.mkdir()
    script = f"echo up; read line; cat {late}/file"
    with (
        worker.agent(),
        worker.start(str(worker.run), "/bin/sh", "-c", script) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        mount("none", str(late), "tmpfs")
        (late / "file").write_text("arrived")
        out, _ = process.communicate(b"\n", timeout=30)
    assert out == b"arrived"


ESCAPE = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def tried(result):
    return "done" if result == 0 else errno.errorcode[ctypes.get_errno()]
host = int(sys.argv[1])
print(tried(libc.setns(host, 0)), tried(libc.umount2(b"/sys", 2)))
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x20000
assert libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0
print(tried(libc.setns(host, 0)), tried(libc.umount2(b"/sys", 2)))
"""


def test_job_cannot_undo_its_sandbox(worker: Worker) -> None:
    """Neither a descriptor of the host's network nor being root in a user namespace helps."""
    with worker.agent(), Path("/proc/thread-self/ns/net").open("rb") as host:
        done = worker.execute(
            str(worker.run),
            *("/usr/bin/python3", "-I", "-S", "-c", ESCAPE, str(host.fileno())),
            pass_fds=[host.fileno()],
        )
    assert done.stdout.decode().split() == ["EPERM", "EPERM", "EPERM", "EINVAL"], done.stderr


def test_nothing_of_the_wrapper_remains(worker: Worker) -> None:
    """The job is its starter's child, has no child, and the agent was told nothing more."""
    with (
        worker.agent() as agent,
        worker.start(str(worker.run), "/bin/sh", "-c", "echo up; read line") as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        proc = Path(f"/proc/{process.pid}")
        assert (proc / "comm").read_text() == "sh\n"
        assert f"\nPPid:\t{os.getpid()}\n" in (proc / "status").read_text()
        assert (proc / "task" / proc.name / "children").read_text() == ""
        assert agent.notices == []
        process.communicate(b"\n", timeout=30)


def test_job_may_stay_in_the_workers_network(worker: Worker) -> None:
    """Where the agent says so nothing is entered: the same network and the same mounts."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    here = [str(Path(f"/proc/thread-self/ns/{kind}").readlink()) for kind in ("net", "mnt")]
    try:
        with worker.agent(granted(STAY), [own]):
            done = worker.wrapped("/bin/readlink", "/proc/self/ns/net", "/proc/self/ns/mnt")
    finally:
        os.close(own)
    assert done.stdout.decode().split() == here, done.stderr


def test_job_that_stays_has_no_capability(worker: Worker) -> None:
    """What opens sandboxes is dropped where none is opened, too."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with worker.agent(granted(STAY), [own]):
            done = worker.wrapped("/bin/grep", "-E", "^Cap(Prm|Eff|Amb)", "/proc/self/status")
    finally:
        os.close(own)
    assert {line.split()[1] for line in done.stdout.decode().splitlines()} == {"0" * 16}


def test_job_stays_in_no_other_network_than_its_own(worker: Worker) -> None:
    """A namespace that is not the job's own, granted with the word to stay, is a mistake."""
    with worker.agent(granted(STAY)):
        done = worker.wrapped(*worker.mark)
    assert done.returncode == 125
    assert b"granted another network than the one to stay in" in done.stderr
    assert not worker.marker.exists()
