"""Agents come and go; jobs and their counts do not."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import Count, ExitReason
from tests.agent.worker import (
    ONCE,
    QUICK,
    Talker,
    final,
    in_kernel,
    kill,
    links,
    pins,
    records,
    refused_start,
    sandboxes,
    times,
    until,
)
from tests.lab.capture import Capture, flows
from tests.lab.topology import CAMPUS, WORKER

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.process import Process
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
SMALL = "[pool]\nslots = 4\nready = 4\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_jobs_outlive_the_agent(lab: Lab, number: signal.Signals) -> None:
    """A job talks before, without and after the agent; the next one adopts it: exact totals."""
    agent = lab.agent(QUICK)
    job, other = Talker(lab), Talker(lab, user="bob")
    job.talk()
    agent.signal(number)
    agent.wait()
    job.talk()
    other.talk()
    other.end()
    agent = lab.agent(QUICK)
    job.talk()
    absent = final(lab, other.job.job_id)
    assert (absent.exit_reason, absent.usage.sent) == (ExitReason.AGENT_ABSENT, ONCE)
    job.end()
    record = final(lab, job.job.job_id)
    assert (record.exit_reason, record.usage.sent) == (ExitReason.EXITED, times(ONCE, 3))
    assert agent.terminate() == 0
    assert in_kernel(lab) == set()


def test_a_transfer_goes_on_under_a_killed_agent(lab: Lab, tmp_path: Path) -> None:
    """A download runs through SIGKILL and restart of the agent; the record equals the capture."""
    agent = lab.agent(QUICK)
    url = f"http://{CAMPUS.ipv4}/bytes/30000000"
    command = ["curl", "-sSf", "--limit-rate", "12M", "-o", "/dev/null", url]
    with Capture("eth0", tmp_path / "campus.pcap", lab.netns("campus")) as capture:
        job = lab.start_job(command)
        until(lambda: capture.path.stat().st_size > 100_000, "a transfer")
        kill(agent)
        lab.agent(QUICK)
        done = job.result()
        assert done.status == 0, done.stderr
        record = final(lab, job.job_id)
    packets = flows(capture.path)
    sent = [packet.ip_len for packet in packets if packet.src == WORKER.ipv4]
    received = [packet.ip_len for packet in packets if packet.dst == WORKER.ipv4]
    # on a busy machine the download may be over before the next agent serves
    assert record.exit_reason in {ExitReason.EXITED, ExitReason.AGENT_ABSENT}
    assert record.usage.sent == Count(len(sent), sum(sent))
    assert record.usage.received == Count(len(received), sum(received))
    assert sum(received) > 30_000_000


def test_a_killed_agents_leftovers_are_dismantled(lab: Lab) -> None:
    """Idle and half-built sandboxes of a killed agent go, and their slots serve jobs again."""
    kill(_settled(lab, "[pool]\nslots = 8\nready = 8\n", 8))
    # half of one: a namespace without a link, and a link without a namespace
    lab.run(["ip", "link", "delete", "lark3"])
    lab.run(["umount", "/run/netns/lark4"])
    lab.run(["rm", "/run/netns/lark4"])
    agent = lab.agent("[pool]\nslots = 2\nready = 2\nwait_seconds = 0.2\n[nat]\nrest_seconds = 0\n")
    until(lambda: sandboxes(lab) == links(lab) == {"lark0", "lark1"}, "a pool of two slots")
    first, second = Talker(lab), Talker(lab)
    third = lab.job(["true"])
    assert third.status == 125
    assert "no network sandbox became free within 0.2 s" in third.stderr
    for talker in (first, second):
        talker.end()
        final(lab, talker.job.job_id)
    assert agent.terminate() == 0
    assert in_kernel(lab) == set()
    assert "Traceback" not in agent.stderr


def _settled(lab: Lab, config: str, number: int) -> Process:
    agent = lab.agent(config)
    until(lambda: len(sandboxes(lab)) >= number and len(links(lab)) >= number, "a full pool")
    return agent


def test_a_name_without_a_namespace_stops_no_agent(lab: Lab) -> None:
    """What an agent leaves that is killed between making a name and its namespace is cleared."""
    lab.run(["mkdir", "-p", "/run/netns"])
    lab.run(["touch", "/run/netns/lark2", "/run/netns/lark9"])
    lab.agent(QUICK)
    assert lab.job(["true"]).status == 0
    until(lambda: "lark9" not in sandboxes(lab), "the name to go")


def test_an_agent_stopped_while_it_builds_leaves_nothing(lab: Lab) -> None:
    """SIGTERM in the middle of filling the pool takes down what is being built, too."""
    for _ in range(3):
        agent = lab.agent("[pool]\nslots = 64\nready = 64\n")
        assert agent.terminate() == 0
        assert in_kernel(lab) == set()


def test_a_job_that_the_journal_does_not_know_loses_its_network(lab: Lab) -> None:
    """Without its row in the journal a job's sandbox goes, and its slot serves the next job."""
    one = "[pool]\nslots = 1\nready = 1\n[nat]\nrest_seconds = 0\n"
    kill_with_job = lab.agent(one)
    orphan = Talker(lab)
    kill(kill_with_job)
    lab.run(["sh", "-c", "rm /var/lib/lark/journal.sqlite*"])
    lab.agent(one)
    talker = Talker(lab, user="bob")
    talker.talk()
    talker.end()
    assert final(lab, talker.job.job_id).usage.sent == ONCE
    orphan.talk()
    orphan.end()
    assert orphan.job.job_id not in records(lab)


def test_removed_pins_end_the_accounting_of_a_job(lab: Lab) -> None:
    """Counters that were removed cannot be guessed: last durable totals, `truncated`."""
    agent = lab.agent(QUICK)
    talker = Talker(lab)
    talker.talk()
    until(lambda: records(lab)[talker.job.job_id].usage.sent == ONCE, "a sample")
    agent.terminate()
    lab.run(["rm", "-r", "/sys/fs/bpf/lark"])
    lab.agent(QUICK)
    record = final(lab, talker.job.job_id)
    assert (record.exit_reason, record.usage.sent) == (ExitReason.TRUNCATED, ONCE)
    until(lambda: f"lark{record.slot}" not in links(lab), "the job's link to go")
    talker.end()
    assert pins(lab).exists()


@pytest.mark.parametrize(
    "change",
    [SMALL.replace("4", "8"), SMALL + '[addresses]\nipv4 = "10.98.0.0/16"\n'],
    ids=["slots", "addresses"],
)
def test_the_arithmetic_stays_while_jobs_run(lab: Lab, change: str) -> None:
    """Slots or addresses changed under a running job are refused; the job and its count go on."""
    agent = lab.agent(SMALL)
    talker = Talker(lab)
    agent.terminate()
    status, words = refused_start(lab, change)
    assert status == 3
    assert "1 jobs still run with other addresses or NAT ports" in words
    assert "restore [addresses], [nat] and [pool] slots" in words
    talker.talk()
    agent = lab.agent(SMALL)
    talker.talk()
    talker.end()
    assert final(lab, talker.job.job_id).usage.sent == times(ONCE, 2)
    agent.terminate()
    assert in_kernel(lab) == set()
    assert lab.agent(change).terminate() == 0


def test_a_second_agent_is_refused(lab: Lab) -> None:
    """It ends with status 3 and names the first; the first goes on."""
    first = lab.agent(QUICK)
    status, words = refused_start(lab, QUICK)
    assert status == 3
    assert f"another lark-agent (pid {first.pid_inside}) works on this worker" in words
    assert lab.job(["true"]).status == 0
