"""Quotas that a pool of workers shares: never passed, and failing as the site chose."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.agent.worker import ONCE, Talker, drops, final, kill, python, records, until
from tests.lab.topology import CAMPUS, WORKER2
from tests.lab.world import Lab

if TYPE_CHECKING:
    from lark_agent.model import Record

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
LIMIT = 6_000_000
PACKET = ONCE.bytes // ONCE.packets
PACED = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[2])):
    for _ in range(10):
        try:
            s.sendto(bytes(1000), (sys.argv[1], 9))
        except OSError:
            pass
    time.sleep(0.005)
"""


def worker(
    collector: str, quota: str = "", limit: int = LIMIT, per: str = "owner", name: str = "worker"
) -> str:
    return f"""worker = "{name}"
default_profile = "shared"
[accounting]
interval_seconds = 1
[pool]
slots = 4
ready = 2
[collector]
address = "{collector}:9620"
insecure = true
[profiles.shared]
quotas = ["q"]
[quotas.q]
bytes = "{limit}"
per = "{per}"
action = "cut-class"
{quota}
"""


def standings(lab: Lab, host: str) -> dict[str, dict[str, int]]:
    """Return how the quota stands for each subject."""
    told = lab.run(["lark", "quota", "--json"], host=host).stdout
    return {found["subject"]: found for found in json.loads(told)["quotas"]}


def standing(lab: Lab, host: str) -> dict[str, int]:
    (found,) = standings(lab, host).values()
    return found


def ended(lab: Lab, number: int) -> list[dict[str, Any]]:
    """Wait until the collector has so many final records, and return them."""

    def final_ones() -> list[dict[str, Any]]:
        told = lab.run(["lark", "jobs", "--json"], host="campus").stdout
        found: list[dict[str, Any]] = json.loads(told)["jobs"]
        return found if len(found) == number and all(job["final"] for job in found) else []

    answer: list[dict[str, Any]] = until(final_ones, f"{number} final records at the collector")
    return answer


def test_two_workers_share_one_pool() -> None:
    """Four jobs on two workers offer three times the quota: it passes nearly whole, and no more."""
    with Lab(second=True) as lab:
        lab.collector('listen = "0.0.0.0:9620"', host="campus")
        for host in ("worker", WORKER2.name):
            lab.agent(worker(CAMPUS.ipv4, name=host), host=host)
        jobs = [
            lab.start_job(python(PACED, CAMPUS.ipv4, "400"), host=host)
            for host in ("worker", WORKER2.name)
            for _ in range(2)
        ]
        assert [job.result().status for job in jobs] == [0] * 4
        found = ended(lab, 4)
        sent = sum(job["sent"]["bytes"] for job in found)
        assert 0.9 * LIMIT < sent <= LIMIT
        assert all(job["drops"] for job in found)
        until(lambda: standing(lab, "campus")["workers"] == 0, "both leases to be given back")
        assert standing(lab, "campus")["used"] == sent


def test_each_group_has_a_pool_of_its_own() -> None:
    """Two owners of one group use it up, each on a worker; another group's jobs notice nothing."""
    with Lab(second=True) as lab:
        lab.collector('listen = "0.0.0.0:9620"', host="campus")
        for host in ("worker", WORKER2.name):
            lab.agent(worker(CAMPUS.ipv4, per="group", name=host), host=host)
        # 10 packets a turn: the one offers twice the quota, the other less than its first leases
        turns = {"cms": LIMIT // PACKET // 10, "atlas": LIMIT // PACKET // 120}
        jobs = [
            lab.start_job(
                python(PACED, CAMPUS.ipv4, f"{turns[group]}"),
                user=user, host=host, ad={"AcctGroup": group},
            )
            for group in turns
            for user, host in (("alice", "worker"), ("bob", WORKER2.name))
        ]  # fmt: skip
        assert [job.result().status for job in jobs] == [0] * 4
        found = ended(lab, 4)
        sent = {
            group: [job["sent"]["packets"] for job in found if job["accounting_group"] == group]
            for group in turns
        }
        assert 0.9 * LIMIT < sum(sent["cms"]) * PACKET <= LIMIT
        # a busy machine may take longer for the first leases than a job waits for them
        assert sum(sent["atlas"]) > 0.9 * 20 * turns["atlas"]
        assert all(job["drops"] for job in found if job["accounting_group"] == "cms")

        def given_back() -> dict[str, dict[str, int]]:
            pools = standings(lab, "campus")
            return pools if not any(each["workers"] for each in pools.values()) else {}

        pools = until(given_back, "the leases to be given back")
        used = {group: each["used"] for group, each in pools.items()}
        assert used == {group: sum(packets) * PACKET for group, packets in sent.items()}


def cut_off(lab: Lab, choice: str) -> Talker:
    """Run a job, and take the collector away."""
    collector = lab.collector()
    agent = lab.agent(worker("127.0.0.1", f'unreachable = "{choice}"', 2_000_000))
    talker = Talker(lab)
    talker.talk()
    until(lambda: standing(lab, "worker")["used"] == ONCE.bytes, "the collector's book")
    kill(collector)
    until(lambda: "cannot report" in agent.stderr, "the agent to notice")
    if choice == "continue":
        until(lambda: "lets everything through" in agent.stderr, "the agent's patience to end")
    return talker


def moved(lab: Lab, talker: Talker) -> Record:
    for _ in range(30):
        talker.talk()
    talker.end()
    return final(lab, talker.job.job_id)


def test_a_collector_that_is_gone_cuts(lab: Lab) -> None:
    """With "cut" the lease that was granted is used, and then nothing; the pool is not passed."""
    talker = cut_off(lab, "cut")
    for _ in range(30):
        talker.talk()
    (change,) = until(lambda: records(lab)[talker.job.job_id].changes, "the record of the cut")
    assert (change.by, change.setting) == ("quota q", "cut-class")
    assert change.value.startswith("the collector cannot be asked")
    talker.end()
    record = final(lab, talker.job.job_id)
    # granted were 1 MB at once, and half of what was left if it was asked for in time
    assert 1_000_000 - PACKET < record.usage.sent.bytes <= 1_500_000
    assert drops(record)["quota"] == 3100 - record.usage.sent.packets


def test_a_collector_that_is_gone_may_be_done_without(lab: Lab) -> None:
    """With "continue" everything passes, and is booked when the collector is back."""
    talker = cut_off(lab, "continue")
    record = moved(lab, talker)
    assert record.usage.sent.bytes == 31 * ONCE.bytes
    assert record.usage.drops == ()
    lab.collector()
    until(lambda: standing(lab, "worker")["used"] == 31 * ONCE.bytes, "the collector's book")
    # the next job finds it used up
    later = Talker(lab)
    later.talk()
    until(lambda: records(lab)[later.job.job_id].changes, "the record of the cut")
    later.end()
    assert final(lab, later.job.job_id).usage.sent.packets == 0


def test_a_restarted_agent_keeps_its_lease(lab: Lab) -> None:
    """What it was granted and used before counts on; the collector sees one lease."""
    lab.collector()
    config = worker("127.0.0.1")
    agent = lab.agent(config)
    talker = Talker(lab)
    talker.talk()
    kill(agent)
    talker.talk()
    lab.agent(config)
    talker.talk()
    until(lambda: standing(lab, "worker")["used"] == 3 * ONCE.bytes, "the collector's book")
    assert standing(lab, "worker")["workers"] == 1
    talker.end()
    assert final(lab, talker.job.job_id).usage.drops == ()
