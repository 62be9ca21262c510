"""Rates, guarantees and queues of real jobs: held, borrowed, booked, changed, and kept.

Paces are what records say, over some seconds. Bounds are wide on purpose: a busy machine makes a
transfer slower, and nothing makes it faster than its rate.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.agent.test_change import change
from tests.agent.test_exactness import Far
from tests.agent.test_networks import NETWORKS, SITE4, SPEAK
from tests.agent.test_networks import lab as on_a_site  # noqa: F401  a fixture
from tests.agent.worker import (
    QUICK,
    Talker,
    drops,
    final,
    in_kernel,
    kill,
    links,
    python,
    records,
    refused_start,
    until,
)
from tests.lab.filesystem import STATE
from tests.lab.topology import CAMPUS
from tests.lab.world import PROGRAMS

if TYPE_CHECKING:
    from pathlib import Path

    from lark_agent.model import Record
    from tests.lab.jobs import AdValue
    from tests.lab.process import Process
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
M = 10**6
FILE = STATE / "agent.toml"
URL = f"http://{CAMPUS.ipv4}"
LENGTH = "-H Content-Length:{} -H Transfer-Encoding: -H Expect:"
UP = f"exec curl -sSf -T - {LENGTH.format(10**12)} {URL}/up < /dev/zero"
DEVICES = {"larkup", "larkdown"}
UPLINK = '[uplink]\nrate = "40 Mbit/s"\n'
TIMED = f"""
head -c 4000000 /dev/zero |
    curl -sSf -w ' %{{time_total}}\\n' -T - {LENGTH.format(4000000)} {URL}/up
curl -sSf -o /dev/null -w '8000000 %{{time_total}}\\n' {URL}/bytes/8000000
"""
# as much as the kernel takes at the job's rate, and no waiting for what it has taken
DATAGRAMS = f"""
import os, socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(600):
    sock.sendto(bytes(1000), ("{CAMPUS.ipv4}", 9))
os._exit(0)
"""
STREAM = f"""
import os, socket
sock = socket.create_connection(("{CAMPUS.ipv4}", 80))
sock.sendall(b"PUT /up HTTP/1.1\\r\\nContent-Length: 2000000\\r\\n\\r\\n" + bytes(2_000_000))
os._exit(0)
"""
# waits for a longer MTU, a moment more for all that follows from it, and uses it
LONG = f"""
import pathlib, socket, sys, time
there = pathlib.Path(sys.argv[1])
there.touch()
while pathlib.Path("/sys/class/net/eth0/mtu").read_text() != "1500\\n":
    time.sleep(0.05)
time.sleep(0.5)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(50):
    sock.sendto(bytes(1472), ("{CAMPUS.ipv4}", 9))
"""


def profiles(**settings: str) -> str:
    """Configure a worker of 40 Mbit/s, whose jobs pick one of these profiles by their ads."""
    tables = [f"[profiles.{name}]\n{text}\n" for name, text in settings.items()]
    rules = [f'[[rules]]\nwhen = \'Share =?= "{name}"\'\nprofile = "{name}"\n' for name in settings]
    return QUICK + UPLINK + "".join(tables + rules)


class Upload:
    """A job that sends as fast as it may."""

    command: tuple[str, ...] = ("sh", "-c", UP)

    def __init__(self, lab: Lab, **ad: AdValue) -> None:
        self.lab = lab
        self.job = lab.start_job(self.command, ad=ad)
        until(lambda: self.sent > 100_000, "an upload that runs")

    @property
    def sent(self) -> int:
        record = records(self.lab).get(self.job.job_id)
        return record.usage.sent.bytes if record else 0

    def end(self) -> Record:
        self.job.kill(signal.SIGKILL)
        self.job.result()
        return final(self.lab, self.job.job_id)


def paces(lab: Lab, *uploads: Upload, seconds: float = 3) -> list[float]:
    """Return what each sends over some seconds, in Mbit/s, by its record."""

    def sampled() -> dict[str, Record]:
        after = records(lab)[uploads[-1].job.job_id].sampled_ns
        until(lambda: records(lab)[uploads[-1].job.job_id].sampled_ns > after, "a sample")
        return records(lab)

    before = sampled()
    time.sleep(seconds)
    after = sampled()
    found = []
    for key in (upload.job.job_id for upload in uploads):
        sent = after[key].usage.sent.bytes - before[key].usage.sent.bytes
        found.append(8000 * sent / (after[key].sampled_ns - before[key].sampled_ns))
    return found


def redirected(lab: Lab) -> set[str]:
    """Return the sandboxes' links that have a filter of shaping."""
    filters = {
        link: lab.run(["tc", "filter", "show", "dev", link, hook]).stdout
        for link in links(lab) - DEVICES
        for hook in ("ingress", "egress")
    }
    return {link for link, text in filters.items() if "mirred" in text}


