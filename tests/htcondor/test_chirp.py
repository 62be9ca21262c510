"""condor_chirp in a sandbox: its proxy is the starter's, on the worker's own loopback."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.htcondor.conftest import AGENT
from tests.htcondor.pool import LARK, WRAPPED, Pool
from tests.lab.topology import CAMPUS
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.htcondor]
CHIRP = "/usr/libexec/condor/condor_chirp"
POLICY = (
    AGENT
    + """
[profiles.alone]
connectivity = "none"
[[rules]]
when = "WantNoNetwork"
profile = "alone"
"""
)
TALK = f"""
set -e
{CHIRP} set_job_attr ChirpSaid '"hello"'
{CHIRP} get_job_attr ChirpSaid
head -c 3000000 /dev/zero > big
{CHIRP} put big put
{CHIRP} fetch put back
cmp big back
rm big back
"""


@pytest.fixture(scope="module", params=[WRAPPED, LARK], ids=["wrapper", "prepare-hook"])
def chirping(condor_root: Path, request: pytest.FixtureRequest) -> Iterator[Pool]:
    """Give a pool with a profile that has no network, with and without the hook that prepares."""
    with Lab() as lab:
        agent = lab.agent(POLICY)
        yield Pool(lab, condor_root, lark=request.param)
        agent.terminate()


@pytest.mark.parametrize("network", ["nat", "none"])
def test_chirp_sets_attributes_and_moves_files(chirping: Pool, network: str) -> None:
    """With the ordinary network and with none; what it moves counts, in the class `worker`."""
    job = chirping.submit(
        TALK, my_WantIOProxy="true", my_WantNoNetwork=str(network == "none").lower()
    )
    end = job.ended()
    assert end.status == 0, end
    assert end.stdout.strip() == '"hello"'
    assert job.ad()["ChirpSaid"] == "hello"
    assert job.file("put").stat().st_size == 3_000_000
    record = job.record()
    assert record["connectivity"] == network
    (share,) = record["classes"]
    assert share["class"] == "worker"
    assert share["sent"]["bytes"] > 3_000_000 < share["received"]["bytes"]


def test_with_no_network_there_is_chirp_and_nothing_else(chirping: Pool) -> None:
    """No server, no name, no other port of the worker's loopback, where somebody listens."""
    lab, other = chirping.lab, "http://127.0.0.1:8022/"
    server = lab.start(["python3", "-m", "http.server", "8022", "--bind", "127.0.0.1"])
    lab.run(["curl", "-sSf", "-o", "/dev/null", "--retry", "9", "--retry-connrefused", other])
    job = chirping.submit(
        f"{CHIRP} get_job_attr ClusterId\n"
        f"curl -m 3 -sS http://{CAMPUS.ipv4}/bytes/1 && exit 3\n"
        "getent hosts server.campus.test && exit 4\n"
        f"curl -m 3 -sS {other} && exit 5\nexit 0",
        my_WantIOProxy="true", my_WantNoNetwork="true",
    )  # fmt: skip
    end = job.ended()
    server.signal(signal.SIGTERM)
    server.wait()
    assert end.status == 0, end
    assert end.stdout.strip() == job.number.split(".")[0]
