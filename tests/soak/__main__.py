"""`make soak MINUTES=10`: run it, print what it came to; status 1 if anything is lost or left."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.soak.run import soak

parser = argparse.ArgumentParser(
    prog="make soak",
    description=sys.modules["tests.soak"].__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="example: make soak MINUTES=10",
)
parser.add_argument("--minutes", type=float, default=10, help="how long jobs are started (10)")
parser.add_argument("--seed", type=int, default=None, help="of the faults; without it, the time's")
parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
given = parser.parse_args()
with tempfile.TemporaryDirectory(prefix="lark-soak-") as folder:
    outcome = soak(Path(folder), given.minutes * 60, given.seed, say=not given.json)
print(json.dumps(outcome.as_json()) if given.json else outcome)
sys.exit(0 if outcome.good() else 1)
