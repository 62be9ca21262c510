"""How long an idle job's packets wait while another job uses all of the link.

Not one of LARK's experiments. One job asks the campus's UDP echo a thousand times, with pauses,
alone and beside one other job's upload or download in bulk, all by default plans. The round trip is
stated and promised by nobody: asker, giver, taker and shaper share the same processors here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.experiments.results import Check, Line, Outcome, Panel
from tests.experiments.testbed import LINK, UPLINK, WIDE, Testbed
from tests.lab.topology import CAMPUS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.experiments.testbed import Flow

MANAGED = f'[uplink]\nrate = "{UPLINK}"\n'
PACKETS = 1000
# argv: HOST PACKETS. Prints each round trip in ns; a lost one ends it.
ASK = """
import json, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(5)
sock.connect((sys.argv[1], 7))
found = []
for _ in range(int(sys.argv[2])):
    time.sleep(0.005)
    began = time.monotonic_ns()
    sock.send(bytes(64))
    sock.recv(100)
    found.append(time.monotonic_ns() - began)
print(json.dumps(found))
"""
BESIDE: dict[str, Callable[[Testbed, float], Flow] | None] = {
    "nobody else": None,
    "another job sends in bulk": lambda bed, seconds: bed.upload(seconds=seconds),
    "another job receives in bulk": lambda bed, seconds: bed.download(seconds=seconds),
}


def run(packets: int = PACKETS) -> Outcome:
    """Ask alone and beside each kind of bulk."""
    lines: list[Line] = []
    checks: list[Check] = []
    for beside, begin in BESIDE.items():
        trips = sorted(round_trips(begin, packets))
        for percent in (50, 99):
            measured = trips[len(trips) * percent // 100]
            checks.append(Check(f"{beside}, p{percent}, ms", 0, measured, 0, None))
        shares = range(0, 100, 2)
        found = tuple(round(trips[len(trips) * share // 100], 3) for share in shares)
        lines.append(Line(beside, tuple(shares), found))
    panel = Panel(f"uplink {UPLINK}", "% of packets", "ms", tuple(lines))
    title = "Round trip of an idle job's packets"
    return Outcome("latency", title, (panel,), tuple(checks))


def round_trips(
    begin: Callable[[Testbed, float], Flow] | None, packets: int = PACKETS
) -> list[float]:
    """Return the round trips of one idle job, in milliseconds."""
    with Testbed(MANAGED, LINK, WIDE) as bed:
        bulk = begin(bed, packets * 0.02) if begin else None
        if bulk:
            bed.wait_connected(bulk)
        asked = ["/usr/bin/python3", "-I", "-S", "-c", ASK, CAMPUS.ipv4, str(packets)]
        done = bed.lab.job(asked)
        assert done.status == 0, done.stderr
        return [nanoseconds / 1e6 for nanoseconds in json.loads(done.stdout)]
