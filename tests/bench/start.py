"""What lark-run adds to the start of a job: `exec true` by a user, with and without the wrapper.

Both are started by the same root process on the lab's worker, alternating, so that whatever else
the machine does hits both. The difference of the medians is what a job waits longer. The pool is
warm and refills itself meanwhile.

    python -m tests.bench.start [--rounds 300]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from tests.lab.world import Lab

# Runs on the worker as root: fork, become alice, exec; time from before the fork to after the wait.
PROBE = """
import json, os, sys, time
def once(command):
    began = time.perf_counter_ns()
    pid = os.fork()
    if pid == 0:
        os.setgroups([]); os.setgid(1001); os.setuid(1001)
        os.execv(command[0], command)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    return (time.perf_counter_ns() - began) / 1e6
rounds, pause = int(sys.argv[1]), float(sys.argv[2])
plain, wrapped = [], []
for _ in range(rounds):
    plain.append(once(["/bin/true"]))
    wrapped.append(once([sys.argv[3], "/bin/true"]))
    time.sleep(pause)
print(json.dumps([plain, wrapped]))
"""


def measure(lab: Lab, rounds: int, pause: float = 0.03) -> tuple[list[float], list[float]]:
    """Return milliseconds of (plain, wrapped) starts, one pair every `pause` seconds."""
    wrapper = "/run/lark-bin/lark-run"
    command = ["/usr/bin/python3", "-I", "-S", "-c", PROBE, str(rounds), str(pause), wrapper]
    plain, wrapped = json.loads(lab.run(command, timeout=300).stdout)
    return plain, wrapped


def main() -> None:
    """Measure and print a table and, on the last line, JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    with Lab() as lab:
        lab.agent('default_profile = "nat"\n[pool]\nready = 16\n')
        plain, wrapped = measure(lab, rounds)
    rows = {"plain exec": plain, "lark-run": wrapped}
    print(f"{'milliseconds':14}{'min':>8}{'median':>8}{'p99':>8}{'max':>8}")
    for name, values in rows.items():
        p99 = statistics.quantiles(values, n=100)[98]
        print(
            f"{name:14}{min(values):8.2f}{statistics.median(values):8.2f}{p99:8.2f}{max(values):8.2f}"
        )
    added = statistics.median(wrapped) - statistics.median(plain)
    print(f"median added: {added:.2f} ms over {rounds} rounds")
    json.dump({"added_ms": added, "rounds": rounds, "script": Path(__file__).name}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
