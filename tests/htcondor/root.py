"""A Debian root with HTCondor in it: made once, kept for later runs, never changed after.

`made(suite)` returns a directory below `/var/cache/lark-agent-tests` that holds a whole system of
that suite: debootstrap's smallest, then HTCondor and what jobs of the tests call. The archive is
that of this machine's own apt, asked from apt, so that a site's mirror, proxy and opinion on the
age of an archive serve here too. A root is built aside and renamed when it is complete, under a
lock: an interrupted build leaves nothing that looks whole, and parallel test runs wait for one.
`/RECIPE` inside says of what it was made; another recipe makes it anew.

Pools are overlays over it (`tests.htcondor.pool`), so nothing that a test does reaches it.

As a command (`python -m tests.htcondor.root trixie`) it only makes the root, for caches in CI.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path("/var/cache/lark-agent-tests")
PACKAGES = ("minicondor", "openssh-server", "openssh-client", "python3", "curl", "iproute2")
OPTIONAL = ("apptainer", "singularity-container")
"""Installed where the suite has them."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_NO_DAEMONS = "#!/bin/sh\nexit 101\n"
_BUILD_SECONDS = 1500


class RootError(Exception):
    """The root cannot be made here."""


def made(suite: str) -> Path:
    """Return the root of a suite, building it first if need be; raises RootError."""
    CACHE.mkdir(parents=True, exist_ok=True)
    root = CACHE / f"htcondor-{suite}"
    recipe = f"{suite}: {' '.join((*PACKAGES, *OPTIONAL))}\n"
    with (CACHE / f"htcondor-{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "RECIPE").exists() or (root / "RECIPE").read_text() != recipe:
            fresh = CACHE / f"htcondor-{suite}.new"
            for leftover in (fresh, root):
                shutil.rmtree(leftover, ignore_errors=True)
            _build(suite, fresh)
            (fresh / "RECIPE").write_text(recipe)
            fresh.rename(root)
    return root


def mirror() -> str:
    """Return the address of the Debian archive that apt uses here; raises RootError."""
    listed = _run(
        "apt-get", "indextargets", "--format", "$(ORIGIN) $(SITE)", "Created-By: Packages"
    )
    sites = [line.split(" ", 1)[1] for line in listed.splitlines() if line.startswith("Debian ")]
    if not sites:
        raise RootError(
            "apt of this machine lists no Debian archive; run `apt-get update` first, or on a "
            "machine of another distribution add a Debian source to it"
        )
    return min(sites, key=len)  # the archive itself, not its security updates


def _build(suite: str, root: Path) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    proxy = _run("apt-config", "shell", "proxy", "Acquire::http::Proxy").strip()
    if proxy:
        environment["http_proxy"] = proxy.removeprefix("proxy=").strip("'")
    _run("debootstrap", "--variant=minbase", f"--keyring={KEYRING}", suite, str(root), mirror(),
         environment=environment)  # fmt: skip
    (root / "usr/sbin/policy-rc.d").write_text(_NO_DAEMONS)
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    age = _run("apt-config", "dump", "--format", '%F "%v";%n', "Acquire::Check-Valid-Until")
    (root / "etc/apt/apt.conf.d/90age").write_text(age)
    (root / "etc/dpkg/dpkg.cfg.d/fast").write_text(
        "force-unsafe-io\npath-exclude=/usr/share/doc/*\n"
    )
    _inside(root, environment, "apt-get", "update", "-qq")
    wanted = f"^({'|'.join(OPTIONAL)})$"
    known = _inside(root, environment, "apt-cache", "search", "--names-only", wanted)
    optional = [line.split(" ", 1)[0] for line in known.splitlines()]
    install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends")
    _inside(root, environment, *install, *PACKAGES, *optional)
    _inside(root, environment, "apt-get", "clean")
    (root / "usr/sbin/policy-rc.d").unlink()


def _inside(root: Path, environment: dict[str, str], *command: str) -> str:
    """Run a command in the root; mounts and processes end with it."""
    own = ("unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc")
    return _run(*own, "chroot", str(root), *command, environment=environment)


def _run(*command: str, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_BUILD_SECONDS,
            env=environment, stdin=subprocess.DEVNULL, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RootError(f"cannot make HTCondor's root: {command}: {error}") from error
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise RootError(
            f"cannot make HTCondor's root: {command} ended with {done.returncode}:\n{last}"
        )
    return done.stdout


if __name__ == "__main__":
    print(made(sys.argv[1]))
