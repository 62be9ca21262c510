"""What job, peer and record of a trial say together: findings of `lark doctor --live`.

Pure: a finding follows from an `Outcome` alone, so each of them can be tried without a worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lark_agent.cli.doctor.findings import fail, ok, unchecked
from lark_agent.cli.doctor.peer import HERE, Heard
from lark_agent.model import Connectivity, Count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lark_agent.cli.doctor.findings import Finding
    from lark_agent.model import Record

NUMBER, SIZE = 50, 1000
"""Datagrams to the peer for each IP version, and bytes of each."""
FORBIDDEN = 5
"""Datagrams to a closed port of the worker."""
HEADERS = {4: 28, 6: 48}
"""Bytes of IP and UDP headers."""
LOG = "journalctl -u lark-agent"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the three have to say."""

    record: Record
    said: Mapping[str, Any]
    """By the job."""
    heard: Mapping[int, Sequence[Heard]]
    """By the peer, by IP version."""
    arrived: int
    """Forbidden datagrams that got through."""


def way_out(outcome: Outcome) -> Iterator[Finding]:
    """Check that what was sent came to the peer, and the answers to the job."""
    for version, talked in outcome.said["talked"].items():
        heard = len(outcome.heard[int(version)])
        numbers = (
            f"IPv{version}: {talked['sent']} of {NUMBER} datagrams sent, the peer heard {heard}, "
            f"{talked['received']} answers came"
        )
        if talked["sent"] == heard == talked["received"] == NUMBER:
            yield ok(numbers)
        elif denied := _kept_from_peer(outcome.record):
            yield unchecked(
                f"{numbers}: the policy denies the class of the peer ({denied})",
                "see with --user an account whose jobs may reach it",
            )
        else:
            yield fail(
                f"{numbers}; {talked['why']}",
                "`lark doctor` looks at forwarding and other firewalls; nft list ruleset shows "
                f"what drops packets between lark* and other interfaces; {LOG}",
            )


def _kept_from_peer(record: Record) -> str:
    return ", ".join(
        each.traffic_class
        for drop in record.usage.drops
        if drop.reason == "class-denied"
        for each in drop.classes
    )


def translation(outcome: Outcome) -> Iterator[Finding]:
    """Check that the peer saw what it was to see: the worker's address, or the sandbox's own."""
    record = outcome.record
    translated = record.connectivity is Connectivity.NAT
    for (version, heard), here in zip(outcome.heard.items(), HERE, strict=True):
        if not heard:
            continue
        own = record.ipv4 if version == 4 else record.ipv6
        wanted = str(here) if translated else own
        wrong = [
            each
            for each in heard
            if each.source != wanted
            or (translated and not record.first_port <= each.port <= record.last_port)
        ]
        block = f", ports {record.first_port} to {record.last_port}" if translated else ""
        if wrong:
            yield fail(
                f"IPv{version}: the peer saw {wrong[0].source} port {wrong[0].port} "
                f"instead of {wanted}{block}",
                "another ruleset translates before the agent's, or has changed it: nft list table "
                "inet lark; systemctl restart lark-agent writes it anew, and jobs go on",
            )
        else:
            yield ok(f"IPv{version}: the peer saw {wanted}{block}")


def account(outcome: Outcome) -> Iterator[Finding]:
    """Compare the record with what job and peer say, to the byte."""
    record, talked = outcome.record, outcome.said["talked"]
    sent = received = Count()
    for version, each in talked.items():
        length = SIZE + HEADERS[int(version)]
        sent += Count(each["sent"], each["sent"] * length)
        received += Count(each["received"], each["received"] * length)
    if not record.final:
        yield fail(
            f"{record.attachment_id} has no final record although its job has ended", f"see {LOG}"
        )
    elif (denied := _kept_from_peer(record)) and not record.usage.sent:
        yield unchecked(f"nothing passed: the policy denies {denied}", "as above")
    elif (record.usage.sent, record.usage.received) == (sent, received):
        yield ok(
            f"{record.attachment_id}: {sent.bytes} bytes sent and {received.bytes} received, "
            "as the job and the peer say"
        )
    else:
        yield fail(
            f"{record.attachment_id}: the record has {_words(record.usage.sent)} sent and "
            f"{_words(record.usage.received)} received; the job sent {_words(sent)} and received "
            f"{_words(received)}",
            "the datapath's programs may be gone from the sandbox's link, or others change "
            "packets before them (tc filter show dev lark0 ingress); systemctl restart lark-agent "
            f"builds new sandboxes; {LOG}",
        )


def _words(count: Count) -> str:
    return f"{count.bytes} bytes in {count.packets} packets"


def refusals(outcome: Outcome) -> Iterator[Finding]:
    """Check that what no job may do came to nothing, and is counted."""
    tried = outcome.said["forbidden"]
    counted = {drop.reason: drop.count.packets for drop in outcome.record.usage.drops}
    dropped = counted.get("service-denied", 0)
    if outcome.arrived == 0 and dropped == tried == FORBIDDEN:
        yield ok(f"{tried} packets to a closed port of the worker were dropped, and are counted")
    else:
        yield fail(
            f"of {tried} packets to a closed port of the worker {outcome.arrived} arrived, and "
            f"{dropped} are counted as dropped (service-denied)",
            "the datapath's programs may be gone from the sandbox's link (tc filter show dev "
            f"lark0 ingress); systemctl restart lark-agent builds new sandboxes; {LOG}",
        )


FINDINGS = (
    ("way out", way_out),
    ("translation", translation),
    ("account", account),
    ("refusals", refusals),
)
"""The checks of a trial, in the order in which packets meet what they look at."""