def leaves(lab: Lab) -> int:
    """Count the classes of jobs, in both directions."""
    found = 0
    for device in DEVICES & links(lab):
        found += lab.run(["tc", "class", "show", "dev", device]).stdout.count(" leaf ")
    return found


def test_a_rate_holds_both_ways_and_every_packet_counts_once(lab: Lab, tmp_path: Path) -> None:
    """Each direction has its own rate, and the record is what a capture at the far end shows."""
    profile = '[profiles.slow]\nrate = "16 Mbit/s sent, 32 Mbit/s received"\n'
    lab.agent(f'default_profile = "slow"\n{QUICK}{profile}')
    with Far(lab, tmp_path) as far:
        job = lab.start_job(["sh", "-c", TIMED])
        done = job.result()
        assert done.status == 0, done.stderr
        record = final(lab, job.job_id)
    for line, rate in zip(done.stdout.splitlines(), (16, 32), strict=True):
        size, seconds = map(float, line.split())
        assert 0.4 * rate * M < 8 * size / seconds < 1.05 * rate * M, line
    sent, received = far.sums()
    assert lab.lost() == 0, "the laboratory's own links lost packets"
    assert (record.usage.sent.packets, record.usage.sent.bytes) == tuple(sent.values())
    assert (record.usage.received.packets, record.usage.received.bytes) == tuple(received.values())
    assert drops(record) == {}


def test_a_guarantee_is_kept_and_lent(lab: Lab) -> None:
    """30 of 40 Mbit/s guaranteed are kept against another job, and lent to it when free."""
    lab.agent(profiles(sure='guarantee = "30 Mbit/s"'))
    sure, other = Upload(lab, Share="sure"), Upload(lab)
    kept, rest = paces(lab, sure, other)
    assert kept > 27
    assert rest > 2, "what is left is shared"
    assert kept + rest < 42
    sure.end()
    (alone,) = paces(lab, other)
    assert 25 < alone < 42
    other.end()


def test_a_queue_is_shared_by_its_jobs(lab: Lab) -> None:
    """Two jobs of a queue of 20 Mbit/s have that together, whatever a job outside it takes."""
    queue = '[queues.cms]\nrate = "20 Mbit/s"\nguarantee = "20 Mbit/s"\n'
    lab.agent(profiles(cms='queue = "cms"') + queue)
    jobs = Upload(lab, Share="cms"), Upload(lab, Share="cms"), Upload(lab)
    first, second, outside = paces(lab, *jobs)
    assert 15 < first + second < 21
    assert min(first, second) > 0.3 * (first + second)
    assert 13 < outside < 21
    for job in jobs:
        job.end()


def test_an_admin_changes_the_rate_of_a_running_job(lab: Lab) -> None:
    """Lower, higher, and away again, also for a job that began without any."""
    lab.agent(QUICK)
    upload = Upload(lab)
    for rate in (8, 40):
        assert change(lab, upload.job.job_id, f"rate={rate} Mbit/s").returncode == 0
        (pace,) = paces(lab, upload)
        assert 0.5 * rate < pace < 1.05 * rate
    assert redirected(lab)
    assert change(lab, upload.job.job_id, "rate=0").returncode == 0
    assert redirected(lab) == set()
    (pace,) = paces(lab, upload, seconds=1)
    assert pace > 60
    said = [each.value for each in upload.end().changes]
    assert said[:2] == ["8 Mbit/s", "40 Mbit/s"]


