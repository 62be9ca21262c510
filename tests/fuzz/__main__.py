"""`make fuzz SECONDS=60`: each harness for so long; status 1 if an input shows a fault.

Everything is in build/fuzz: the harnesses, what they learned (NAME.corpus, where the next run goes
on), and the inputs that show a fault, as NAME-crash-… and the like.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz.build import CORPUS, HARNESSES, build, complaint, fuzz, replay, why_not

_FOLDER = Path("build/fuzz")


def try_one(name: str, seconds: int) -> bool:
    """Replay the corpus, go on for so many seconds, and tell what came of it; False for a fault."""
    folder = _FOLDER.resolve()
    found = folder / f"{name}.corpus"
    found.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob(f"{name}-*"))
    harness = build(name, folder)
    done = replay(harness, CORPUS / name)
    if done.returncode == 0:
        done = fuzz(harness, found, f"-max_total_time={seconds}", "-use_value_profile=1")
    if done.returncode == 0:
        print(f"{name:12} {done.stderr.strip().splitlines()[-1]}")
        return True
    print(f"{name:12} a fault:\n{complaint(done)}")
    for kept in sorted(set(folder.glob(f"{name}-*")) - before):
        print(f"  once more:      {harness} {kept}\n"
              f"  once it is mended:  mv {kept} {CORPUS / name}/WHAT-IT-IS")  # fmt: skip
    return False


def main() -> int:
    """Try all harnesses, or those that are named."""
    parser = argparse.ArgumentParser(
        prog="make fuzz", description=__doc__, epilog="example: make fuzz SECONDS=600 ONLY=answer",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seconds", type=int, default=60, help="for each harness (60)")
    parser.add_argument("only", nargs="*", help=f"some of {', '.join(HARNESSES)} (all)")
    given = parser.parse_args()
    names = given.only or HARNESSES
    if unknown := set(names) - set(HARNESSES):
        parser.error(f"no harness {', '.join(sorted(unknown))}; there are {', '.join(HARNESSES)}")
    good = True
    for name in names:
        if missing := why_not(name):
            print(f"{name:12} cannot be tried: {missing}")
            good = False
        else:
            good = try_one(name, given.seconds) and good
    return 0 if good else 1


sys.exit(main())
