"""Whom the agent takes for the batch system: root's own program, whatever it calls itself.

`tests.lab.launcher` is started as a process of root by other files than a site's: what a user can
have run as root who may use sudo, or who can write where root's programs are.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.agent.launching import Starter, pool
from tests.agent.worker import final, kill, until
from tests.lab.filesystem import LAUNCHERS, STATE, USERS
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.process import Process

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
REAL = LAUNCHERS / "condor_starter"
OTHERS = STATE / "other-launchers"
ALICE = USERS["alice"].uid


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Lab, Process]]:
    with Lab() as made:
        listed = f'trusted_launchers = ["condor_starter", "{OTHERS}/listed/condor_starter"]\n'
        yield made, made.agent(listed + pool())


def place(lab: Lab, name: str, *, program: str = "condor_starter") -> Path:
    """Copy the program to a directory of its own; returns where the test finds it."""
    there = lab.path(OTHERS / name)
    there.mkdir(parents=True)
    there.chmod(0o755)
    shutil.copy(lab.path(REAL), there / program)
    return there / program


def verified(lab: Lab, program: str) -> bool:
    """Run a job by a launcher and tell whether its record says that the batch system started it."""
    starter = Starter(lab, program=program)
    done = starter.run(["true"]).wait()
    assert done.status == 0, done.stderr
    starter.end()
    return final(lab, starter.job_id).job.verified


def test_the_installed_program_is_believed(world: tuple[Lab, Process]) -> None:
    """The rest of this page would say nothing otherwise."""
    assert verified(world[0], "condor_starter")


def test_a_link_gives_no_other_program_the_name(world: tuple[Lab, Process]) -> None:
    """As `ln -s /usr/bin/sudo condor_starter; ./condor_starter -u alice lark-run …` would try."""
    lab, _ = world
    there = lab.path(OTHERS / "link")
    there.mkdir(parents=True)
    (there / "condor_starter").symlink_to("/usr/bin/python3")
    starter = Starter(lab, program=f"{OTHERS}/link/condor_starter")
    name = lab.path(f"/proc/{starter.process.pid_inside}/comm").read_text()
    assert name == "condor_starter\n"
    told = starter.prepare()
    assert told is not None
    assert "only what the batch system starts" in told[1]
    assert starter.run(["true"]).wait().status == 0
    assert not final(lab, starter.job_id).job.verified
    starter.end()


@pytest.mark.parametrize("whose", ["file", "directory", "above", "writable", "writable-above"])
def test_what_others_than_root_could_have_put_there(world: tuple[Lab, Process], whose: str) -> None:
    """A file, or a directory on its way, of a user's or that others may write."""
    lab, agent = world
    file = place(lab, f"{whose}/bin")
    match whose:
        case "file":
            os.chown(file, ALICE, ALICE)
        case "directory":  # with a hard link in it, say
            os.chown(file.parent, ALICE, ALICE)
        case "above":
            os.chown(file.parent.parent, ALICE, ALICE)
        case "writable":
            file.chmod(0o775)
        case _:
            file.parent.parent.chmod(0o1777)
    program = f"{OTHERS}/{whose}/bin/condor_starter"
    assert not verified(lab, program)
    until(lambda: f"program={program}" in agent.stderr, "a word in the log")


def test_a_path_in_the_configuration_is_believed_whoever_owns_it(
    world: tuple[Lab, Process],
) -> None:
    """Where the batch system is installed under its own account; and another path is not."""
    lab, _ = world
    for name in ("listed", "unlisted"):
        os.chown(place(lab, name), ALICE, ALICE)
    assert verified(lab, f"{OTHERS}/listed/condor_starter")
    assert not verified(lab, f"{OTHERS}/unlisted/condor_starter")


def test_a_distributions_variant_is_believed(world: tuple[Lab, Process]) -> None:
    """Debian's slurmstepd is a file slurmstepd-wlm; a longer name is another program's."""
    lab, _ = world
    place(lab, "variant", program="condor_starter-wlm")
    place(lab, "longer", program="condor_starters")
    assert verified(lab, f"{OTHERS}/variant/condor_starter-wlm")
    assert not verified(lab, f"{OTHERS}/longer/condor_starters")


def test_an_upgrade_under_a_running_launcher(lab: Lab) -> None:
    """Its file is gone, also when the next agent comes; its jobs stay one job, and verified."""
    agent = lab.agent(pool())
    file = place(lab, "upgraded")
    starter = Starter(lab, program=f"{OTHERS}/upgraded/condor_starter")
    job = starter.run(["sleep", "100"])
    first = job.network
    shutil.copy(file, file.with_name("new"))
    file.with_name("new").rename(file)
    kill(agent)
    lab.agent(pool())
    shell = starter.run(["readlink", "/proc/self/ns/net"])
    assert shell.wait().stdout.strip() == first
    job.signal()
    job.wait()
    assert final(lab, starter.job_id).job.verified
