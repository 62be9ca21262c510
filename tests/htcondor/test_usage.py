"""What the pool learns from the agent: usage in jobs' ads, attributes of the machine, bandwidth.

The pool has the files that we write for config.d and nothing else of ours; the agent's socket is
where the schedd's program asks, as on a pool of one machine.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from lark_agent.config import AgentSettings, parse
from lark_agent.hooks.htcondor_config import submit_file, worker_file
from tests.htcondor import programs
from tests.htcondor.jobs import EXECUTING
from tests.htcondor.pool import Pool
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.htcondor.jobs import CondorJob

pytestmark = [pytest.mark.root, pytest.mark.htcondor]

AGENT = """
observers = ["{observer}"]
[accounting]
interval_seconds = 1
[uplink]
rate = "1 Gbit/s"
[queues.site]
guarantee = "100 Mbit/s"
[requests]
bandwidth = "400 Mbit/s"
networks = ["lhcone"]
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
[networks.lhcone]
connectivity = "bridge"
bridge = "br0"
addresses = "static"
pool4 = "198.18.20.10-198.18.20.20/24"
"""
BYTES = 300_000
FETCH = f"curl -sSf -o got http://server.campus.test/bytes/{BYTES}"
FORGERY = """
for name in Harmless NetworkIncoming NetworkRecord; do
    /usr/libexec/condor/condor_chirp set_job_attr $name 6 && echo wrote $name
done
until [ -e $SUBMITTED_FROM/enough ]; do
    printf 'NetworkIncoming = 5\\nNetworkRecord = "mine"\\nNetworkCost = 5.0\\n' > mine
    [ -e .update.ad ] && cat .update.ad >> mine
    mv -f mine .update.ad
    touch $SUBMITTED_FROM/forging
    sleep 0.1
done
"""


@pytest.fixture(scope="module")
def pool(condor_root: Path) -> Iterator[Pool]:
    """Give a pool with our files, and an agent with a network and bandwidth to give."""
    with Lab() as lab:
        programs.install(lab)
        lab.run(["ip", "link", "add", "br0", "type", "bridge"])
        lab.run(["ip", "link", "set", "br0", "up"])
        text = AGENT.format(observer=programs.observer(lab, condor_root))
        agent = lab.agent(text)
        submit = submit_file(programs.COLLECTOR, ["--socket", "/run/lark/agent.sock"])
        settings = parse(AgentSettings, text, "agent.toml")
        pool = Pool(lab, condor_root, lark=worker_file(settings, programs.AGENT) + submit)
        pool.await_true(lambda: machine(pool).get("NetworkAccounting") is True)
        yield pool
        agent.terminate()


def machine(pool: Pool) -> dict[str, Any]:
    """Return the ad of the worker's partitionable slot."""
    found = pool.query("condor_status", "-constraint", "PartitionableSlot")
    return found[0] if found else {}


def history(pool: Pool, job: CondorJob) -> dict[str, Any]:
    """Wait until a job has left the queue, and return what the history has of it."""
    pool.await_true(lambda: bool(pool.query("condor_history", job.number)), 150)
    return pool.query("condor_history", job.number)[0]


def test_an_ended_jobs_ad_has_its_account(pool: Pool) -> None:
    """Totals by direction and class are in the history, to the byte as in the agent's record."""
    job = pool.submit(f"{FETCH} && sleep 1")
    assert job.ended().status == 0
    record, ad = job.record(), history(pool, job)
    assert ad["NetworkIncoming"] == record["received"]["bytes"] > BYTES
    assert ad["NetworkOutgoing"] == record["sent"]["bytes"] > 0
    assert ad["NetworkIncomingByClass"] == {"campus": record["received"]["bytes"]}
    assert ad["NetworkOutgoingByClass"] == {"campus": record["sent"]["bytes"]}
    assert ad["NetworkRecord"] == record["attachment_id"]
    seconds = (record["ended_ns"] - record["started_ns"]) / 10**9
    incoming, outgoing = (
        pytest.approx(record[way]["bytes"] * 8 / 10**6 / seconds, rel=1e-3)
        for way in ("received", "sent")
    )
    assert ad["AverageBandwidthUsageIncoming"] == incoming
    assert ad["AverageBandwidthUsageOutgoing"] == outgoing
    assert ad["AverageBandwidthUsageIncomingByClass"] == {"campus": incoming}
    assert ad["AverageBandwidthUsageOutgoingByClass"] == {"campus": outgoing}
    both = ad["AverageBandwidthUsageIncoming"] + ad["AverageBandwidthUsageOutgoing"]
    assert ad["AverageBandwidthUsage"] == pytest.approx(both, rel=1e-3)


def test_neither_job_nor_user_can_write_the_account(pool: Pool) -> None:
    """Submit file, condor_qedit, condor_chirp and a rewritten .update.ad leave it true.

    So in the queue while the job runs, as in the history when it has ended.
    """
    job = pool.submit(
        FETCH + FORGERY, my_NetworkIncoming=7, my_NetworkRecord='"mine"', my_WantIOProxy="true"
    )
    pool.await_true(job.file("forging").exists)
    edit = ["condor_qedit", job.number, "NetworkIncoming", "8"]
    assert "Failed to set" in pool.run(edit, user="alice", check=False).stderr
    pool.await_true(lambda: (job.ad().get("NetworkIncoming") or 0) > BYTES)
    assert job.ad().get("NetworkRecord") is None
    job.file("enough").touch()
    end = job.ended()
    assert end.status == 0, end
    assert [line for line in end.stdout.splitlines() if "wrote" in line] == ["wrote Harmless"]
    record, ad = job.record(), history(pool, job)
    assert ad["NetworkIncoming"] == record["received"]["bytes"] > BYTES
    assert ad["NetworkRecord"] == record["attachment_id"]
    assert ad["NetworkCost"] == 0


