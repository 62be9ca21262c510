"""Kernels of Debian's suites, with their headers, put into a system of another suite.

The packages are taken apart, not installed: a new kernel's headers ask for that suite's compiler
and C library, which a test of the kernel does not need. What is asked of apt is what it would
fetch to install `linux-image-amd64` and `linux-headers-amd64` of the suite, with lists and
archives of its own, so that this machine's apt knows nothing of it.

A kernel starts from an initial file system made by the system's own initramfs-tools, which loads
what a virtual machine's disk needs and nothing else.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.machines.debian import KEYRING, DebianError, inside, mirror, run

if TYPE_CHECKING:
    from pathlib import Path

SUITES = ("bullseye", "bookworm", "trixie", "sid")
"""Linux 5.10, 6.1, 6.12 and the newest that Debian has."""
DISK = ("virtio_pci", "virtio_blk", "ext4")
# what no virtual machine of ours has: nine tenths of the modules
_STRANGE = (
    "sound", "kernel/sound", "kernel/drivers/gpu", "kernel/drivers/media", "kernel/drivers/iio",
    "kernel/drivers/infiniband", "kernel/drivers/staging", "kernel/drivers/usb",
    "kernel/drivers/scsi", "kernel/drivers/hwmon", "kernel/drivers/input",
    "kernel/drivers/net/wireless", "kernel/drivers/net/ethernet", "kernel/drivers/isdn",
    "kernel/drivers/net/usb", "kernel/drivers/net/can", "kernel/drivers/platform",
)  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be started."""

    suite: str
    release: str
    """As `uname -r` says it."""
    image: Path
    initial: Path
    """The initial file system (initrd)."""


def install(suite: str, root: Path, work: Path) -> Kernel:
    """Put the kernel of a suite, its modules and headers into a system; raises DebianError."""
    packages = _fetch(suite, work / suite)
    taken = work / suite / "taken"
    for package in packages:
        run("dpkg-deb", "--extract", str(package), str(taken))
    # where kernels lie changed: with the merged /usr, and when Debian put them beside their modules
    found = [*taken.glob("boot/vmlinuz-*"), *taken.glob("usr/lib/modules/*/vmlinuz")]
    modules = [*taken.glob("lib/modules/*"), *taken.glob("usr/lib/modules/*")]
    if len(found) != 1 or len(modules) != 1:
        raise DebianError(f"expected one kernel of {suite} and its modules: {found}, {modules}")
    release = modules[0].name
    for strange in _STRANGE:
        shutil.rmtree(modules[0] / strange, ignore_errors=True)
    # the headers' links name absolute paths of the system that they are copied to
    shutil.copytree(modules[0], root / "lib/modules" / release, symlinks=True)
    for headers in taken.glob("usr/src/linux-headers-*"):
        shutil.copytree(headers, root / "usr/src" / headers.name, symlinks=True)
    shutil.copy(found[0], root / "boot" / f"vmlinuz-{release}")
    settings = root / "usr/src" / f"linux-headers-{release}" / ".config"
    shutil.copy(settings, root / "boot" / f"config-{release}")  # mkinitramfs asks it what it can
    shutil.rmtree(work / suite)
    return _initial(suite, release, root)


def installed(root: Path) -> list[Kernel]:
    """Return the kernels that `install` put into a system."""
    kernels = []
    for suite in SUITES:
        said = root / "boot" / f"suite-{suite}"
        if said.exists():
            kernels.append(_kernel(suite, said.read_text().strip(), root))
    return kernels


def _fetch(suite: str, place: Path) -> list[Path]:
    """Download what a suite's kernel and headers are made of."""
    for directory in ("lists/partial", "cache/archives/partial"):
        (place / directory).mkdir(parents=True)
    (place / "status").touch()
    (place / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
    apt = ["apt-get", "-o", "APT::Sandbox::User=root", "-o", f"Dir::State={place}",
           "-o", f"Dir::State::Lists={place}/lists", "-o", f"Dir::State::Status={place}/status",
           "-o", f"Dir::Cache={place}/cache", "-o", f"Dir::Etc::SourceList={place}/sources.list",
           "-o", "Dir::Etc::SourceParts=/dev/null", "-o", "APT::Architecture=amd64"]  # fmt: skip
    run(*apt, "update", "-qq")
    wanted = ("linux-image-amd64", "linux-headers-amd64")
    listed = run(*apt, "install", "--print-uris", "-qq", "-y", "--no-install-recommends", *wanted)
    names = {line.split()[1].split("_")[0] for line in listed.splitlines() if line[:1] == "'"}
    parts = [name for name in sorted(names)
             if re.match(r"linux-(image|binary|modules|headers|base)-\d", name)]  # fmt: skip
    if not any(name.startswith("linux-headers") for name in parts):
        raise DebianError(f"apt names no kernel of {suite}: it would fetch {sorted(names)}")
    run(*apt, "download", *parts, cwd=place)
    return sorted(place.glob("*.deb"))


def _initial(suite: str, release: str, root: Path) -> Kernel:
    inside(root, "depmod", release)
    tools = root / "etc/initramfs-tools"
    settings = (tools / "initramfs.conf").read_text()
    settings = re.sub(r"(?m)^MODULES=.*$", "MODULES=list", settings)
    # every kernel can unpack it
    settings = re.sub(r"(?m)^COMPRESS=.*$", "COMPRESS=gzip", settings)
    (tools / "initramfs.conf").write_text(settings)
    (tools / "modules").write_text("\n".join(DISK) + "\n")
    inside(root, "mkinitramfs", "-o", f"/boot/initrd-{release}", release)
    (root / "boot" / f"suite-{suite}").write_text(release + "\n")
    return _kernel(suite, release, root)


def _kernel(suite: str, release: str, root: Path) -> Kernel:
    boot = root / "boot"
    return Kernel(suite, release, boot / f"vmlinuz-{release}", boot / f"initrd-{release}")
