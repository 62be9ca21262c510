"""What HTCondor's daemons keep running: what is printed, and whose account is written."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import click.testing
import grpc

from lark_agent.accounting.questions import JobRun
from lark_agent.cli import asking, htcondor
from lark_agent.cli.agent import agent
from lark_agent.cli.htcondor import (
    LIVE_SECONDS,
    LIVE_SHARE_SECONDS,
    Live,
    Meter,
    accounts,
    round_of_startd,
)
from lark_agent.hooks.htcondor_config import RUNNING
from lark_agent.model import ClassUsage, Count, Rates, Usage
from lark_agent.rpc import convert
from lark_agent.rpc.lark.v1 import agent_pb2
from tests.cli.fake import SECOND, make_record

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from lark_agent.model import Record
    from tests.cli.fake import Service

JOB = make_record(1).job.job_id


def told(service: Service, *ads: dict[str, object]) -> list[str]:
    """Return which jobs get an account."""
    with asking.connect(service.path) as asker:
        return [job for job, _ in accounts(asker, list(ads))]


def ad(owner: str = "alice", job: str = JOB) -> dict[str, object]:
    return {"ClusterId": 1, "ProcId": 0, "GlobalJobId": job, "Owner": owner}


def runs(service: Service, *records: Record) -> None:
    service.script.runs[JOB] = tuple(JobRun(record, ()) for record in records)


def test_the_startd_hears_of_machine_and_jobs(service: Service, tmp_path: Path) -> None:
    """One ad for all slots, then one for each that has a job; of two, the newer is the slot's."""
    places = [
        agent_pb2.Place(slot="slot1_1", record=convert.record_to_wire(make_record(number)))
        for number in (9, 2)
    ]
    service.script.machine = agent_pb2.GetMachineResponse(
        uplink="eth0", families=["ipv4"], places=places
    )
    lines = list(round_of_startd(service.path, Meter(tmp_path), 1000.0))
    assert lines[0] == "LarkReady = time() < 1030"
    assert [line for line in lines if line.startswith("- ")] == ["- machine", "- slot1_1"]
    assert lines[lines.index("- machine") + 1] == (
        'SlotMergeConstraint = regexp("^slot1_1(@|$)", Name)'
    )


def test_the_newer_job_of_a_slot_is_the_one_that_is_told(service: Service, tmp_path: Path) -> None:
    """Whatever the order of the answer, bytes of the job that ended are not the next one's."""
    old = make_record(1)
    new = replace(old, started_ns=old.started_ns + SECOND, usage=replace(old.usage, classes=()))
    for pair in ((old, new), (new, old)):
        service.script.machine = agent_pb2.GetMachineResponse(
            places=[agent_pb2.Place(slot="slot1_1", record=convert.record_to_wire(r)) for r in pair]
        )
        lines = list(round_of_startd(service.path, Meter(tmp_path), 1000.0))
        assert "JobNetworkIncoming = 0" in lines


def test_a_worker_without_its_agent_is_not_ready(service: Service, tmp_path: Path) -> None:
    """The startd is told at once, with the reason."""
    service.script.refusal = grpc.StatusCode.PERMISSION_DENIED, 'the "observers" do not list you'
    ready, problem, end = round_of_startd(service.path, Meter(tmp_path), 1000.0)
    assert (ready, end) == ("LarkReady = false", "- machine")
    assert '\\"observers\\" do not list you' in problem


def test_the_uplink_is_measured(tmp_path: Path) -> None:
    """Rates are of the time between two looks at one interface; a first look knows none."""
    counters = tmp_path / "eth0" / "statistics"
    counters.mkdir(parents=True)

    def look(sent: int, received: int, now: float) -> Rates:
        (counters / "tx_bytes").write_text(f"{sent}\n")
        (counters / "rx_bytes").write_text(f"{received}\n")
        return meter.rates("eth0", now)

    meter = Meter(tmp_path)
    assert look(1000, 5000, 10.0) == Rates()
    assert look(3000, 5000, 12.0) == Rates(8000, 0)
    assert look(0, 6000, 13.0) == Rates(0, 8000)
    assert meter.rates("gone", 14.0) == Rates()


