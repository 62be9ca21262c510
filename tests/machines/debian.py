"""A Debian system in a directory: made once, kept for later runs, never changed after.

`kept(name, recipe, build)` returns a directory below `/var/cache/lark-agent-tests`. It is built
aside and renamed when it is complete, under a lock: an interrupted build leaves nothing that looks
whole, and parallel test runs wait for one. `/RECIPE` inside says of what it was made; another
recipe makes it anew.

`bootstrap` fills a directory with debootstrap's smallest system and the packages that are asked
for. The archive is that of this machine's own apt, asked from apt, so that a site's mirror, proxy
and opinion on the age of an archive serve here too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CACHE = Path("/var/cache/lark-agent-tests")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_NO_DAEMONS = "#!/bin/sh\nexit 101\n"
_BUILD_SECONDS = 1500


class DebianError(Exception):
    """The system cannot be made here."""


def kept(name: str, recipe: str, build: Callable[[Path], None]) -> Path:
    """Return the directory of a recipe, building it first if need be; raises DebianError."""
    CACHE.mkdir(parents=True, exist_ok=True)
    root = CACHE / name
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "RECIPE").exists() or (root / "RECIPE").read_text() != recipe:
            fresh = CACHE / f"{name}.new"
            for leftover in (fresh, root):
                shutil.rmtree(leftover, ignore_errors=True)
            fresh.mkdir()
            build(fresh)
            (fresh / "RECIPE").write_text(recipe)
            fresh.rename(root)
    return root


def mirror() -> str:
    """Return the address of the Debian archive that apt uses here; raises DebianError."""
    listed = run("apt-get", "indextargets", "--format", "$(ORIGIN) $(SITE)", "Created-By: Packages")
    sites = [line.split(" ", 1)[1] for line in listed.splitlines() if line.startswith("Debian ")]
    if not sites:
        raise DebianError(
            "apt of this machine lists no Debian archive; run `apt-get update` first, or on a "
            "machine of another distribution add a Debian source to it"
        )
    return min(sites, key=len)  # the archive itself, not its security updates


def bootstrap(
    suite: str, root: Path, packages: Iterable[str], optional: Iterable[str] = ()
) -> None:
    """Make a system of a suite; of the `optional` packages it gets those that the suite has."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    proxy = run("apt-config", "shell", "proxy", "Acquire::http::Proxy").strip()
    if proxy:
        environment["http_proxy"] = proxy.removeprefix("proxy=").strip("'")
    run("debootstrap", "--variant=minbase", f"--keyring={KEYRING}", suite, str(root), mirror(),
        environment=environment)  # fmt: skip
    (root / "usr/sbin/policy-rc.d").write_text(_NO_DAEMONS)
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    age = run("apt-config", "dump", "--format", '%F "%v";%n', "Acquire::Check-Valid-Until")
    (root / "etc/apt/apt.conf.d/90age").write_text(age)
    (root / "etc/dpkg/dpkg.cfg.d/fast").write_text(
        "force-unsafe-io\npath-exclude=/usr/share/doc/*\n"
    )
    inside(root, "apt-get", "update", "-qq", environment=environment)
    wanted = sorted(optional)
    if wanted:
        names = f"^({'|'.join(wanted)})$"
        known = inside(root, "apt-cache", "search", "--names-only", names, environment=environment)
        wanted = [line.split(" ", 1)[0] for line in known.splitlines()]
    install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends")
    inside(root, *install, *packages, *wanted, environment=environment)
    inside(root, "apt-get", "clean", environment=environment)
    (root / "usr/sbin/policy-rc.d").unlink()


def inside(root: Path, *command: str, environment: dict[str, str] | None = None) -> str:
    """Run a command in a system; its mounts and processes end with it."""
    own = ("unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc")
    return run(*own, "chroot", str(root), *command, environment=environment)


def run(*command: str, environment: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Return what a command prints; raises DebianError with its last lines if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_BUILD_SECONDS,
            env=environment, stdin=subprocess.DEVNULL, errors="replace", cwd=cwd,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DebianError(f"cannot make a Debian system: {command}: {error}") from error
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise DebianError(
            f"cannot make a Debian system: {command} ended with {done.returncode}:\n{last}"
        )
    return done.stdout
