"""What `pip install .` yields."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

from lark_agent.hooks.install import PROGRAMS

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {
    "lark_agent/datapath/job.bpf.o",
    "lark_agent/datapath/host.bpf.o",
    "lark_agent/datapath/host-networks.bpf.o",
    "lark_agent/datapath/job.bpf.c",
    "lark_agent/datapath/bcc_child.py",
    "lark_agent/hooks/native/bin/lark-run",
    "lark_agent/hooks/native/bin/lark-enter",
    "lark_agent/hooks/native/bin/lark-prepare",
    "lark_agent/hooks/native/bin/lark-beside",
    "lark_agent/rpc/lark/v1/query_pb2.py",
    "lark_agent/rpc/lark/v1/report_pb2_grpc.py",
    "lark_agent/rpc/lark/v1/query_pb2.pyi",
    "lark_agent/agent/units/lark-agent.service",
    "lark_agent/py.typed",
}


def test_the_wheel_holds_everything_that_runs(tmp_path: Path) -> None:
    """Object, wrapper (executable), generated code, units and commands are in the package."""
    tree = tmp_path / "tree"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # the protoc plugins are found by name
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        [*build, "-w", tmp_path, tree], check=True, env={**os.environ, "PATH": path}, timeout=200
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {info.filename: info for info in archive.infolist()}
        (entry_points,) = [name for name in held if name.endswith("entry_points.txt")]
        commands = archive.read(entry_points).decode()
    assert held.keys() >= NEEDED
    for program in PROGRAMS:
        mode = held[f"lark_agent/hooks/native/bin/{program}"].external_attr >> 16
        assert mode & stat.S_IXOTH
    for command in ("lark ", "lark-agent ", "lark-collector "):
        assert f"{command}= " in commands