def test_an_account_waits_for_every_run(service: Service) -> None:
    """It is written once, so not before the last record is final, nor without one."""
    assert told(service, ad()) == []
    runs(service, make_record(1), replace(make_record(2), job=make_record(1).job, final=False))
    assert told(service, ad()) == []
    runs(service, make_record(1))
    assert told(service, ad()) == ["1.0"]


def test_an_account_is_of_the_owners_jobs_that_the_batch_system_started(service: Service) -> None:
    """A record under the same id of another user, or of nobody's launch, is not the job's."""
    runs(service, make_record(1))
    assert told(service, ad(owner="bob")) == []
    mine = make_record(1)
    runs(service, replace(mine, job=replace(mine.job, verified=False)))
    assert told(service, ad()) == []


def write_worker_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Write the file for a worker with these settings; returns what was said, and the file."""
    monkeypatch.setattr(htcondor, "program", lambda name: f"/opt/bin/{name}")
    settings, output = tmp_path / "agent.toml", tmp_path / "50-lark"
    settings.write_text(
        f'[htcondor]\nprograms = "{tmp_path}/lark"\nlibexec = "{tmp_path}/condor"\n'
    )
    done = click.testing.CliRunner().invoke(
        agent, ["htcondor-config", "--config", str(settings), "--output", str(output)]
    )
    assert done.exit_code == 0
    return done.output, output.read_text()


def test_running_jobs_are_told_of_when_they_moved(service: Service) -> None:
    """At once, then not before `LIVE_SECONDS` and not again what the queue has."""
    now = 0.0
    live = Live(lambda: now)

    def told() -> list[str]:
        with asking.connect(service.path) as asker:
            return [attributes["NetworkIncoming"] for _, attributes in live.round(asker, ask)]

    def ask(are: str) -> list[dict[str, object]]:
        assert are == RUNNING
        return [ad()]

    runs(service, replace(make_record(1), final=False))
    first = told()
    assert len(first) == 1
    runs(service, replace(make_record(1), usage=Usage((ClassUsage("x", Count(), Count(1, 5)),))))
    now = LIVE_SECONDS / 2
    assert told() == []
    now = LIVE_SECONDS
    assert told() == ["5"] != first
    now = 2 * LIVE_SECONDS
    assert told() == []


def test_running_jobs_take_a_bounded_time(service: Service) -> None:
    """However many there are, a round ends; the next goes on where it stopped."""
    clock = itertools.count(0, LIVE_SHARE_SECONDS / 3)
    live = Live(lambda: float(next(clock)))
    runs(service, make_record(1))
    jobs = [{**ad(), "ProcId": number} for number in range(5)]
    with asking.connect(service.path) as asker:
        rounds = [[job for job, _ in live.round(asker, lambda _: list(jobs))] for _ in range(3)]
    assert [len(each) for each in rounds] == [2, 3, 0]
    assert len({job for each in rounds for job in each}) == len(jobs)


def test_the_file_for_the_worker_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the program as HTCondor has to start it, and the configuration that it was told."""
    for needed in ("lark/lark-sshd-setup", "condor/condor_ssh_to_job_sshd_setup"):
        (tmp_path / needed).parent.mkdir()
        (tmp_path / needed).touch(mode=0o755)
    said, text = write_worker_file(tmp_path, monkeypatch)
    assert said == ""
    assert "STARTD_CRON_LARK_EXECUTABLE = /opt/bin/lark-agent\n" in text
    assert f"STARTD_CRON_LARK_ARGS = htcondor-startd --config {tmp_path}/agent.toml\n" in text
    assert f"USER_JOB_WRAPPER = {tmp_path}/lark/lark-run\n" in text
    assert f"STARTER.LIBEXEC = {tmp_path}/lark/htcondor\n" in text
    assert "ENABLE_SSH_TO_JOB" not in text


def test_without_htcondors_script_there_is_no_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be had run in the sandbox is turned off, and the admin is told."""
    said, text = write_worker_file(tmp_path, monkeypatch)
    assert "condor_ssh_to_job will be off: " in said
    assert "ENABLE_SSH_TO_JOB = false\n" in text
    assert "STARTER.LIBEXEC" not in text
