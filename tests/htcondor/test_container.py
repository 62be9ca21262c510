"""Container jobs of a real pool, where the suite has a runtime for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.htcondor.jobs import EXECUTING

if TYPE_CHECKING:
    from tests.htcondor.pool import Pool

pytestmark = [pytest.mark.root, pytest.mark.htcondor]

IMAGE = """
mkdir -p image/etc image/tmp image/var/tmp image/proc image/dev image/sys image/root image/home
touch image/etc/resolv.conf image/etc/hosts image/etc/group image/etc/localtime
echo root:x:0:0:::: > image/etc/passwd
for program in /bin/sh /usr/bin/readlink /usr/bin/cat; do
  cp --parents -L $program $(ldd $program | grep -o '/[^ ]*') image
done
echo alpine > image/etc/os-release
"""


@pytest.fixture(scope="module")
def image(pool: Pool) -> str:
    """Give alice an image."""
    if not pool.machine.path("/usr/bin/apptainer").exists():
        pytest.skip("this suite of Debian has no apptainer")
    # `singularity test` wants more of an image than this one is
    pool.configure("70-test", "SINGULARITY_RUN_TEST_BEFORE_JOB = false\n")
    pool.run(["sh", "-e", "-c", IMAGE], user="alice", cwd="/home/alice")
    return "/home/alice/image"


def test_a_container_job_is_in_its_sandbox(pool: Pool, image: str) -> None:
    """The runtime is started by the wrapper: what runs in the container has the job's network."""
    job = pool.submit(
        "readlink /proc/self/ns/net; cat /etc/os-release",
        universe="container",
        container_image=image,
    )
    network, system = job.ended().stdout.split()
    assert system == "alpine"
    assert network != pool.host()
    assert job.record()["final"]


def test_no_shell_into_a_container_is_outside_of_its_sandbox(pool: Pool, image: str) -> None:
    """The starter would start it in the worker's network, as root; so it finds no program for it.

    Without our file the shell answers with the worker's network (25.14.1).
    """
    job = pool.submit(
        "while :; do read -t 1 line; done < /dev/zero",
        universe="container",
        container_image=image,
    )
    job.await_event(EXECUTING)
    done = pool.run(
        ["condor_ssh_to_job", "-auto-retry", job.number, "readlink", "/proc/self/ns/net"],
        user="alice", check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stdout == "", f"the worker's network is {pool.host()}"
    pool.run(["condor_rm", job.number])
