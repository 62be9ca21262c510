"""This checkout as a directory for a machine: its files, what was built, and a virtual environment.

The environment is of the machine's Python, not of ours: its packages are wheels that pip chooses
for that version, as `pyproject.toml` names them.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

from tests.machines.debian import run

REPOSITORY = Path(__file__).parents[2]
BUILT = ("lark_agent/datapath/*.o", "lark_agent/hooks/native/bin/*", "lark_agent/rpc/lark/v1/*.py*",
         "lark_agent/hooks/native/environment.h")  # fmt: skip


def copy(place: Path, python: str) -> Path:
    """Copy the checkout to `/lark` of a machine whose Python is `python` ("3.11")."""
    listed = run(
        "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY
    ).split("\0")
    built = [path for pattern in BUILT for path in REPOSITORY.glob(pattern)]
    for path in (*(REPOSITORY / name for name in listed if name), *built):
        if path.is_file():
            target = place / path.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    _environment(place / ".venv", python)
    return place


def _environment(place: Path, python: str) -> None:
    packages = place / "lib" / f"python{python}" / "site-packages"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    platforms = [f"--platform=manylinux_{glibc}_x86_64" for glibc in ("2_28", "2_17")]
    run(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages),
        "--python-version", python, "--only-binary=:all:", "--no-compile",
        *platforms, "--platform=manylinux2014_x86_64", *wanted)  # fmt: skip
    (place / "bin").mkdir(parents=True)
    (place / "bin/python").symlink_to("/usr/bin/python3")
    (place / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {python}\n")
