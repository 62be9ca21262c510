"""What HTCondor's daemons are told, as text."""

from __future__ import annotations

from lark_agent.hooks import htcondor_ads
from lark_agent.hooks.htcondor_ads import MachineState
from lark_agent.model import (
    ClassUsage,
    Connectivity,
    Count,
    Job,
    Rates,
    Record,
    Scheduler,
    Usage,
)

JOB = Job(Scheduler.HTCONDOR, "s#1.0#1", "alice", 1001, verified=True)
SECOND = 10**9


def record(
    *classes: ClassUsage,
    started: int = 100,
    seconds: int = 8,
    cost: int = 0,
    transfer: Usage | None = None,
) -> Record:
    """Return the final record of a run of a job."""
    return Record(
        f"run-at-{started}", "w", 0, JOB, "nat", Connectivity.NAT, started * SECOND,
        ended_ns=(started + seconds) * SECOND, usage=Usage(classes), cost=cost, final=True,
        transfer=transfer,
    )  # fmt: skip


MOVED = Usage((ClassUsage("other", Count(4, 5000), Count(6, 7000)),))


def usage(name: str, sent: int, received: int) -> ClassUsage:
    return ClassUsage(name, Count(1, sent), Count(1, received))


def test_a_starter_names_its_slot() -> None:
    """The word after -a, where it can be a slot's name; nothing else is taken for one."""
    assert htcondor_ads.slot_of(["condor_starter", "-f", "-a", "slot1_3", "host"]) == "slot1_3"
    assert htcondor_ads.slot_of(["-a", "slot1_3"]) == ""
    assert htcondor_ads.slot_of(["condor_starter", "-a"]) == ""
    assert htcondor_ads.slot_of(["condor_starter", "-a", 'x" || true']) == ""


def test_a_slot_gets_its_job_and_no_other() -> None:
    """The constraint is the slot's whole name; nothing is a metric, which jobs could forge."""
    ad = htcondor_ads.slot_ad("slot1_3", record(usage("lhc-one", 5, 7), usage("other", 0, 2)))
    assert ad == {
        "SlotMergeConstraint": 'regexp("^slot1_3(@|$)", Name)',
        "JobNetworkIncoming": "9",
        "JobNetworkOutgoing": "5",
        "JobNetworkIncomingByClass": "[ lhc_one = 7; other = 2 ]",
        "JobNetworkOutgoingByClass": "[ lhc_one = 5 ]",
        "JobNetworkRecord": '"run-at-100"',
    }


def test_what_a_job_has_moved_so_far_is_part_of_its_account() -> None:
    """The same names, so that nobody else may write them, and the same numbers."""
    records = [record(usage("campus", 1, 2)), record(usage("campus", 3, 4))]
    account = htcondor_ads.job_attributes(records)
    assert htcondor_ads.so_far(records).items() < account.items()


def test_the_account_adds_up_all_runs() -> None:
    """A job that was started twice has moved what both runs have; the rate is over both."""
    found = htcondor_ads.job_attributes(
        [
            record(usage("campus", 1_000_000, 2_000_000), cost=1_500_000, transfer=MOVED),
            record(
                usage("campus", 0, 1_000_000), usage("other", 4, 0), started=200, seconds=24,
                transfer=MOVED,
            ),
        ]
    )  # fmt: skip
    assert set(found) == set(htcondor_ads.ACCOUNT)
    assert (found["NetworkIncoming"], found["NetworkOutgoing"]) == ("3000000", "1000004")
    assert found["NetworkIncomingByClass"] == "[ campus = 3000000 ]"
    assert found["NetworkOutgoingByClass"] == "[ campus = 1000000; other = 4 ]"
    assert found["AverageBandwidthUsage"] == "1.000001"
    assert found["AverageBandwidthUsageIncoming"] == "0.750000"
    assert found["AverageBandwidthUsageOutgoing"] == "0.250001"
    assert found["AverageBandwidthUsageIncomingByClass"] == "[ campus = 0.750000 ]"
    assert (
        found["AverageBandwidthUsageOutgoingByClass"] == "[ campus = 0.250000; other = 0.000001 ]"
    )
    assert found["NetworkCost"] == "1.500000"
    assert found["NetworkRecord"] == '"run-at-100,run-at-200"'
    assert found["NetworkTransferIncoming"] == "14000"
    assert found["NetworkTransferOutgoing"] == "10000"


def test_a_transfer_that_was_not_accounted_is_not_zero() -> None:
    """One run without an account of its files leaves the whole job without one."""
    found = htcondor_ads.job_attributes([record(transfer=MOVED), record(started=200)])
    assert not [name for name in found if "Transfer" in name]


def test_the_machine_never_promises_more_than_it_has() -> None:
    """Capacity is rounded down in the weaker direction, what is booked up in the fuller."""
    state = MachineState(
        "eth0", ("nat", "none"), ("ipv4", "ipv6"), {"lhcone": 3001, "lab": 0},
        Rates(10**9, 900_900_000), Rates(1, 100_000_000),
    )  # fmt: skip
    ad = htcondor_ads.machine_ad(state, Rates(1_500_000, 0), ready_until=130)
    assert (ad["BandwidthCapacity"], ad["BandwidthBooked"]) == ("900", "100")
    assert ad["AvailBandwidth"] == "800"
    assert ad["BandwidthUsedOutgoing"] == "1.500"
    assert ad["VLAN"] == '"lab,lhcone,3001"'
    assert ad["IPProtocol"] == '"IPv4,IPv6"'
    assert ad["LarkReady"] == "time() < 130"
