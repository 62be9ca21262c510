"""lark-agent and lark-collector as the pool's daemons start them: by path, on the pool's machine.

That machine is another Debian, without our Python; the lab's stands in it under /machine. So they
start through the lab's own loader, with the lab's libraries and this environment's packages.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.filesystem import ROOT, WRAPPERS

if TYPE_CHECKING:
    from tests.lab.world import Lab

AGENT = "/usr/libexec/lark/lark-agent"
COLLECTOR = "/usr/libexec/lark/lark-collector"


def install(lab: Lab) -> None:
    """Put them beside the wrapper, which the machine has under /usr/libexec/lark."""
    packages = sysconfig.get_paths()["purelib"]
    machine = "/machine/lib/x86_64-linux-gnu"
    libraries = f"{machine}:/machine/usr/lib/x86_64-linux-gnu:/machine{sys.base_prefix}/lib"
    python = f"/machine{Path(sys.executable).resolve()}"
    for name, module in (("lark-agent", "agent"), ("lark-collector", "collector")):
        script = lab.path(WRAPPERS / name)
        script.write_text(f"""#!/bin/sh
export PYTHONHOME=/machine{sys.base_prefix} PYTHONPATH=/machine{ROOT}:/machine{packages}
export PYTHONDONTWRITEBYTECODE=1
exec {machine}/ld-linux-x86-64.so.2 --library-path {libraries} {python} \\
    -c 'from lark_agent.cli.{module} import main; main()' "$@"
""")
        script.chmod(0o755)


def observer(lab: Lab, root: Path) -> str:
    """Return the name that the lab has for HTCondor's account of a root, given one if need be.

    Its number is the first that was free there, another one in each release.
    """
    theirs = (root / "etc/passwd").read_text().splitlines()
    number = next(line.split(":")[2] for line in theirs if line.startswith("condor:"))
    passwd = lab.path("/etc/passwd")
    for line in passwd.read_text().splitlines():
        name, _, taken, *_ = line.split(":")
        if taken == number:
            return name
    with passwd.open("a") as file:
        file.write(f"condor:x:{number}:{number}::/:/bin/false{os.linesep}")
    return "condor"
