"""`lark job ID set`, setting by setting: what the wire shows after it, and what the record says.

`SHOWN` names the test of each setting that a running job can be given, so a setting that is added
without one fails. Here every test changes a job that is talking, and looks at the packets that come
next. Paces are compared within a run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lark_agent.agent.changing import BUILT, CHANGEABLE
from lark_agent.policy.vocabulary import SETTINGS
from tests.agent.test_change import change, told
from tests.agent.test_inbound import Server
from tests.agent.test_networks import NETWORKS, SITE4
from tests.agent.test_networks import lab as on_a_site  # noqa: F401  a fixture
from tests.agent.test_services import SERVICES, Asker, listeners
from tests.agent.test_shaping import UPLINK, Upload, paces
from tests.agent.worker import ONCE, QUICK, Talker, drops, final, python, records, until
from tests.lab.capture import Capture, flows
from tests.lab.topology import CAMPUS, WORKER

if TYPE_CHECKING:
    from lark_agent.model import Record
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
SHOWN = {
    "cut": "test_a_job_is_cut_off_and_let_go_on",
    "reach": "test_classes_can_be_taken_and_given",
    "peers": "test_jobs_get_and_lose_each_other",
    "inbound": "test_a_port_opens_and_closes",
    "ports": "test_a_port_opens_and_closes",
    "services": "test_services_are_taken_and_given",
    "rate": "test_an_admin_changes_the_rate_of_a_running_job",
    "guarantee": "test_shares_change_while_jobs_send",
    "queue": "test_shares_change_while_jobs_send",
    "priority": "test_shares_change_while_jobs_send",
    "dscp": "test_marks_change_with_the_next_packet",
    "flow_label": "test_marks_change_with_the_next_packet",
    "quotas": "test_an_admin_gives_and_takes_a_quota",
}
QUEUES = '[queues.cms]\nrate = "8 Mbit/s"\n'
LISTEN = """
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 9999))
print("bound", flush=True)
time.sleep(600)
"""


def test_every_setting_is_shown_to_change() -> None:
    """Each that can be set has its test, and every other is one that a sandbox is built of."""
    assert SHOWN.keys() == set(CHANGEABLE)
    assert set(SETTINGS) - SHOWN.keys() == set(BUILT)
    texts = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in SHOWN.values() if f"def {name}(" not in texts] == []


def said(record: Record) -> list[tuple[str, str, str]]:
    """Return what a record tells of changes."""
    return [(each.by, each.setting, each.value) for each in record.changes]


def test_marks_change_with_the_next_packet(lab: Lab, tmp_path: Path) -> None:
    """Code point and flow label, of one packet those of before and of the next the new ones."""
    lab.agent(QUICK)
    talkers = [Talker(lab, to=CAMPUS.ipv4), Talker(lab, to=CAMPUS.ipv6)]
    with Capture(CAMPUS.interface, tmp_path / "campus.pcap", lab.netns("campus")) as capture:
        for dscp, label in (("46", "74565"), ("8", "0"), ("0", "0")):
            for talker in talkers:
                talker.talk()
                told(change(lab, talker.job.job_id, f"dscp={dscp}", f"flow_label={label}"))
        for talker in talkers:
            talker.talk()
    for talker, address in zip(talkers, (WORKER.ipv4, WORKER.ipv6), strict=True):
        talker.end()
        sent = [p for p in flows(capture.path) if p.src == address and p.dport == 9]
        labels = (0, 74565, 0, 0) if ":" in address else (0, 0, 0, 0)
        wanted = zip((0, 46, 8, 0), labels, strict=True)
        marks = [(p.traffic_class >> 2, p.flow_label) for p in sent]
        assert marks == [each for each in wanted for _ in range(ONCE.packets)]
        record = final(lab, talker.job.job_id)
        assert record.usage.sent.packets == 4 * ONCE.packets
        assert {*said(record)[:2]} == {("root", "dscp", "46"), ("root", "flow_label", "74565")}


def test_services_are_taken_and_given(lab: Lab) -> None:
    """All that the site lists, one of them, none, and all again, to a job that runs."""
    listeners(lab)
    lab.agent(QUICK + SERVICES)
    asker = Asker(lab)
    job = asker.job.job_id
    proxy, license_ = "100.98.0.1,tcp,3128", "127.0.0.1,tcp,27000"
    assert asker.ask(proxy, license_) == {proxy, license_}
    for value, answered in (("license", {license_}), ("", set()), ("all", {proxy, license_})):
        told(change(lab, job, f"services={value}"))
        assert asker.ask(proxy, license_) == answered, value
    asker.end()
    record = final(lab, job)
    assert set(drops(record)) == {"service-denied"}
    assert [each[1:] for each in said(record)] == [
        ("services", "license"), ("services", "nothing"), ("services", "all"),
    ]  # fmt: skip


def test_a_port_opens_and_closes(lab: Lab) -> None:
    """A running job's port is the world's from one call to the next, and then no more."""
    lab.agent(QUICK)
    server = Server(lab, "", 8000, 8001)
    at = [WORKER.ipv4]
    open_to_all = {"tcp 8000 ipv4", "udp 8000 ipv4"}
    assert server.knock(8000, at=at) == set()
    told(change(lab, server.job.job_id, "inbound=ports", "ports=tcp/8000, udp/8000"))
    assert server.knock(8000, 8001, at=at) == open_to_all
    told(change(lab, server.job.job_id, "ports=tcp/8001"))
    assert server.knock(8000, 8001, at=at) == {"tcp 8001 ipv4"}
    told(change(lab, server.job.job_id, "inbound=established"))
    assert server.knock(8000, 8001, at=at) == set()
    record = server.end()
    assert {each[1:] for each in said(record)} == {
        ("inbound", "ports"), ("ports", "tcp/8000, udp/8000"), ("ports", "tcp/8001"),
        ("inbound", "established"),
    }  # fmt: skip


def test_jobs_get_and_lose_each_other(lab: Lab) -> None:
    """Only while both have said so, and for the next packet."""
    lab.agent(QUICK)
    listener = lab.start_job(python(LISTEN))
    until(lambda: "bound" in listener.starter.stdout, "a job that listens")
    until(lambda: listener.job_id in records(lab), "its record")
    address = f"100.98.0.{records(lab)[listener.job_id].slot + 2}"
    talker = Talker(lab, to=address, port=9999)
    talker.talk()
    told(change(lab, talker.job.job_id, "peers=owner"))
    talker.talk()
    told(change(lab, listener.job_id, "peers=owner"))
    talker.talk()
    told(change(lab, talker.job.job_id, "peers=none"))
    talker.talk()
    talker.end()
    listener.kill(9)
    listener.result()
    record = final(lab, talker.job.job_id)
    assert record.usage.sent == ONCE
    assert drops(record) == {"peer-denied": 3 * ONCE.packets}
    assert final(lab, listener.job_id).usage.received == ONCE
    assert [each[2] for each in said(record)] == ["owner", "none"]


def test_shares_change_while_jobs_send(lab: Lab) -> None:
    """A guarantee, a queue with a rate, a rank: each moves what two uploads get of one uplink."""
    lab.agent(QUICK + UPLINK + QUEUES)
    one, other = Upload(lab), Upload(lab)
    job = one.job.job_id

    def part(*settings: str) -> tuple[float, float]:
        """Return the pace of the one, and its part of both, after a change."""
        if settings:
            told(change(lab, job, *settings))
        first, second = paces(lab, one, other, seconds=2)
        return first, first / (first + second)

    _, equal = part()
    assert 0.3 < equal < 0.7
    pace, sure = part("guarantee=32 Mbit/s")
    assert pace > 25
    assert sure > equal + 0.1
    refused = change(lab, other.job.job_id, "guarantee=20 Mbit/s")
    assert refused.returncode == 6
    assert "8 Mbit/s are left" in refused.stderr
    pace, _ = part("guarantee=0", "queue=cms")
    assert 3 < pace < 8.5
    _, first = part("queue=none", "priority=0")
    assert first > equal + 0.1
    assert {each[1:] for each in said(one.end())} == {
        ("guarantee", "32 Mbit/s"), ("guarantee", "none"), ("queue", "cms"), ("queue", "none"),
        ("priority", "0"),
    }  # fmt: skip
    assert said(other.end()) == []


REFUSED = {
    "connectivity=routed": "'connectivity' cannot be set for a running job; there is cut",
    "network=lab": "'network' cannot be set for a running job",
    "ip=ipv6": "'ip' cannot be set for a running job",
    "profile=nat": "'profile' cannot be set for a running job",
    "guarantee=1 Mbit/s": "need [uplink] rate",
    "queue=cms": "no queue 'cms' is defined under [queues]",
    "services=license": "no service 'license' is defined under [services]",
    "quotas=q": "no quota 'q' is defined under [quotas]",
    "dscp=64": "is not a whole number from 0 to 63",
    "inbound=ports": "inbound ports opens none",
    "ports=tcp/8000": "set inbound=ports, too",
}


def test_what_cannot_be_set_is_refused_with_words(lab: Lab) -> None:
    """What a sandbox is built of, what the site does not have, and what would have no effect."""
    lab.agent(QUICK)
    talker = Talker(lab)
    job = talker.job.job_id
    for setting, words in REFUSED.items():
        done = change(lab, job, setting)
        assert done.returncode == 6, setting
        assert words in done.stderr, setting
    talker.talk()
    talker.end()
    record = final(lab, job)
    assert (record.usage.sent, said(record)) == (ONCE, [])


def test_a_job_without_a_link_gets_none(lab: Lab) -> None:
    """Services need one, which is built before the job starts; the words say so."""
    listeners(lab)
    lab.agent('default_profile = "none"\n' + QUICK + SERVICES)
    job = lab.start_job(["sleep", "600"])
    until(lambda: job.job_id in records(lab), "its record")
    done = change(lab, job.job_id, "services=license")
    assert done.returncode == 6
    assert "started without any link" in done.stderr
    assert said(records(lab)[job.job_id]) == []
    job.kill(9)
    job.result()


def test_no_rate_where_nothing_can_hold_it(on_a_site: Lab) -> None:  # noqa: F811  the fixture
    """On macvlan a running job gets neither rate nor share; its code point changes."""
    on_a_site.run(["ip", "link", "set", "up0", "nomaster"])
    on_a_site.agent(f'default_profile = "bare"\n{QUICK}{NETWORKS}{UPLINK}{QUEUES}')
    talker = Talker(on_a_site, to=SITE4)
    job = talker.job.job_id
    for setting in ("rate=8 Mbit/s", "guarantee=8 Mbit/s", "queue=cms", "priority=0"):
        done = change(on_a_site, job, setting)
        assert done.returncode == 6, setting
        assert "connectivity macvlan has no" in done.stderr, setting
    assert told(change(on_a_site, job, "dscp=8")) == [("root", "dscp", "8")]
    talker.talk()
    talker.end()
    record = final(on_a_site, job)
    assert (record.usage.sent, said(record)) == (ONCE, [("root", "dscp", "8")])
