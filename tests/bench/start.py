"""What lark-run adds to a job's exec, with and without the wrapper side by side.

A root process on the lab's worker forks, becomes a user and execs `date`, which prints when it
began to run: from before the fork to then is the start. Until the process has been waited for is
the whole. Plain and wrapped starts alternate, so that whatever else the machine does hits both; the
difference of the medians is what a job waits longer. The pool is warm and refills itself meanwhile.

    python -m tests.bench.start [--rounds 300]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from statistics import median, quantiles

from tests.lab.filesystem import WRAPPERS
from tests.lab.world import Lab

# Runs on the worker as root; prints lists of milliseconds.
PROBE = """
import json, os, sys, time
def once(command):
    out, into = os.pipe()
    began = time.time_ns()
    pid = os.fork()
    if pid == 0:
        os.dup2(into, 1)
        os.setgroups([]); os.setgid(1001); os.setuid(1001)
        os.execv(command[0], command)
    _, status = os.waitpid(pid, 0)
    ended = time.time_ns()
    assert status == 0, status
    os.close(into)
    started = int(os.read(out, 100))
    os.close(out)
    return (started - began) / 1e6, (ended - began) / 1e6
rounds, pause, date = int(sys.argv[1]), float(sys.argv[2]), ["/bin/date", "+%s%N"]
plain, wrapped = [], []
for _ in range(rounds):
    plain.append(once(date))
    wrapped.append(once([sys.argv[3], *date]))
    time.sleep(pause)
print(json.dumps([*zip(*plain), *zip(*wrapped)]))
"""


@dataclass(frozen=True, slots=True)
class Starts:
    """Milliseconds of each round."""

    plain_start: list[float]
    plain_whole: list[float]
    wrapped_start: list[float]
    wrapped_whole: list[float]

    @property
    def added(self) -> float:
        """What the wrapper adds to the median start."""
        return median(self.wrapped_start) - median(self.plain_start)


def measure(lab: Lab, rounds: int, pause: float = 0.05) -> Starts:
    """Start `rounds` pairs of jobs, one pair every `pause` seconds; the lab's agent must be up."""
    wrapper = f"{WRAPPERS}/lark-run"
    command = ["/usr/bin/python3", "-I", "-S", "-c", PROBE, str(rounds), str(pause), wrapper]
    return Starts(*json.loads(lab.run(command, timeout=300).stdout))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="What lark-run adds to a job's exec.")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two rounds")
    options = parser.parse_args()
    with Lab() as lab:
        lab.agent("[pool]\nready = 16\n")
        starts = measure(lab, options.rounds, options.pause)
    print(f"{'milliseconds':22}{'min':>8}{'median':>8}{'p99':>8}{'max':>8}")
    for name, values in asdict(starts).items():
        p99 = quantiles(values, n=100)[98]
        print(f"{name:22}{min(values):8.2f}{median(values):8.2f}{p99:8.2f}{max(values):8.2f}")
    print(f"lark-run adds a median of {starts.added:.2f} ms to exec ({options.rounds} rounds)")


if __name__ == "__main__":
    main()
