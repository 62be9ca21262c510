"""What sets up condor_ssh_to_job on a real pool: where a user's code in it runs.

The user's code is a library that the job's environment names (LD_AUDIT): every program that is
loaded with it says in which network it is.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.htcondor.conftest import STARTERS, starters_programs
from tests.lab.filesystem import USERS

if TYPE_CHECKING:
    from tests.htcondor.pool import Pool

pytestmark = [pytest.mark.root, pytest.mark.htcondor]

LIBRARY, TOLD = "/home/alice/audit.so", "/home/alice/told"
AUDIT = f"""
#include <stdio.h>
#include <unistd.h>
unsigned la_version(unsigned version)
{{
    char net[64] = "", exe[256] = "";
    FILE *told = fopen("{TOLD}", "a");
    if (readlink("/proc/self/ns/net", net, sizeof net - 1) > 0
        && readlink("/proc/self/exe", exe, sizeof exe - 1) > 0 && told)
        fprintf(told, "%s %s\\n", net, exe);
    if (told)
        fclose(told);
    return version;
}}
"""
JOB = """
readlink /proc/self/ns/net > $THERE.net
until [ -e $THERE.enough ]; do sleep 0.2; done
"""
WHERE = ["readlink", "/proc/self/ns/net"]


@pytest.fixture(scope="module")
def library(pool: Pool) -> None:
    """Put the user's library where their jobs find it."""
    target = pool.machine.path(LIBRARY)
    compiler = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(target)]
    subprocess.run(compiler, input=AUDIT, text=True, check=True, timeout=60)
    os.chown(target, USERS["alice"].uid, USERS["alice"].uid)


class Shelled:
    """A job with the library, and a shell into it."""

    def __init__(self, pool: Pool, name: str) -> None:
        there = f"/home/alice/{name}"
        self._enough = pool.machine.path(f"{there}.enough")
        network = pool.machine.path(f"{there}.net")
        self.job = pool.submit(JOB, environment=f'"LD_AUDIT={LIBRARY} THERE={there}"')
        pool.await_true(lambda: network.exists() and network.read_text().startswith("net:"))
        self.network = network.read_text().strip()
        pool.machine.path(TOLD).unlink()  # what was loaded for the job itself
        command = ["condor_ssh_to_job", "-auto-retry", self.job.number, *WHERE]
        self.shell = pool.run(command, user="alice", check=False)

    def end(self) -> None:
        """Let it end."""
        self._enough.touch()
        assert self.job.ended().status == 0


def loaded(pool: Pool) -> dict[str, set[str]]:
    """Return in which networks the user's code ran since: network → programs."""
    found: dict[str, set[str]] = {}
    for line in pool.machine.path(TOLD).read_text().splitlines():
        network, program = line.split()
        found.setdefault(network, set()).add(Path(program).name)
    return found


@pytest.mark.usefixtures("library")
def test_as_installed_it_runs_in_the_workers_network(pool: Pool) -> None:
    """The control: without our file HTCondor lets the user's code out."""
    pool.configure(STARTERS, "")
    shelled = Shelled(pool, "theirs")
    assert shelled.shell.stdout.split()[-1:] == [shelled.network], shelled.shell.stderr
    assert "ssh-keygen" in loaded(pool)[pool.host()]
    shelled.end()


@pytest.mark.usefixtures("library")
def test_it_runs_in_the_jobs_sandbox(pool: Pool) -> None:
    """Script, ssh-keygen and shell; nothing of the user's anywhere else; and it works."""
    pool.configure(STARTERS, starters_programs(pool))
    shelled = Shelled(pool, "ours")
    assert shelled.shell.stdout.split()[-1:] == [shelled.network], shelled.shell.stderr
    seen = loaded(pool)
    assert set(seen) == {shelled.network}
    assert "ssh-keygen" in seen[shelled.network]
    assert len(pool.records(shelled.job.number)) == 1
    shelled.end()


def test_the_starters_other_programs_are_htcondors(pool: Pool) -> None:
    """A plugin for file transfer is found by the same setting."""
    pool.configure(STARTERS, starters_programs(pool))
    fetched = "http://server.campus.test/bytes/1000"
    job = pool.submit("wc -c < 1000", transfer_input_files=fetched)
    assert job.ended().stdout.split() == ["1000"]
