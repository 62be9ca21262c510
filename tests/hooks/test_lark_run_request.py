"""What lark-run tells the agent (docs/run-socket.md), and its own options."""

from __future__ import annotations

import fcntl
import os
import resource
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from lark_agent import schedulers
from tests.hooks.conftest import PLAIN_ENVIRONMENT, USER

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hooks.conftest import Worker

pytestmark = pytest.mark.root

COMMAND, VARIABLE, OPTION, AD = 1, 2, 3, 4
SEALED = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def test_request_names_the_job(worker: Worker) -> None:
    """argv[0], the batch systems' variables and the options go to the agent; nothing else does."""
    listed = {name: f"word {number}" for number, name in enumerate(schedulers.ENVIRONMENT)}
    listed[schedulers.ENVIRONMENT[-1]] = ""
    options = ["--profile", "none", "--job-id", "j 1", "--group", "g", "--"]
    with worker.agent() as agent:
        done = worker.wrapped(
            *options, "/bin/true", "secret", env={**PLAIN_ENVIRONMENT, "SECRET": "x", **listed}
        )
    assert done.returncode == 0, done.stderr
    assert sorted(agent.requests[0].fields) == sorted(
        [
            (COMMAND, b"/bin/true"),
            *((VARIABLE, f"{name}={value}".encode()) for name, value in listed.items()),
            (OPTION, b"profile=none"),
            (OPTION, b"job-id=j 1"),
            (OPTION, b"group=g"),
        ]
    )


def test_long_command_is_truncated(worker: Worker) -> None:
    """It is for people to read; 1024 bytes are enough."""
    with worker.agent() as agent:
        assert worker.wrapped("/" * 5000 + "bin/true").returncode == 126
    assert agent.requests[0].fields == [(COMMAND, b"/" * 1024)]


def ads(worker: Worker, **content: bytes) -> dict[str, str]:
    """Write ads into the scratch directory and return the environment that names them."""
    env = dict(PLAIN_ENVIRONMENT)
    for kind, text in content.items():
        path = worker.scratch / f".{kind}.ad"
        path.write_bytes(text)
        os.chown(path, USER, USER)
        env[f"_CONDOR_{kind.upper()}_AD"] = str(path)
    return env


def test_ads_arrive_as_sealed_copies(worker: Worker) -> None:
    """The n-th FILE field belongs to the n-th descriptor; nobody can change the copy any more."""
    machine = os.urandom(1 << 20)
    env = ads(worker, job=b'Owner = "alice"\n', machine=machine)
    with worker.agent() as agent:
        assert worker.wrapped("/bin/true", env=env).returncode == 0
        request = agent.requests[0]
        assert [f for f in request.fields if f[0] == AD] == [(AD, b"j"), (AD, b"m")]
        assert len(request.files) == 2
        for fd, text in zip(request.files, (b'Owner = "alice"\n', machine), strict=True):
            assert os.pread(fd, 2 << 20, 0) == text
            assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALED == SEALED
            assert os.fstat(fd).st_size == len(text)
            with pytest.raises(PermissionError):
                os.pwrite(fd, b"x", 0)


@pytest.mark.parametrize(("kind", "letter"), [("job", b"j"), ("machine", b"m")])
def test_one_ad_alone_is_named_by_its_kind(worker: Worker, kind: str, letter: bytes) -> None:
    """An unset variable makes no field; an empty ad is still an ad."""
    with worker.agent() as agent:
        assert worker.wrapped("/bin/true", env=ads(worker, **{kind: b""})).returncode == 0
        assert [f for f in agent.requests[0].fields if f[0] == AD] == [(AD, letter)]
        assert os.fstat(agent.requests[0].files[0]).st_size == 0


def test_jobs_file_size_limit_is_not_in_the_way(worker: Worker) -> None:
    """A job limited to files of no size is not killed by the wrapper's own copy of its ad."""
    env = ads(worker, job=b"x" * 10_000)
    with worker.agent():
        done = worker.execute(
            str(worker.run),
            "/bin/sh",
            "-c",
            "ulimit -f",
            env=env,
            before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY)),
        )
    assert (done.returncode, done.stdout) == (0, b"0\n"), done.stderr


def test_hard_file_size_limit_refuses(worker: Worker) -> None:
    """Where the copy is impossible the user reads why, instead of a death by SIGXFSZ."""
    env = ads(worker, job=b"x" * 10_000)
    with worker.agent():
        done = worker.execute(
            str(worker.run),
            *worker.mark,
            env=env,
            before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        )
    worker.assert_refused(done, "cannot copy $_CONDOR_JOB_AD, ", "it is over the hard limit")


def unreadable_ad(worker: Worker, kind: str) -> Path:
    path = worker.scratch / "ad"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "large":
            path.write_bytes(b"x" * (2 << 20))
        case "one byte over":
            path.write_bytes(b"x" * ((1 << 20) + 1))
        case "forbidden":
            path.write_text("")
            path.chmod(0)
            return path
    if path.exists():
        path.chmod(0o777)
    return path


@pytest.mark.parametrize("variable", ["_CONDOR_JOB_AD", "_CONDOR_MACHINE_AD"])
@pytest.mark.parametrize(
    "kind", ["fifo", "directory", "device", "large", "one byte over", "forbidden", "missing"]
)
def test_ad_that_cannot_be_read_refuses_the_job(worker: Worker, variable: str, kind: str) -> None:
    """Without its ad a job might get a laxer plan, so it does not run; the agent is not asked."""
    path = unreadable_ad(worker, kind)
    with worker.agent() as agent:
        done = worker.wrapped(*worker.mark, env={**PLAIN_ENVIRONMENT, variable: str(path)})
    worker.assert_refused(done, f"cannot read ${variable}, {path}: ")
    assert agent.requests == []


@pytest.mark.parametrize(
    ("arguments", "env", "reason"),
    [
        ((), {}, "no command"),
        (("--profile", "p"), {}, "no command"),
        (("--",), {}, "no command"),
        (("--profile",), {}, "--profile needs a value"),
        (("--nonsense", "x"), {}, "--nonsense is no option"),
        (("-p", "x", "/bin/true"), {}, "-p is no option"),
        (("--group", "g" * 1025, "/bin/true"), {}, "1025 bytes long"),
        (("/bin/true",), {"SLURM_JOB_ID": "1" * 1025}, "SLURM_JOB_ID is 1025 bytes long"),
        (("--profile", "p" * 1000) * 20 + ("/bin/true",), {}, "longer than 16384"),
    ],
)
def test_unusable_arguments_refuse(
    worker: Worker, arguments: tuple[str, ...], env: dict[str, str], reason: str
) -> None:
    """A mistake is named, and never makes a job run in another way than asked."""
    with worker.agent() as agent:
        worker.assert_refused(worker.wrapped(*arguments, env=env), reason)
    assert agent.requests == []


def test_options_of_the_job_are_the_jobs(worker: Worker) -> None:
    """Only what stands before the command is ours."""
    with worker.agent() as agent:
        done = worker.wrapped("/bin/echo", "--profile", "none", "--help")
    assert done.stdout == b"--profile none --help\n"
    assert agent.requests[0].fields == [(COMMAND, b"/bin/echo")]


def test_help_and_version(worker: Worker) -> None:
    """Both go to standard output and need no agent."""
    done = worker.wrapped("--help")
    assert (done.returncode, done.stdout[:15]) == (0, b"usage: lark-run")
    done = worker.wrapped("--version")
    assert done.stdout.decode() == f"lark-run {version('lark-agent')}\n"