def test_bandwidth_is_booked_while_a_job_runs(lab: Lab) -> None:
    """RequestBandwidth within what is left is granted; more is refused, until a job has ended."""
    lab.agent(QUICK + UPLINK + '[requests]\nbandwidth = "30 Mbit/s"\n')
    upload = Upload(lab, RequestBandwidth=30)
    refused = lab.job(["true"], ad={"RequestBandwidth": 20})
    assert refused.status == 125
    assert "of the 40 Mbit/s of this worker's uplink 10 Mbit/s are left" in refused.stderr
    assert "run it on another worker, or later" in refused.wrapper_error
    assert lab.job(["true"], ad={"RequestBandwidth": 10}).status == 0
    upload.end()
    assert lab.job(["true"], ad={"RequestBandwidth": 30}).status == 0


def test_a_throttle_is_felt(lab: Lab) -> None:
    """A job that has used up its quota goes on at the throttle's rate."""
    quota = '[quotas.q]\nbytes = "1 MB"\naction = "throttle"\nthrottle = "8 Mbit/s"\n'
    lab.agent(f'default_profile = "limited"\n{QUICK}[profiles.limited]\nquotas = ["q"]\n{quota}')
    upload = Upload(lab)
    until(lambda: records(lab)[upload.job.job_id].changes, "a throttled job")
    (pace,) = paces(lab, upload)
    assert 4 < pace < 8.4
    upload.end()


def test_shares_outlive_the_agent(lab: Lab) -> None:
    """Killed with SIGKILL: the rate holds, the next agent knows what is booked, and cleans up."""
    config = profiles(sure='guarantee = "30 Mbit/s"\nrate = "30 Mbit/s"')
    agent = lab.agent(config)
    ends, stays = Upload(lab, Share="sure"), Upload(lab)
    kill(agent)
    ends.job.kill(signal.SIGKILL)
    ends.job.result()
    alone, began = taken(lab), time.monotonic()
    time.sleep(3)
    pace = 8 * (taken(lab) - alone) / (time.monotonic() - began)
    assert 20 * M < pace < 42 * M, "the uplink's rate, borrowed"
    agent = lab.agent(config)
    final(lab, ends.job.job_id)
    sure = Upload(lab, Share="sure")
    refused = lab.job(["true"], ad={"Share": "sure"})
    assert "10 Mbit/s are left" in refused.stderr
    kill(agent)
    agent = lab.agent(config)
    assert "10 Mbit/s are left" in lab.job(["true"], ad={"Share": "sure"}).stderr
    kept, rest = paces(lab, sure, stays)
    assert 25 < kept < 31.5
    assert kept + rest < 42
    for upload in (sure, stays):
        upload.end()
    until(lambda: leaves(lab) == 0, "no class of a job that ended")
    agent.terminate()
    assert in_kernel(lab) == set()


def taken(lab: Lab) -> int:
    """Return the bytes that have left the worker by its uplink."""
    path = "/sys/class/net/uplink0/statistics/tx_bytes"
    return int(lab.run(["cat", path]).stdout)


def test_an_unshaped_job_pays_nothing(lab: Lab) -> None:
    """No device, no class, and no filter on its link, though another job is shaped."""
    lab.agent(QUICK + '[profiles.slow]\nrate = "1 Mbit/s"\n')
    free = Talker(lab)
    free.talk()
    assert not DEVICES & links(lab)
    upload = Upload(lab)
    assert change(lab, upload.job.job_id, "rate=8 Mbit/s").returncode == 0
    record = records(lab)[upload.job.job_id]
    assert redirected(lab) == {f"lark{record.slot}"}
    upload.end()
    free.end()


@pytest.mark.parametrize("code", [DATAGRAMS, STREAM], ids=["UDP", "TCP"])
def test_what_waits_for_its_rate_is_sent_after_the_jobs_end(
    lab: Lab, tmp_path: Path, code: str
) -> None:
    """A job that hands all to the kernel and ends: it arrives, and the record is what arrived."""
    quick = QUICK.replace("drain_seconds = 3", "drain_seconds = 30")
    lab.agent(f'default_profile = "slow"\n{quick}[profiles.slow]\nrate = "2 Mbit/s sent"\n')
    with Far(lab, tmp_path) as far:
        job = lab.start_job(python(code))
        assert job.result().status == 0
        record = final(lab, job.job_id)
        time.sleep(0.3)  # what the record has missed shall be captured
    sent, received = far.sums()
    assert (record.usage.sent.packets, record.usage.sent.bytes) == tuple(sent.values())
    assert (record.usage.received.packets, record.usage.received.bytes) == tuple(received.values())
    assert sent["bytes"] > 600_000
    assert record.sampled_ns - record.ended_ns > 0.2 * 10**9, "nothing waited"


