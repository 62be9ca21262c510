"""Quotas on a worker: to the packet, in every direction, over restarts, and told to people."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import Count
from tests.agent.test_change import change
from tests.agent.worker import (
    ONCE,
    QUICK,
    Talker,
    drops,
    final,
    kill,
    records,
    times,
    until,
)
from tests.lab.filesystem import STATE
from tests.lab.topology import CAMPUS, INTERNET, WORKER
from tests.lab.world import PROGRAMS

if TYPE_CHECKING:
    from lark_agent.model import Change, Record
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
PACKET = ONCE.bytes // ONCE.packets
LIMIT = 250_000
FITS = LIMIT // PACKET
FILE = STATE / "agent.toml"
HOOK = "/run/hook"
HEARD = "/run/lab/home/heard"


def worker(quota: str, *, more: str = "") -> str:
    """Configure a worker whose jobs all have one quota."""
    return f"""default_profile = "limited"
{more}
{QUICK}
[classes]
campus = ["{CAMPUS.ipv4}/32"]
[profiles.limited]
quotas = ["q"]
[quotas.q]
bytes = "{LIMIT}"
{quota}
"""


def sent(record: Record, name: str = "campus") -> Count:
    return {share.traffic_class: share.sent for share in record.usage.classes}.get(name, Count())


def told(lab: Lab, job_id: str) -> Change:
    """Wait until the record says that a quota is used up."""
    found: tuple[Change, ...] = until(
        lambda: [c for c in records(lab)[job_id].changes if c.by == "quota q"], "a change by quota"
    )
    return found[0]


def standing(lab: Lab, user: str = "root") -> list[dict[str, object]]:
    answer = lab.run(["lark", "quota", "--json"], user=user).stdout
    found: list[dict[str, object]] = json.loads(answer)["quotas"]
    return found


def test_a_class_is_cut_to_the_packet(lab: Lab) -> None:
    """What fits passes, the next packet and all later are dropped as quota; other classes go on."""
    lab.agent(worker('classes = ["campus"]\naction = "cut-class"'))
    campus, internet = Talker(lab), Talker(lab, to=INTERNET.ipv4)
    for _ in range(3):
        campus.talk()
        internet.talk()
    change = told(lab, campus.job.job_id)
    assert (change.setting, change.value) == ("cut-class", f"{LIMIT} used up")
    until(lambda: drops(records(lab)[campus.job.job_id]), "a sample of the drops")
    words = lab.run(["lark", "job", campus.job.job_id], user="alice").stdout
    assert "quota q: cut-class since" in words
    campus.end()
    internet.end()
    record = final(lab, campus.job.job_id)
    assert sent(record) == Count(FITS, FITS * PACKET)
    assert drops(record) == {"quota": 300 - FITS}
    record = final(lab, internet.job.job_id)
    assert (sent(record, "other"), drops(record)) == (Count(300, 3 * ONCE.bytes), {})


def test_everything_is_cut(lab: Lab) -> None:
    """Used up by one class, cut-all closes the others too."""
    lab.agent(worker('classes = ["campus"]\naction = "cut-all"'))
    code = f"""
import socket
for to in {[CAMPUS.ipv4, INTERNET.ipv4]}:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(300):
        try:
            s.sendto(bytes(1000), (to, 9))
        except OSError:
            pass
"""
    job = lab.start_job(["/usr/bin/python3", "-I", "-S", "-c", code])
    assert job.result().status == 0
    record = final(lab, job.job_id)
    assert (sent(record).packets, sent(record, "other")) == (FITS, Count())
    assert drops(record)["quota"] == 600 - FITS


def test_other_jobs_and_the_worker_have_quotas_and_prices(lab: Lab) -> None:
    """Both are cut to the packet, each by its own quota, have their price, and nothing else is."""
    lab.agent(f"""default_profile = "limited"
{QUICK}
[services.sink]
port = "udp/9"
[profiles.limited]
peers = "all"
quotas = ["there", "here"]
[quotas.there]
bytes = "{LIMIT}"
classes = ["jobs"]
direction = "sent"
[quotas.here]
bytes = "{2 * LIMIT}"
classes = ["worker"]
direction = "sent"
[prices]
jobs = {{ sent = 1000 }}
worker = {{ sent = 2000 }}
""")
    peer = Talker(lab, user="bob")
    ends = [records(lab)[peer.job.job_id].ipv4, WORKER.ipv4, CAMPUS.ipv4]
    code = f"""
