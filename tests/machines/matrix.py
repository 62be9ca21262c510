"""`make kernel-matrix`: tests of the datapath and the sandboxes on each kernel of Debian's suites.

One system of Debian 12 holds the kernels 5.10, 6.1, 6.12 and the newest, with their headers, which
bcc compiles with. It is made once and kept, as is the disk of it. A second disk carries this
checkout. For each kernel a virtual machine starts with both, runs the tests, tells each outcome,
and powers itself off; what it wrote is forgotten. The counts come as a table, also in
`build/machines/kernels.json` with each failure and each skip's reason.

Software emulation is some twenty times slower than this machine, so the tests are those in which
kernels differ: loading by both loaders, every frame of the verdict tables, pins, networks.
Others may be named: `python -m tests.machines.matrix --tests "tests/shaping" --suite trixie`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.machines import debian, disk, kernels, tree
from tests.machines.guest import Guest, GuestError, driver

if TYPE_CHECKING:
    from tests.machines.kernels import Kernel

BASE, PYTHON = "bookworm", "3.11"
PACKAGES = (
    "systemd-sysv", "udev", "dbus", "kmod", "initramfs-tools", "iproute2", "nftables",
    "libnftables1", "libbpf1", "iputils-ping", "ethtool", "tcpdump", "curl", "bpftool", "python3",
    "python3-bpfcc", "udhcpc", "dnsmasq-base", "openvswitch-switch", "procps",
)  # fmt: skip
NEEDED = ("qemu-system-x86_64", "debootstrap", "mke2fs", "dpkg-deb")
TESTS = (
    "tests/datapath/test_verdicts.py",
    "tests/datapath/test_pins.py",
    "tests/sandbox/test_networks.py",
)
UNIT = "lark-tests.service"
OUT = tree.REPOSITORY / "build" / "machines"
_HERE = Path(__file__).parent


@dataclass
class Result:
    """What a kernel's machine told."""

    suite: str
    release: str
    outcomes: Counter[str] = field(default_factory=Counter)
    by_bcc: Counter[str] = field(default_factory=Counter)
    """Of those, tests in which bcc compiled and loaded."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Of each test that did not pass."""
    collected: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether every test told its outcome, and none failed."""
        told = sum(self.outcomes.values())
        return not self.error and not self.outcomes["failed"] and 0 < self.collected <= told


def system() -> Path:
    """Return the system with all kernels, and the disk of it beside: made once."""
    unit = (_HERE / UNIT).read_text()
    said = f"{BASE}: {' '.join(PACKAGES)}; kernels {' '.join(kernels.SUITES)}\n{unit}"
    return debian.kept("machines", said, _build)


def _build(place: Path) -> None:
    root = place / "root"
    root.mkdir()
    _say(f"system of {BASE}")
    debian.bootstrap(BASE, root, PACKAGES)
    with tempfile.TemporaryDirectory(dir=place) as work:
        for suite in kernels.SUITES:
            _say(f"kernel of {suite}")
            kernels.install(suite, root, Path(work))
    (root / "etc/fstab").write_text(
        "LABEL=lark-root / ext4 defaults 0 0\nLABEL=lark-tree /lark ext4 noatime 0 0\n"
    )
    (root / "lark").mkdir()
    shutil.copy(_HERE / UNIT, root / "etc/systemd/system" / UNIT)
    disk.filled(place / "root.img", root, 6, "lark-root")


def run(kernel: Kernel, disks: list[Path], tests: str) -> Result:
    """Start a kernel's machine and take down what it tells."""
    result = Result(kernel.suite, kernel.release)
    began = time.monotonic()
    _say(f"{kernel.release}: starting")
    try:
        with Guest(kernel, disks, OUT / kernel.suite, megabytes=2048,
                   arguments=f'systemd.unit={UNIT} lark.tests="{tests}"') as guest:  # fmt: skip
            for said in guest.told():
                _note(result, said)
    except GuestError as error:
        result.error = str(error)
    result.seconds = time.monotonic() - began
    if not result.error and not result.collected:
        result.error = f"no test ran; see {OUT / kernel.suite / 'console.log'}"
    return result


def _note(result: Result, said: dict[str, object]) -> None:
    if "collected" in said:
        result.collected = int(str(said["collected"]))
        _say(f"{result.release}: {result.collected} tests")
        return
    test, outcome = str(said["test"]), str(said["outcome"])
    result.outcomes[outcome] += 1
    if "bcc" in test:
        result.by_bcc[outcome] += 1
    if outcome != "passed":
        result.reasons[test] = str(said["why"])
        _say(f"{result.release}: {test} {outcome}: {str(said['why']).strip()[-160:]}")
    if (told := sum(result.outcomes.values())) % 20 == 0:
        _say(f"{result.release}: {told} of {result.collected}")


def table(results: list[Result]) -> str:
    """Return the results as a table in Markdown."""
    lines = ["| kernel | Debian | passed | by bcc | failed | skipped | minutes |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {each.release} | {each.suite} | {each.outcomes['passed']} | {each.by_bcc['passed']} "
        f"| {each.outcomes['failed']} | {each.outcomes['skipped']} | {each.seconds / 60:.1f} |"
        for each in results
    ]
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Run the matrix; returns 1 if anything failed, 2 if something is missing here."""
    parser = argparse.ArgumentParser(prog="python -m tests.machines.matrix", description=__doc__)
    parser.add_argument("--suite", choices=kernels.SUITES, action="append",
                        help="only this suite's kernel (default: all)")  # fmt: skip
    parser.add_argument("--tests", default=" ".join(TESTS), help="what pytest is to run")
    asked = parser.parse_args(words)
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        print(f"missing: {', '.join(missing)}; `make kernel-matrix` installs them as root")
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    _say(f"machines by {driver()}; the system with all kernels is made at the first run")
    made = system()
    with tempfile.TemporaryDirectory(dir=OUT) as work:
        own = disk.filled(OUT / "tree.img", tree.copy(Path(work), PYTHON), 2, "lark-tree")
    chosen = [each for each in kernels.installed(made / "root")
              if each.suite in (asked.suite or kernels.SUITES)]  # fmt: skip
    results = [run(kernel, [made / "root.img", own], asked.tests) for kernel in chosen]
    (OUT / "kernels.json").write_text(json.dumps([vars(each) for each in results], indent=2))
    print(table(results))
    for each in results:
        if each.error:
            print(f"{each.release}: {each.error}")
    total = sum((each.outcomes for each in results), Counter[str]())
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return int(not results or not all(each.good for each in results))


def _say(word: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {word}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