def test_what_cannot_be_sent_in_time_is_told(lab: Lab) -> None:
    """`drain_seconds` end the waiting; the log says how much was counted and not sent."""
    quick = QUICK.replace("drain_seconds = 3", "drain_seconds = 0.5")
    agent = lab.agent(f'default_profile = "slow"\n{quick}[profiles.slow]\nrate = "0.1 Mbit/s"\n')
    job = lab.start_job(python(DATAGRAMS.replace("600", "50")))
    assert job.result().status == 0
    final(lab, job.job_id)
    assert "cut what waited for its rate" in agent.stderr


def test_queues_follow_a_longer_mtu(lab: Lab, tmp_path: Path) -> None:
    """A shaped job's packets of the new length are sent, not dropped after they were counted."""
    lab.run(["ip", "link", "set", "uplink0", "mtu", "1400"])
    agent = lab.agent(f'default_profile = "slow"\n{QUICK}[profiles.slow]\nrate = "50 Mbit/s"\n')
    begun = "/run/lab/home/alice/begun"
    with Far(lab, tmp_path) as far:
        job = lab.start_job(python(LONG, begun))
        until(lab.path(begun).exists, "a job that waits")
        lab.run(["ip", "link", "set", "uplink0", "mtu", "1500"])
        assert job.result().status == 0
        record = final(lab, job.job_id)
    assert tuple(far.sums()[0].values()) == (50, 50 * 1500)
    assert (record.usage.sent.packets, record.usage.sent.bytes) == (50, 50 * 1500)
    assert "cannot set the MTU" not in agent.stderr


def test_jobs_on_a_bridge_are_shaped(on_a_site: Lab) -> None:  # noqa: F811  the fixture
    """A megabyte each way at 8 Mbit/s takes a second."""
    slow = NETWORKS.replace('network = "lab"\n', 'network = "lab"\nrate = "8 Mbit/s"\n')
    on_a_site.agent(f'default_profile = "lab"\n{QUICK}{slow}')
    job = on_a_site.start_job(python(SPEAK, SITE4))
    done = job.result()
    assert done.status == 0, done.stderr
    assert 0.9 < done.seconds < 10
    usage = final(on_a_site, job.job_id).usage
    assert min(usage.sent.bytes, usage.received.bytes) > 1_000_000


@pytest.mark.parametrize(
    "setting",
    ['rate = "8 Mbit/s"', "priority = 0", 'quotas = ["q"]'],
    ids=["rate", "priority", "quota-that-throttles"],
)
def test_a_rate_where_nothing_can_hold_it_is_found_at_start(
    on_a_site: Lab,  # noqa: F811  the fixture
    setting: str,
) -> None:
    """A profile on macvlan with a rate does not load; the words say what to do."""
    quota = '[quotas.q]\nbytes = "1 MB"\naction = "throttle"\nthrottle = "8 Mbit/s"\n'
    config = NETWORKS.replace('network = "bare"\n', f'network = "bare"\n{setting}\n')
    status, said = refused_start(on_a_site, QUICK + config + quota)
    assert status == 2
    assert "connectivity macvlan has no" in said
    assert "use nat, routed, bridge, vlan or ovs" in said


def test_other_shares_need_a_restart(lab: Lab) -> None:
    """A reload with other queues is refused as a whole; a restart puts them in force for all."""

    def start(rate: str) -> Process:
        lab.path(FILE).write_text(config.replace("20 Mbit/s", rate))
        return lab.service([str(PROGRAMS / "lark-agent"), "run", "--config", str(FILE)])

    config = profiles(cms='queue = "cms"') + '[queues.cms]\nrate = "20 Mbit/s"\n'
    agent = start("20 Mbit/s")
    upload = Upload(lab, Share="cms")
    lab.path(FILE).write_text(config.replace("20 Mbit/s", "5 Mbit/s"))
    agent.signal(signal.SIGHUP)
    until(lambda: "reload refused, the old rules stay" in agent.stderr, "a refusal")
    assert "[uplink] rate and [queues]" in agent.stderr
    (pace,) = paces(lab, upload)
    assert 10 < pace < 21
    agent.terminate()
    start("5 Mbit/s")
    (pace,) = paces(lab, upload)
    assert 3 < pace < 5.3
    upload.end()
