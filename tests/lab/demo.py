"""`make demo`: jobs in networks of their own, and their usage beside what packet captures say.

A collector and an agent start in a laboratory (`tests.lab.world`); two users' jobs run side by
side through `lark-run`, with real transfers to the campus and the internet server. Meanwhile
tcpdump writes down every packet at both servers. When the collector has the final record of every
job, `lark` shows them, and the same is computed from the captures alone: on the wire all jobs have
the worker's address, and what tells them apart is the source port, because every sandbox has its
own block of NAT ports, which its record names. A packet of the NAT's range in nobody's block
counts as a difference too.

The last line is `demo: N jobs, B bytes on the wire, D bytes difference`; the exit status is 0
only if D is 0. Nothing is left behind, `--keep` (until Enter or SIGTERM) excepted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab.capture import Capture, CaptureError, Packet, flows
from tests.lab.process import LabError
from tests.lab.topology import CAMPUS, FAR, INTERNET, WORKER
from tests.lab.world import PROGRAMS, Lab

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.lab.jobs import AdValue, JobHandle

COLLECTOR = '[collector]\naddress = "127.0.0.1:9620"\n'
AGENT = f"""
{COLLECTOR}
[accounting]
interval_seconds = 1
[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
internet = ["203.0.113.0/24", "2001:db8:3::/48"]
[[rules]]
when = "WantNetwork =?= false"
profile = "none"
"""
NAT_PORTS = range(10240, 32768)
"""The agent's default range."""
WIDTH = "110"

UPLOAD = "head -c 20000000 /dev/zero > out && curl -sSf -4 -T out http://server.campus.test/out"
OFFLINE = "if curl -sS -m 3 http://203.0.113.10/; then echo connected; exit 1; fi"
DATAGRAMS = """
import socket
UDP_SEGMENT = 103
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("203.0.113.10", 9))
for _ in range(500):
    sock.send(bytes(1200))
sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1200)
for _ in range(100):
    sock.send(bytes(20 * 1200 + 7))
"""
CONVERSATIONS = """
import socket
for number in range(300):
    with socket.create_connection(("server.campus.test", 7), 10) as sock:
        sock.sendall(b"x" * (1 + number))
        sock.recv(4096)
"""
CRASH = """
import os, signal, urllib.request
with urllib.request.urlopen("http://server.internet.test/bytes/200000000") as answer:
    answer.read(3000000)
    os.kill(os.getpid(), signal.SIGSEGV)
"""


@dataclass(frozen=True, slots=True)
class Planned:
    """One job of the demo."""

    title: str
    user: str
    command: tuple[str, ...]
    status: int = 0
    ad: Mapping[str, AdValue] = field(default_factory=dict)


def python(code: str) -> tuple[str, ...]:
    """Return the command that runs a program text."""
    return ("/usr/bin/python3", "-I", "-c", code)


def curl(family: str, url: str) -> tuple[str, ...]:
    """Return the command that downloads and forgets."""
    return ("curl", "-sSf", family, "-o", "/dev/null", url)


PLANNED = (
    Planned("HTTP down, IPv4", "alice", curl("-4", "http://server.internet.test/bytes/20000000")),
    Planned("HTTP up, IPv4", "alice", ("sh", "-c", UPLOAD)),
    Planned("HTTP down, IPv6", "bob", curl("-6", "http://server.campus.test/bytes/20000000")),
    Planned("UDP, UDP_SEGMENT", "bob", python(DATAGRAMS)),
    Planned("300 connections", "bob", python(CONVERSATIONS)),
    Planned("crash, mid-transfer", "alice", python(CRASH), status=-signal.SIGSEGV),
    Planned("no network", "bob", ("sh", "-c", OFFLINE), ad={"WantNetwork": False}),
)


@dataclass(frozen=True, slots=True)
class Wire:
    """Bytes of one job at the far ends, as the job sees their direction."""

    sent: int = 0
    received: int = 0


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description="Jobs in networks of their own.")
    parser.add_argument("--keep", action="store_true", help="keep everything up to look around")
    keep: bool = parser.parse_args().keep
    if os.geteuid() != 0:
        print("demo: needs root: it makes network namespaces; use sudo", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with Lab() as lab:
            return show(lab, keep=keep)
    except (LabError, CaptureError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def show(lab: Lab, *, keep: bool) -> int:
    """Start everything, run the jobs, compare."""
    say("a laboratory: worker, campus server, internet server, a router between them")
    lab.collector(insecure=False)
    say("lark-collector is ready")
    token = lab.run(["lark-collector", "token", "create"]).stdout
    lab.run(["lark-agent", "enroll", "127.0.0.1:9621"], stdin=token)
    say("the worker is enrolled: what it reports goes by TLS")
    agent = lab.agent(AGENT)
    say("lark-agent is ready, on the worker")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        captures = [
            stack.enter_context(
                Capture(far.interface, Path(folder) / f"{far.name}.pcap", lab.netns(far.name))
            )
            for far in FAR
        ]
        say("tcpdump listens at both servers")
        started = [
            (plan, lab.start_job(plan.command, user=plan.user, ad=plan.ad)) for plan in PLANNED
        ]
        say(f"{len(started)} jobs of alice and bob run through lark-run")
        for plan, job in started:
            check_end(plan, job)
        say("all jobs ended as they should; waiting for their final records")
        try:
            records = final_records(lab, [job.job_id for _, job in started])
        except LabError as error:
            raise LabError(f"{error}; the agent said:\n{agent.stderr[-4000:]}") from error
        stack.close()
        packets = [packet for capture in captures for packet in flows(capture.path)]
    print()
    for command in (["jobs", "--bytes"], ["usage", "--by", "owner", "--bytes"]):
        print(f"# lark {' '.join(command)}")
        print(lab.run(["lark", *command], env={"COLUMNS": WIDTH}).stdout)
    titles = {job.job_id: plan.title for plan, job in started}
    verdict, status = compare(titles, records, packets)
    if lab.lost():
        print(f"the laboratory's own links lost {lab.lost()} packets: the machine is too busy\n")
    if keep:
        print(verdict)
        look_around(lab)
    print(verdict)
    return status


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"* {text}", flush=True)


def check_end(plan: Planned, job: JobHandle) -> None:
    """Raise LabError unless the job ended as planned."""
    done = job.result(120)
    if done.status != plan.status:
        raise LabError(f"job '{plan.title}' ended with {done.status}\n{done.stdout}{done.stderr}")
    say(f"{plan.user:5}  {plan.title:20} {done.seconds:5.2f} s")


def final_records(lab: Lab, job_ids: Sequence[str], timeout: float = 60) -> list[dict[str, Any]]:
    """Ask the collector until it has the final record of every job."""
    until = time.monotonic() + timeout
    while True:
        listed = json.loads(lab.run(["lark", "jobs", "--limit", "0", "--json"]).stdout)["jobs"]
        final = {record["job_id"]: record for record in listed if record["final"]}
        if final.keys() >= set(job_ids):
            return [final[job_id] for job_id in job_ids]
        if time.monotonic() > until:
            missing = ", ".join(sorted(set(job_ids) - final.keys()))
            raise LabError(f"no final record of {missing} in the collector after {timeout} s")
        time.sleep(0.3)


def compare(
    titles: Mapping[str, str], records: Sequence[Mapping[str, Any]], packets: Iterable[Packet]
) -> tuple[str, int]:
    """Print records beside captures; return the last line and the exit status."""
    wire, strangers = attribute(records, packets)
    print(f"# {'what moved':20} {'owner':6} {'ports':>12}   {'sent, LARK':>12} {'on the wire':>12}"
          f"   {'received, LARK':>14} {'on the wire':>12} {'difference':>11}")  # fmt: skip
    total, difference = strangers, strangers
    for record in records:
        seen = wire.get(record["first_port"], Wire())
        sent, received = record["sent"]["bytes"], record["received"]["bytes"]
        apart = abs(sent - seen.sent) + abs(received - seen.received)
        ports = f"{record['first_port']}-{record['last_port']}" if record["first_port"] else "-"
        print(f"  {titles[record['job_id']]:20} {record['owner']:6} {ports:>12}   {sent:>12,}"
              f" {seen.sent:>12,}   {received:>14,} {seen.received:>12,} {apart:>11,}")  # fmt: skip
        total += seen.sent + seen.received
        difference += apart
    if strangers:
        print(f"  {strangers:,} bytes on the wire are in no job's ports")
    print()
    verdict = f"demo: {len(records)} jobs, {total} bytes on the wire, {difference} bytes difference"
    return verdict, int(difference != 0)


def attribute(
    records: Sequence[Mapping[str, Any]], packets: Iterable[Packet]
) -> tuple[dict[int, Wire], int]:
    """Sum captured packets by port block (its first port); also bytes in nobody's block.

    Raises LabError if two of the jobs had the same block: then ports alone do not tell them apart.
    """
    block: dict[int, int] = {}
    for record in records:
        first, last = record["first_port"], record["last_port"]
        if first in block:
            raise LabError(f"two jobs had the ports from {first}; freed blocks should rest")
        block.update(dict.fromkeys(range(first, last + 1), first) if first else {})
    wire: dict[int, Wire] = {}
    strangers = 0
    ours = {WORKER.ipv4, WORKER.ipv6}
    for packet in packets:
        outward = packet.src in ours
        port = packet.sport if outward else packet.dport
        if not outward and packet.dst not in ours:
            continue
        first = block.get(port, 0)
        if not first:
            strangers += packet.ip_len if port in NAT_PORTS else 0
            continue
        seen = wire.get(first, Wire())
        wire[first] = (
            Wire(seen.sent + packet.ip_len, seen.received)
            if outward
            else Wire(seen.sent, seen.received + packet.ip_len)
        )
    return wire, strangers


def look_around(lab: Lab) -> None:
    """Say where to look, and wait for Enter or SIGTERM."""
    enter = f"nsenter -t {lab.pid} -a"
    say(f"everything stays up until Enter, or SIGTERM to process {os.getpid()}; elsewhere, type:")
    print(f"""
  {enter} bash                          # a shell on the worker
  {enter} {PROGRAMS}/lark jobs
  {enter} {PROGRAMS}/lark top
  {enter} {PROGRAMS}/lark doctor
  {enter} su alice -c '/run/lark-bin/lark-run ip address'
  {enter} ip netns exec campus tcpdump -ni eth0   # {CAMPUS.ipv4}; internet: {INTERNET.ipv4}
""", flush=True)  # fmt: skip
    if sys.stdin.closed or not sys.stdin.isatty():
        signal.pause()
    else:
        select.select([sys.stdin], [], [])


if __name__ == "__main__":
    sys.exit(main())