def test_a_running_job_shows_what_it_has_moved_and_nothing_of_the_last(pool: Pool) -> None:
    """Bytes are in the queue and in the slot while the job runs, of that job alone."""
    first = pool.submit(f"{FETCH}; sleep 4")
    assert first.ended().status == 0
    first_host = first.ad()["LastRemoteHost"]
    second = pool.submit("curl -sSf -o got http://server.campus.test/bytes/1000; sleep 30")
    second.await_event(EXECUTING)
    pool.await_true(lambda: (second.ad().get("NetworkIncoming") or 0) > 1000)
    ad, record = second.ad(), pool.records(second.number)[0]
    assert ad["RemoteHost"] == first_host
    assert ad["NetworkIncoming"] == ad["NetworkIncomingByClass"]["campus"] < 10_000

    def slot() -> dict[str, Any]:
        (found,) = pool.query("condor_status", first_host)
        return found

    pool.await_true(lambda: slot().get("JobNetworkRecord") == record["attachment_id"])
    assert 1000 < slot()["JobNetworkIncoming"] < 10_000
    pool.run(["condor_rm", second.number], user="alice")


def test_the_machine_says_what_its_network_has(pool: Pool) -> None:
    """LARK's attributes of the machine are in its ad, for Requirements to match on."""
    ad = machine(pool)
    assert ad["NetworkType"] == "bridge,host,nat,none"
    assert ad["VLAN"] == "lhcone"
    assert ad["IPProtocol"] == "IPv4,IPv6"
    assert ad["ExternalInterface"] == "uplink0"
    ready = pool.run(["condor_status", "-constraint", "LarkReady", "-af", "Name"]).stdout
    assert "slot1@" in ready


def test_the_machine_says_what_its_network_carries(pool: Pool) -> None:
    """Measured on the uplink, in Mbit/s, while a job downloads at a rate of its own choice."""
    job = pool.submit("curl -sS -o got --limit-rate 2M http://server.campus.test/bytes/60000000")
    job.await_event(EXECUTING)
    pool.await_true(lambda: 10 < machine(pool)["BandwidthUsedIncoming"] < 30)
    assert 0 < machine(pool)["BandwidthUsedOutgoing"] < 5
    pool.run(["condor_rm", job.number], user="alice")
    pool.await_true(lambda: machine(pool)["BandwidthUsedIncoming"] < 1)


def test_requested_bandwidth_is_booked_and_enforced(pool: Pool) -> None:
    """What the matchmaker gives out is what the agent guarantees, and both ads say what is left."""
    before = machine(pool)
    assert (before["Bandwidth"], before["BandwidthCapacity"]) == (900, 900)
    job = pool.submit("sleep 60", request_bandwidth=100)
    job.await_event(EXECUTING)
    pool.await_true(lambda: machine(pool).get("BandwidthBooked") == 100)
    during = machine(pool)
    assert (during["Bandwidth"], during["AvailBandwidth"]) == (800, 800)
    told = ["condor_status", "-constraint", "PartitionableSlot", "-af", "BandwidthUnnegotiated"]
    assert pool.run(told).stdout.split() == ["0"]
    classes = pool.lab.run(["tc", "class", "show", "dev", "larkup"]).stdout
    # with what Ethernet adds to packets of an MTU
    assert re.search(r"parent 1:1 .* rate 100\d{3}Kbit ", classes), classes
    pool.run(["condor_rm", job.number], user="alice")
    pool.await_true(lambda: machine(pool).get("BandwidthBooked") == 0)


def test_more_bandwidth_than_the_policy_allows_matches_nowhere(pool: Pool) -> None:
    """The machine does not take a job whose request the agent would refuse."""
    greedy = pool.submit("true", request_bandwidth=401)
    modest = pool.submit("true", request_bandwidth=400)
    assert modest.ended().status == 0
    assert [event.number for event in greedy.events] == [0]
    pool.run(["condor_rm", greedy.number], user="alice")


def test_jobs_and_machines_match_on_networks_both_ways(pool: Pool) -> None:
    """LARK's mutual example: the job wants a machine with its VLAN, the machine jobs of its VLANs.

    The job without Requirements shows that the machine's own START refuses.
    """
    wanted = "stringListMember(MY.RequestedVLAN, TARGET.VLAN)"
    there = pool.submit("ip -br address", my_RequestedVLAN='"lhcone"', requirements=wanted)
    elsewhere = pool.submit("true", my_RequestedVLAN='"science"')
    profile = pool.submit("ip -br link", my_RequestedProfile='"none"')
    end = there.ended()
    assert end.status == 0, end
    assert "198.18.20." in end.stdout
    assert there.record()["network"] == "lhcone"
    assert profile.ended().status == 0
    assert profile.record()["profile"] == "none"
    assert [event.number for event in elsewhere.events] == [0]
    pool.run(["condor_rm", elsewhere.number], user="alice")
