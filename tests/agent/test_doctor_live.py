"""`lark doctor --live` on real agents: a healthy worker passes, and every row can fail."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lark_agent.agent.reconcile import Silence
from lark_agent.cli import gc
from lark_agent.cli.doctor import live, verdicts
from lark_agent.cli.doctor.findings import Level
from lark_agent.cli.doctor.peer import HERE, LINK, THERE, Heard
from lark_agent.cli.doctor.verdicts import FORBIDDEN, HEADERS, NUMBER, SIZE, Outcome
from lark_agent.config import AgentSettings
from lark_agent.model import (
    ClassUsage,
    Connectivity,
    Count,
    Drop,
    Job,
    Record,
    Refused,
    Scheduler,
    Usage,
)
from tests.agent.worker import ONCE, QUICK, Talker, final, links, records

if TYPE_CHECKING:
    from tests.lab.world import Lab

CONFIG = f"{QUICK}[nat]\nrest_seconds = 0\n"
SENT = Count(2 * NUMBER, NUMBER * (2 * SIZE + HEADERS[4] + HEADERS[6]))


def doctor(lab: Lab, *options: str) -> tuple[int, dict[str, set[str]], str]:
    """Return exit status, levels by check, and all that was said."""
    done = lab.run(["lark", "doctor", "--live", "--json", *options], check=False, timeout=120)
    findings = json.loads(done.stdout)["findings"]
    assert all(row["remedy"] or row["level"] == "ok" for row in findings), findings
    levels: dict[str, set[str]] = {}
    for row in findings:
        levels.setdefault(row["check"], set()).add(row["level"])
    return done.returncode, levels, done.stdout


def test_a_healthy_worker_passes_and_its_jobs_notice_nothing(lab: Lab) -> None:
    """Every row is good, the record is exact, no trace is left; a job beside it stays exact."""
    lab.agent(CONFIG)
    talker = Talker(lab)
    status, levels, said = doctor(lab)
    assert status == 0, said
    checks = {"trial job", "way out", "translation", "account", "refusals", "clean-up"}
    assert levels == {check: {"ok"} for check in checks}, said
    talker.talk()
    talker.end()
    assert final(lab, talker.job.job_id).usage.sent == ONCE
    trial = next(r for r in records(lab).values() if r.job.job_id.startswith("doctor-"))
    assert (trial.final, trial.usage.sent, trial.usage.received) == (True, SENT, SENT)
    assert LINK not in lab.run(["ip", "-br", "link"]).stdout
    assert str(THERE[0]) not in lab.run(["ip", "route"]).stdout


def test_faults_of_the_worker_fail_the_row_that_they_concern(lab: Lab) -> None:
    """A firewall in the way, a detached datapath, a NAT table changed: each is found."""
    lab.agent(CONFIG)
    lab.run(["nft", "add table ip b; add chain ip b f { type filter hook forward priority 10; }"])
    lab.run(["nft", f"add rule ip b f ip daddr {THERE[0]} drop"])
    status, levels, said = doctor(lab)
    lab.run(["nft", "delete table ip b"])
    assert (status, levels["way out"], levels["clean-up"]) == (8, {"ok", "fail"}, {"ok"}), said

    for name in links(lab):
        lab.run(["tc", "qdisc", "del", "dev", name, "clsact"])
    status, levels, said = doctor(lab)
    assert status == 8, said
    assert (levels["account"], levels["refusals"]) == ({"fail"}, {"fail"}), said

    for slot in range(4):
        lab.run(["nft", f"flush chain inet lark lark{slot}"])
    status, levels, said = doctor(lab)
    assert (status, levels["translation"]) == (8, {"fail"}), said


def test_a_full_pool_is_left_to_its_jobs(lab: Lab) -> None:
    """No trial is made when it would keep a job out; it says so, with a status of its own."""
    lab.agent("[pool]\nslots = 1\nready = 1\nwait_seconds = 5\n")
    talker = Talker(lab)
    status, levels, said = doctor(lab)
    assert (status, levels) == (9, {"trial job": {"unchecked"}}), said
    assert "slots are taken" in said
    assert len(records(lab)) == 1
    talker.end()


def test_what_cannot_be_tried_is_said(lab: Lab) -> None:
    """A sandbox without a network has no way out; without an agent there is nothing to try."""
    agent = lab.agent(f'default_profile = "none"\n{CONFIG}')
    status, levels, said = doctor(lab)
    assert (status, levels["way out"], levels["clean-up"]) == (9, {"unchecked"}, {"ok"}), said
    assert doctor(lab, "--user", "nosuch")[0] == 9
    assert doctor(lab, "--user", "root")[0] == 9
    agent.signal(15)
    agent.wait()
    status, levels, said = doctor(lab)
    assert (status, levels) == (8, {"agent": {"fail"}}), said


def good() -> Outcome:
    usage = Usage(
        (ClassUsage("other", SENT, SENT),), (Drop("service-denied", Count(FORBIDDEN, 185)),)
    )
    record = Record(
        "id", "w", 0, Job(Scheduler.PLAIN, "doctor-1", "nobody", 65534), "nat", Connectivity.NAT, 1,
        final=True, first_port=100, last_port=199, ipv4="100.98.0.1", ipv6="fd00::1", usage=usage,
    )  # fmt: skip
    talked = {"sent": NUMBER, "received": NUMBER, "why": ""}
    said = {"talked": {"4": talked, "6": talked}, "forbidden": FORBIDDEN}
    heard = {
        version: [Heard(str(here), 150, SIZE)] * NUMBER
        for version, here in zip((4, 6), HERE, strict=True)
    }
    return Outcome(record, said, heard, 0)


def used(**changes: Any) -> Outcome:
    outcome = good()
    usage = replace(outcome.record.usage, **changes)
    return replace(outcome, record=replace(outcome.record, usage=usage))


def levels(outcome: Outcome) -> dict[str, set[Level]]:
    return {name: {f.level for f in look(outcome)} for name, look in verdicts.FINDINGS}


def test_a_good_outcome_has_only_good_findings() -> None:
    """The starting point of the cases below."""
    assert set.union(*levels(good()).values()) == {Level.OK}


ELSEWHERE = {4: [Heard("192.0.2.1", 150, SIZE)], 6: []}
OTHER_PORT = {4: [Heard(str(HERE[0]), 99, SIZE)], 6: []}
NOBODY: dict[int, list[Heard]] = {4: [], 6: []}
ONE_BYTE_MORE = ClassUsage("other", SENT + Count(0, 1), SENT)
DENIED = Drop("class-denied", Count(1, SIZE), (Refused("other", 1),))


@pytest.mark.parametrize(
    ("outcome", "check", "level"),
    [
        (used(classes=(ONE_BYTE_MORE,)), "account", Level.FAIL),
        (replace(good(), record=replace(good().record, final=False)), "account", Level.FAIL),
        (used(drops=()), "refusals", Level.FAIL),
        (replace(good(), arrived=1), "refusals", Level.FAIL),
        (replace(good(), heard=ELSEWHERE), "translation", Level.FAIL),
        (replace(good(), heard=OTHER_PORT), "translation", Level.FAIL),
        (replace(good(), heard=NOBODY), "way out", Level.FAIL),
        (replace(used(classes=(), drops=(DENIED,)), heard=NOBODY), "way out", Level.UNCHECKED),
        (used(classes=(), drops=(DENIED,)), "account", Level.UNCHECKED),
    ],
)  # fmt: skip
def test_what_differs_is_found(outcome: Outcome, check: str, level: Level) -> None:
    """One byte in the record, one address or port, one packet that got through."""
    assert levels(outcome)[check] == {level}


def test_leftovers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the agent's own comparison calls nobody's fails the trial's clean-up."""
    monkeypatch.setattr(live, "SLACK_SECONDS", -60.0)  # the time for it is over at once
    monkeypatch.setattr(gc, "wanted", lambda _: (Silence(3),))
    (found,) = live._left(AgentSettings(), ("", 0))
    assert found.level is Level.FAIL
    assert "slot 3" in found.found