import socket
for to in {ends}:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(600):
        try:
            s.sendto(bytes(1000), (to, 9))
        except OSError:
            pass
"""
    job = lab.start_job(["/usr/bin/python3", "-I", "-S", "-c", code])
    assert job.result().status == 0
    record = final(lab, job.job_id)
    assert [sent(record, name) for name in ("jobs", "worker", "other")] == [
        times(Count(1, PACKET), number) for number in (FITS, 2 * LIMIT // PACKET, 600)
    ]
    assert drops(record) == {"quota": 1200 - FITS - 2 * LIMIT // PACKET}
    costs = {share.traffic_class: share.cost for share in record.usage.classes}
    assert costs == {
        "jobs": sent(record, "jobs").bytes, "worker": 2 * sent(record, "worker").bytes, "other": 0
    }  # fmt: skip
    peer.end()


def test_an_admin_gives_and_takes_a_quota(lab: Lab) -> None:
    """What was sent before is not charged; the packet that would pass the limit is dropped."""
    quota = worker('action = "cut-all"').replace('quotas = ["q"]\n', "")
    lab.agent(quota)
    talker = Talker(lab)
    job = talker.job.job_id
    talker.talk()
    assert change(lab, job, "quotas=q").returncode == 0
    for _ in range(3):
        talker.talk()
    assert change(lab, job, "quotas=none").returncode == 0
    talker.talk()
    talker.end()
    record = final(lab, job)
    assert sent(record).packets == 2 * ONCE.packets + FITS
    assert drops(record) == {"quota": 3 * ONCE.packets - FITS}


@pytest.mark.parametrize("direction", ["both", "sent"])
def test_notify_drops_nothing(lab: Lab, direction: str) -> None:
    """The record and the log tell; every packet passes."""
    agent = lab.agent(worker(f'action = "notify"\ndirection = "{direction}"'))
    talker = Talker(lab)
    for _ in range(3):
        talker.talk()
    assert told(lab, talker.job.job_id).setting == "notify"
    talker.end()
    record = final(lab, talker.job.job_id)
    assert (record.usage.sent, record.usage.drops) == (Count(300, 3 * ONCE.bytes), ())
    assert "quota q" in agent.stderr


def test_the_other_direction_does_not_count(lab: Lab) -> None:
    """A quota on what is received says nothing about what is sent."""
    lab.agent(worker('action = "cut-all"\ndirection = "received"'))
    talker = Talker(lab)
    for _ in range(3):
        talker.talk()
    talker.end()
    record = final(lab, talker.job.job_id)
    assert (record.usage.sent.packets, record.changes) == (300, ())


def test_a_throttle_lowers_the_rate(lab: Lab) -> None:
    """The job's plan has the rate from then on, as its record says."""
    lab.agent(worker('action = "throttle"\nthrottle = "8 Mbit/s"'))
    talker = Talker(lab)
    for _ in range(3):
        talker.talk()
    assert told(lab, talker.job.job_id).value == f"{LIMIT} used up, rate 8 Mbit/s"
    talker.end()
    assert final(lab, talker.job.job_id).usage.sent.packets == 300


def test_a_quota_survives_the_agent(lab: Lab) -> None:
    """Killed and started again in the middle, it counts on from where the kernel is."""
    config = worker('action = "cut-class"')
    agent = lab.agent(config)
    talker = Talker(lab)
    talker.talk()
    kill(agent)
    talker.talk()
    lab.agent(config)
    talker.talk()
    assert told(lab, talker.job.job_id).setting == "cut-class"
    (here,) = standing(lab)
    assert (here["used"], here["left"], here["scope"]) == (FITS * PACKET, LIMIT % PACKET, "job")
    talker.end()
    record = final(lab, talker.job.job_id)
    assert (record.usage.sent.packets, drops(record)) == (FITS, {"quota": 300 - FITS})
    assert len(record.changes) == 1
    assert standing(lab) == []


