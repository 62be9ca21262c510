"""Jobs of one owner find each other on different workers, and nobody else finds them."""

from __future__ import annotations

import json
import os
from itertools import product
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
connectivity = "{kind}"
peers = "owner"
[collector]
address = "198.51.100.10:9620"
insecure = true
"""
)
ROUTED = """
[addresses]
routed6 = "{prefix}"
pool = ["2001:db8:70::/48"]
"""
# one network for jobs of both workers, with a range for each
BRIDGED = """
[addresses]
pool = ["198.18.70.0/24", "2001:db8:70::/64"]
[networks.lan]
connectivity = "bridge"
bridge = "br0"
addresses = "static"
pool4 = "198.18.70.{number}0-198.18.70.{number}9/24"
pool6 = "2001:db8:70::{number}0-2001:db8:70::{number}9/64"
ready = 2
"""
# patient: the other worker hears of this job only after it has begun
CALL = "import socket, sys; socket.create_connection((sys.argv[1], 5000), 30)"
_CABLE = f"ip link add lan0 type veth peer name lan0 netns {WORKER2.name}"
_BRIDGE = """
ip link add br0 type bridge forward_delay 0
ip link set lan0 master br0
ip link set lan0 up
ip link set br0 up
"""


@pytest.fixture
def pool() -> Iterator[Lab]:
    """Two workers with a prefix each, and a collector on the campus."""
    first, second = PREFIXES.values()
    with Lab(second=True, delegated=[first], delegated2=[second]) as lab:
        lab.collector('listen = "0.0.0.0:9620"\n', host="campus")
        for host, prefix in PREFIXES.items():
            config = CONFIG.format(host=host, kind="routed") + ROUTED.format(prefix=prefix)
            lab.agent(config, host=host)
        yield lab


@pytest.fixture
def bridged() -> Iterator[Lab]:
    """Two workers, a bridge on each, a cable between the bridges, and a collector."""
    with Lab(second=True) as lab:
        lab.run(_CABLE.split())
        for host, line in product(PREFIXES, _BRIDGE.strip().splitlines()):
            lab.run(line.split(), host=host)
        lab.collector('listen = "0.0.0.0:9620"\n', host="campus")
        for number, host in enumerate(PREFIXES, 1):
            config = CONFIG.format(host=host, kind="bridge") + BRIDGED.format(number=number)
            lab.agent(config, host=host)
        yield lab


def listener(lab: Lab, host: str, family: str = "ipv6") -> tuple[JobHandle, str]:
    """Start a job of alice's that listens; returns it and its address."""
    inside = f"/run/lab/home/alice/there-{host}-{family}"
    job = lab.start_job(python(LISTEN, inside), host=host)
    until(lab.path(inside).exists, "a job that listens")
    return job, address(lab, job.job_id, family)


def meet(lab: Lab, job: JobHandle, there: str) -> None:
    """Let jobs of alice's knock until the listener, which then ends, has been reached."""

    def reached() -> bool:
        assert lab.job(python(KNOCK, there)).status == 0
        return "REACHED" in job.starter.stdout

    until(reached, "alice's jobs to meet")
    assert job.result().status == 0


def address(lab: Lab, job_id: str, family: str) -> str:
    """Return a job's address, once its record is on the collector."""
    done = ["lark", "--collector", "/run/lark-collector/query.sock", "job", job_id, "--json"]
    until(lambda: lab.run(done, host="campus", check=False).returncode == 0, "a reported job")
    (run,) = json.loads(lab.run(done, host="campus").stdout)["runs"]
    return str(run[family])


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


def test_an_owners_jobs_meet_on_a_network_of_two_workers(bridged: Lab) -> None:
    """On one bridged network alice's jobs of both workers meet; bob's reaches neither family."""
    listening = [listener(bridged, WORKER2.name, family) for family in ("ipv4", "ipv6")]
    places = [there for _, there in listening]
    known = ["bpftool", "-j", "map", "dump", "pinned", "/sys/fs/bpf/lark/v3/remote_jobs"]
    until(lambda: len(json.loads(bridged.run(known).stdout)) == 4, "their addresses to be told")
    stranger = bridged.start_job(python(KNOCK, *places), user="bob")
    assert "CONNECTED" not in stranger.result().stdout
    for job, there in listening:
        assert "REACHED" not in job.starter.stdout
        friend = bridged.start_job(python(CALL, there))
        assert "REACHED" in job.result().stdout
        friend.result()
    record = final(bridged, stranger.job_id)
    # the kernel's own multicast (MLD) is dropped as martian, whenever it comes
    assert drops(record).keys() - {"martian"} == {"peer-denied"}
    assert drops(record)["peer-denied"] >= 4
    assert record.usage.sent.packets == 0
