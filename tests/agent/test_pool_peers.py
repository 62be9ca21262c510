"""Jobs of one owner find each other on different workers, and nobody else finds them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.agent.test_isolation import KNOCK, LISTEN
from tests.agent.worker import QUICK, drops, final, python, until
from tests.lab.topology import WORKER, WORKER2
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.jobs import JobHandle

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
PREFIXES = {WORKER.name: "2001:db8:70:1::/112", WORKER2.name: "2001:db8:70:2::/112"}
CONFIG = (
    'worker = "{host}"\ndefault_profile = "split"\n'
    + QUICK
    + """
[profiles.split]
connectivity = "routed"
peers = "owner"
[collector]
address = "198.51.100.10:9620"
[addresses]
routed6 = "{prefix}"
pool = ["2001:db8:70::/48"]
"""
)


@pytest.fixture
def pool() -> Iterator[Lab]:
    """Two workers with a prefix each, and a collector on the campus."""
    first, second = PREFIXES.values()
    with Lab(second=True, delegated=[first], delegated2=[second]) as lab:
        lab.collector('listen = "0.0.0.0:9620"\n', host="campus")
        for host, prefix in PREFIXES.items():
            lab.agent(CONFIG.format(host=host, prefix=prefix), host=host)
        yield lab


def listener(lab: Lab, host: str) -> tuple[JobHandle, str]:
    """Start a job of alice's that listens; returns it and its address."""
    inside = f"/run/lab/home/alice/there-{host}"
    job = lab.start_job(python(LISTEN, inside), host=host)
    until(lab.path(inside).exists, "a job that listens")
    return job, address(lab, job.job_id)


def meet(lab: Lab, job: JobHandle, there: str) -> None:
    """Let jobs of alice's knock until the listener, which then ends, has been reached."""

    def reached() -> bool:
        assert lab.job(python(KNOCK, there)).status == 0
        return "REACHED" in job.starter.stdout

    until(reached, "alice's jobs to meet")
    assert job.result().status == 0


def address(lab: Lab, job_id: str) -> str:
    """Return a job's address, once its record is on the collector."""
    done = ["lark", "--collector", "/run/lark-collector/query.sock", "job", job_id, "--json"]
    until(lambda: lab.run(done, host="campus", check=False).returncode == 0, "a reported job")
    out = lab.run(done, host="campus").stdout
    return out.partition('"ipv6": "')[2].partition('"')[0]


def test_an_owners_jobs_meet_across_workers(pool: Lab) -> None:
    """Alice's job on one worker reaches alice's on the other; bob's does not, on either side."""
    job, there = listener(pool, WORKER2.name)
    strangers = pool.start_job(python(KNOCK, there), user="bob")
    assert "CONNECTED" not in strangers.result().stdout
    assert "REACHED" not in job.starter.stdout
    meet(pool, job, there)
    record = final(pool, strangers.job_id)
    assert set(drops(record)) == {"peer-denied"}
    assert record.usage.sent.packets == 0


def test_an_address_that_nobody_has_is_denied(pool: Lab) -> None:
    """In the pool's networks only living jobs can be reached, and the dead are forgotten."""
    job, there = listener(pool, WORKER2.name)
    meet(pool, job, there)

    def denied() -> bool:
        again = pool.start_job(python(KNOCK, there))
        again.result()
        record = final(pool, again.job_id)
        return set(drops(record)) == {"peer-denied"}

    until(denied, "the ended job to be forgotten")