def test_an_owners_jobs_share_without_a_collector(lab: Lab) -> None:
    """One pool for all of alice's, now and later, also after a restart; bob has his own."""
    config = worker('per = "owner"\naction = "cut-class"')
    agent = lab.agent(config)
    first, second, bob = Talker(lab), Talker(lab), Talker(lab, user="bob")
    for talker in (first, second, bob):
        talker.talk()
        talker.end()
        final(lab, talker.job.job_id)
    assert [entry["used"] for entry in standing(lab, "alice")] == [2 * ONCE.bytes]
    agent.terminate()
    lab.agent(config)
    third = Talker(lab)
    third.talk()
    told(lab, third.job.job_id)
    third.end()
    assert final(lab, third.job.job_id).usage.sent.packets == FITS - 200
    assert {entry["subject"]: entry["used"] for entry in standing(lab)} == {
        "alice": FITS * PACKET, "bob": ONCE.bytes,
    }  # fmt: skip
    assert [entry["subject"] for entry in standing(lab, "bob")] == ["bob"]


def test_the_sites_hook_hears_of_it(lab: Lab) -> None:
    """As an unprivileged user, with what happened on its input, no more often than it may."""
    lab.path(HEARD).mkdir()
    lab.path(HEARD).chmod(0o777)
    lab.path(HOOK).write_text(f"#!/bin/sh\n[ $(id -un) = nobody ] && cat > {HEARD}/$$\n")
    lab.path(HOOK).chmod(0o755)
    settings = f'[quota_hook]\ncommand = ["{HOOK}"]\nper_hour = 1'
    agent = lab.agent(worker('action = "cut-class"\nhook = true') + settings)
    jobs = []
    for _ in range(2):
        talker = Talker(lab)
        for _ in range(3):
            talker.talk()
        told(lab, talker.job.job_id)
        talker.end()
        jobs.append(talker.job.job_id)
    until(lambda: "quota hook not run" in agent.stderr, "the second run to be left out")
    (heard,) = until(lambda: list(lab.path(HEARD).iterdir()), "the hook")
    words = until(heard.read_text, "its words")
    said = json.loads(words)
    assert [job["job_id"] for job in said["jobs"]] == jobs[:1]
    assert (said["quota"], said["limit"], said["action"]) == ("q", LIMIT, "cut-class")
    assert said["used"] == FITS * PACKET


def test_a_hook_that_hangs_is_killed(lab: Lab) -> None:
    """Its time is over, the log says so, and the agent has gone on meanwhile."""
    lab.path(HOOK).write_text("#!/bin/sh\nsleep 1000\n")
    lab.path(HOOK).chmod(0o755)
    settings = f'[quota_hook]\ncommand = ["{HOOK}"]\ntimeout_seconds = 0.5'
    agent = lab.agent(worker('action = "notify"\nhook = true') + settings)
    talker = Talker(lab)
    for _ in range(3):
        talker.talk()
    until(lambda: "did not end within 0.5 s" in agent.stderr, "the hook's end")
    talker.end()
    assert final(lab, talker.job.job_id).usage.sent.packets == 300


def test_traffic_costs_the_price_of_its_day(lab: Lab) -> None:
    """A record's cost is bytes times price; a reload with another price holds from then on."""
    config = f'[classes]\ncampus = ["{CAMPUS.ipv4}/32"]\n{QUICK}[prices]\ncampus = {{ sent = '
    lab.path(FILE).write_text(config + "1000 }\n")
    agent = lab.service([str(PROGRAMS / "lark-agent"), "run", "--config", str(FILE)])
    talker = Talker(lab)
    talker.talk()
    key = talker.job.job_id
    # 102,800 bytes at 1000 a GB: 0.1028
    until(lambda: records(lab)[key].cost == 102_800, "a sample with its cost")
    lab.path(FILE).write_text(config + "3000 }\n")
    agent.signal(signal.SIGHUP)
    until(lambda: "reloaded" in agent.stderr, "the reload")
    talker.talk()
    talker.end()
    assert final(lab, key).cost == 4 * 102_800
    assert "0.4112" in lab.run(["lark", "usage", "--by", "class"]).stdout
    assert "0.4112" in lab.run(["lark", "job", key]).stdout
